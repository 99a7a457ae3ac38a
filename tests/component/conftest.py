# SPDX-License-Identifier: GPL-3.0-or-later
"""One lab host for the tests that need a real systemd. It belongs to this run alone and is removed afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LAB = "component"
HOST = "static1"


def lab_environment(**more: str) -> dict[str, str]:
    return {**os.environ, "LAB_NAME": LAB, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **more}


@dataclass(frozen=True)
class LabHost:
    """A Debian host with systemd, reached as Ansible reaches it."""

    name: str

    def run(self, command: str, check: bool = True) -> str:
        """A shell command on the host; its output."""
        done = subprocess.run(
            [str(ROOT / "lab" / "lab"), "ssh", self.name, "--", command],
            env=lab_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def module(self, name: str, arguments: dict[str, Any], *options: str) -> dict[str, Any]:
        """The result of one module run on the host, with `failed` set or not."""
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible")),
                *("-i", str(ROOT / "inventories" / "lab"), self.name),
                *("-m", f"flotilla.django.{name}", "-a", json.dumps(arguments), *options),
            ],
            cwd=ROOT,
            env=lab_environment(ANSIBLE_CALLBACK_RESULT_FORMAT="json", ANSIBLE_LOAD_CALLBACK_PLUGINS="false"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        _, found, answer = done.stdout.partition(" => ")
        assert found, done.stdout + done.stderr
        result: dict[str, Any] = json.JSONDecoder().raw_decode(answer)[0]
        result.setdefault("failed", done.returncode != 0)
        return result


@pytest.fixture(scope="session")
def lab_host() -> Iterator[LabHost]:
    def lab(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "lab" / "lab"), *arguments],
            env=lab_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    # What an earlier run left behind may be half-made.
    lab("down")
    made = lab("up", HOST)
    assert made.returncode == 0, made.stdout + made.stderr
    yield LabHost(HOST)
    lab("down")


@pytest.fixture
def run_module() -> Callable[..., dict[str, Any]]:
    """Runs a module of the collection on this machine, in a process of its own as on a host."""

    def run(name: str, arguments: dict[str, Any], check: bool = False, diff: bool = False) -> dict[str, Any]:
        options = {"_ansible_check_mode": check, "_ansible_diff": diff}
        done = subprocess.run(
            [sys.executable, "-m", f"ansible_collections.flotilla.django.plugins.modules.{name}"],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, **options}}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.strip(), done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        result.setdefault("failed", False)
        result["stdout_of_module"] = done.stdout + done.stderr
        return result

    return run
