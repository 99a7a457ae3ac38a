# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible-playbook prints, writes and returns at the end of status.yml, for thirteen hosts that have answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "unit"))

from status_cluster import ADDRESSES, SHARED, TIERS, Answers, healthy, put, without  # noqa: E402 - the line above

Report = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def report(tmp_path: Path) -> Report:
    def run(answers: Answers, options: tuple[str, ...] = (), **arguments: Any) -> subprocess.CompletedProcess[str]:
        def variables(name: str) -> dict[str, Any]:
            answer = answers[name]
            seen = (
                {"unreachable": True, "msg": answer["unreachable"]} if "unreachable" in answer else {"answers": answer}
            )
            return {"ansible_host": ADDRESSES[name], "__seen": seen}

        children = {
            tier: {"hosts": {name: variables(name) for name in names}} for tier, names in TIERS.items() if names
        }
        everywhere = {"cluster_domain": "www.example.com", "haproxy_virtual_address": SHARED}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": everywhere, "children": children}}))
        task = {"flotilla.django.status_report": {"seen": "__seen", **arguments}, "run_once": True}
        play = {"hosts": "all", "gather_facts": False, "tasks": [task]}
        (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
        program = str(Path(sys.executable).parent / "ansible-playbook")
        return subprocess.run(
            [program, "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml"), *options],
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_a_healthy_cluster_ends_well(report: Report) -> None:
    done = report(healthy())
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "Everything is well." in lines
    assert any(line.startswith("BALANCERS  haproxy") for line in lines)


def test_programs_find_one_line_and_a_file(report: Report, tmp_path: Path) -> None:
    answers = healthy()
    without("cache3")(answers)
    put("lb2/haproxy/drained", True)(answers)
    file = tmp_path / "status.json"
    done = report(answers, ("--check",), format="json", output=str(file), limits={"disk_percent": "30"})
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert found == json.loads(file.read_text())
    assert {tuple(item["where"]) for item in found["problems"]} >= {("cache3",), ("lb2",)}
    assert any("/ has" in item["what"] for item in found["problems"])
    assert "changed=1" not in done.stdout
    assert [path.name for path in tmp_path.glob("*status.json*")] == ["status.json"]


def test_about_some_hosts_only_theirs_count(report: Report) -> None:
    answers = healthy()
    put("lb2/haproxy/drained", True)(answers)
    done = report(answers, about=["app3"])
    assert done.returncode == 0, done.stdout
    assert "playbooks/undrain.yml -e drain_host=lb2" in done.stdout


def test_a_file_that_cannot_be_written_is_named(report: Report) -> None:
    done = report(healthy(), output="/nowhere/status.json")
    assert done.returncode != 0
    wanted = "status_output: got '/nowhere/status.json', wants a file that can be written"
    assert wanted in " ".join((done.stdout + done.stderr).split())
