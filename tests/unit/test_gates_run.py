# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner of the tests counts what ran, and fails when something failed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run

PASSES = "def test_a(): pass\ndef test_b(): pass\n"
FAILS = "import pytest\ndef test_a(): assert 0\ndef test_b(): pass\n@pytest.mark.skip\ndef test_c(): pass\n"


@pytest.fixture(autouse=True)
def _logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "LOGS", tmp_path)


def results(*stages: run.Stage) -> list[run.Result]:
    runner = run.Runner()
    runner.run(list(stages), 2)
    return sorted(runner.results, key=lambda result: result.stage.name)


@pytest.mark.parametrize(
    ("code", "log", "passed", "failed", "skipped"),
    [
        pytest.param(0, "===== 4 passed in 0.80s =====", 5, 0, 0, id="framed"),
        pytest.param(0, "4 passed, 1 skipped in 65.01s (0:01:05)", 5, 0, 1, id="quiet"),
        pytest.param(0, "\x1b[32m=== \x1b[1m4 passed\x1b[0m, 2 warnings in 0.80s ===\x1b[0m", 5, 0, 0, id="coloured"),
        pytest.param(1, "=== 1 failed, 3 passed, 1 error in 3.20s ===", 3, 2, 0, id="tests-failed"),
        pytest.param(2, "TASK [Install] fatal: failed=1", 0, 1, 0, id="converge-failed"),
        pytest.param(0, "=== 2 passed in 1.00s ===\nthen\n=== 3 passed in 1.00s ===", 6, 0, 0, id="two-runs"),
    ],
)
def test_a_scenario_counts_itself_and_its_tests(code: int, log: str, passed: int, failed: int, skipped: int) -> None:
    script = f"import sys; sys.stdout.write({log!r} + chr(10)); sys.exit({code})"
    (result,) = results(run.Stage("molecule:x:debian13", (sys.executable, "-c", script)))
    assert (result.code, result.passed, result.failed, result.skipped) == (code, passed, failed, skipped)


@pytest.mark.parametrize(
    ("source", "passed", "failed", "skipped"),
    [(PASSES, 2, 0, 0), (FAILS, 1, 1, 1), ("import nothing_of_that_name\n", 0, 1, 0), ("", 0, 1, 0)],
    ids=["passes", "fails", "broken", "empty"],
)
def test_pytest_is_counted_test_by_test(tmp_path: Path, source: str, passed: int, failed: int, skipped: int) -> None:
    (tmp_path / "test_x.py").write_text(source, encoding="utf-8")
    junit = run.Stage("unit", ()).junit
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}", str(tmp_path))
    (result,) = results(run.Stage("unit", command))
    assert (result.passed, result.failed, result.skipped) == (passed, failed, skipped)
    assert bool(result.code) == bool(failed)


def test_a_stage_that_hangs_is_ended_with_its_children() -> None:
    nap = f"time.sleep(3333.{os.getpid()})"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; {nap}'])"
    (result,) = results(run.Stage("gate", (sys.executable, "-c", script), minutes=0.02))
    assert (result.passed, result.failed) == (0, 1)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert nap not in listed


def test_one_failure_does_not_hide_behind_another_stage(capsys: pytest.CaptureFixture[str]) -> None:
    good = run.Stage("good", (sys.executable, "-c", "print('said by good')"))
    bad = run.Stage("bad", (sys.executable, "-c", "print('said by bad'); exit(1)"))
    assert [(result.stage.name, result.failed) for result in results(good, bad)] == [("bad", 1), ("good", 0)]
    output = capsys.readouterr().out
    assert "said by bad" in output and "said by good" not in output


def names_in_turns(*arguments: str) -> list[list[str]]:
    stages, _background = run.apart([run.Stage(name, ()) for name in arguments])
    return [[stage.name for stage in turn] for turn in run.in_turns(stages)]


def test_the_cluster_runs_last_and_alone_and_no_lab_is_used_twice_at_a_time() -> None:
    assert names_in_turns(
        "unit", "component", "molecule:cluster:debian13", "molecule:single:debian12", "molecule:redis:debian13"
    ) == [
        ["component", "molecule:redis:debian13", "molecule:single:debian12"],
        ["molecule:cluster:debian13"],
    ]
    both = [f"molecule:{name}:debian{release}" for name in ("redis", "cluster") for release in (13, 12)]
    assert names_in_turns(*both) == [[name] for name in (both[0], both[1], both[2], both[3])]
    assert names_in_turns("unit", *both)[2:] == [["molecule:cluster:debian13"], ["molecule:cluster:debian12"]]


@pytest.fixture
def cluster(tmp_path: Path) -> None:
    (tmp_path / "molecule/cluster").mkdir(parents=True)
    (tmp_path / "molecule/cluster/molecule.yml").touch()


def test_the_cluster_is_made_beside_the_other_scenarios(cluster: None) -> None:
    stages = [stage for stage in run.molecule(full=False) if "cluster" in stage.name]
    made, tested = (stage.name for stage in stages)
    assert names_in_turns(tested, made, "molecule:django:debian13") == [[made, "molecule:django:debian13"], [tested]]
    assert all(stage.has_daemons for stage in stages)
    assert len([stage for stage in run.molecule(full=True) if "cluster" in stage.name]) == 2


@pytest.mark.parametrize(
    ("fails", "done", "codes"),
    [
        ("", ["destroy", "converge", "idempotence", "verify", "destroy"], [0, 0]),
        ("idempotence", ["destroy", "converge", "idempotence", "destroy", "destroy"], [1, 1]),
        ("verify", ["destroy", "converge", "idempotence", "verify", "destroy"], [0, 1]),
    ],
)
def test_a_scenario_in_two_stages_leaves_no_hosts(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, done: list[str], codes: list[int]
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "molecule").write_text(
        '#!/bin/sh\necho "$*" >> done\n'
        "case $1 in converge) mkdir -p .lab/molecule-cluster ;; destroy) rm -rf .lab ;; esac\n"
        f'[ "$1" != "{fails}" ]\n'
    )
    (tools / "molecule").chmod(0o755)
    monkeypatch.setattr(run, "BIN", tools)
    parts = [stage for stage in run.molecule(full=False) if "cluster" in stage.name]
    assert [result.code for part in parts for result in results(part)] == codes
    assert (tmp_path / "done").read_text().splitlines() == [f"{step} -s cluster" for step in done]


def test_what_starts_no_daemon_runs_beside_the_others_with_what_they_leave() -> None:
    stages = [run.Stage(name, ("true",), 10) for name in ("molecule:cluster:debian13", "component", "unit")]
    turns, background = run.apart(stages)
    assert turns == stages[:2]
    # It takes its time there.
    assert background == [run.Stage("unit", ("nice", "-n", "19", "true"), 40)]
    # Without the cluster it takes its turn.
    assert run.apart(stages[1:]) == (stages[1:], [])


def test_the_background_is_waited_for_and_ended_with_the_others(tmp_path: Path) -> None:
    runner = run.Runner()
    with runner.beside([run.Stage("behind", ("sh", "-c", "sleep 0.3"))]):
        runner.run([run.Stage("front", ("true",))], 1)
    assert [result.stage.name for result in runner.results] == ["front", "behind"]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), runner.beside([run.Stage("behind", ("sleep", "60"))]):
        time.sleep(0.3)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 10
