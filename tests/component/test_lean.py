# SPDX-License-Identifier: GPL-3.0-or-later
"""A module that Ansible runs without its library: checked before it leaves, and the same as in Ansible's usual way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import ROOT


def run(*arguments: str) -> dict[str, Any]:
    """The result of deploy_lock, run on this machine by Ansible."""
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
    }
    ansible = str(Path(sys.executable).with_name("ansible"))
    done = subprocess.run(
        [ansible, "localhost", "-c", "local", "-m", "flotilla.django.deploy_lock", *arguments],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.partition("=> ")[2])
    return {"failed": "FAILED!" in done.stdout, **result}


def test_what_the_module_does_not_know_is_refused_in_ansibles_words(tmp_path: Path) -> None:
    found = run("-a", f"state=read path={tmp_path}/lock colour=red")
    assert found["failed"]
    assert found["msg"].startswith("deploy_lock: unsupported parameters: colour. Supported parameters include: ")


@pytest.mark.parametrize("path", ["~/lock", "$HOME/lock"])
def test_a_path_that_means_another_place_on_each_machine_is_refused(path: str) -> None:
    found = run("-a", f"state=read path={path}")
    assert found["failed"]
    assert f"path: {path}: wants an absolute path" in found["msg"]


def test_check_mode_reaches_it(tmp_path: Path) -> None:
    arguments = json.dumps({"state": "held", "owner": {"id": "anna"}, "path": f"{tmp_path}/lock.json"})
    assert run("-a", arguments, "--check")["lock"]["id"] == "anna"
    assert not (tmp_path / "lock.json").exists()
    assert run("-a", arguments)["changed"] is False
    assert json.loads((tmp_path / "lock.json").read_text())["id"] == "anna"
