# SPDX-License-Identifier: GPL-3.0-or-later
"""One lab host for the tests that need a real systemd. It belongs to this run alone and is removed afterwards."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LAB = "component"
HOST = "static1"
MODULES = "/var/tmp/flotilla-component-test"


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

    def module(self, name: str, arguments: dict[str, Any], check: bool = False) -> dict[str, Any]:
        """The result of one run of a module of the collection on the host, under the host's own Python."""
        done = subprocess.run(
            [
                *(str(ROOT / "lab" / "lab"), "ssh", self.name, "--"),
                f"PYTHONPATH={MODULES} python3 -m ansible_collections.flotilla.django.plugins.modules.{name}",
            ],
            env=lab_environment(),
            input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout.strip(), done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        result.setdefault("failed", False)
        return result

    def install_modules(self) -> None:
        """Puts the collection's modules and what they import of Ansible on the host.

        Starting a module this way takes a fraction of the time that a run of Ansible takes.
        """
        packages = Path(ansible.__file__).parent.parent
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for part in ("ansible/release.py", "ansible/module_utils"):
                tar.add(packages / part, part, filter=_without_caches)
            # Empty, as in what Ansible itself sends to a host.
            tar.addfile(tarfile.TarInfo("ansible/__init__.py"))
            for part in ("module_utils", "modules"):
                tar.add(ROOT / "plugins" / part, f"ansible_collections/flotilla/django/plugins/{part}")
        subprocess.run(
            [
                *(str(ROOT / "lab" / "lab"), "ssh", self.name, "--"),
                f"rm -rf {MODULES}; mkdir -p {MODULES}; tar -xf - -C {MODULES} --no-same-owner",
            ],
            env=lab_environment(),
            input=archive.getvalue(),
            check=True,
            timeout=60,
        )


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


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
    host = LabHost(HOST)
    host.install_modules()
    yield host
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
