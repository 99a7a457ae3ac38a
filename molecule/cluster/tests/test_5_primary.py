# SPDX-License-Identifier: GPL-3.0-or-later
"""The primary moves, planned and after its death, while Django writes: none of its commits is lost."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import ROOT, Lab, Recap, wait_until
from tests.writes import TABLE, Writes, switch_by_hand, writing

MEMBERS = ["db1", "db2", "db3"]
SWITCHOVER, FAILOVER, REJOIN, RESTART = (
    f"playbooks/{name}.yml" for name in ("switchover", "failover", "rejoin", "restart_postgresql")
)
SYNCHRONOUS = ("-e", "postgresql_synchronous_standbys=1")


def run(lab: Lab, playbook: str, *arguments: str) -> Recap:
    return lab.playbook(*SYNCHRONOUS, *arguments, playbook=playbook)


def switch(lab: Lab, target: str, *arguments: str) -> Recap:
    return run(lab, SWITCHOVER, "-e", f"postgresql_new_primary={target}", *arguments)


def rejoin(lab: Lab, member: str) -> None:
    back = run(lab, REJOIN, "-e", f"postgresql_member={member}")
    assert back.returncode == 0, back.output[-5000:]


def primary(lab: Lab) -> str:
    """The one member that accepts writes; more than one is an error."""
    found = [name for name in MEMBERS if lab.ssh(name, ASK, check=False).strip() == "f"]
    assert len(found) == 1, found
    return found[0]


ASK = "runuser -u postgres -- timeout 5 psql -qAtXc 'SELECT pg_is_in_recovery()' 2>/dev/null"


def others(name: str) -> list[str]:
    return [member for member in MEMBERS if member != name]


def streaming(lab: Lab) -> bool:
    query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    return lab.sql(primary(lab), query) == str(len(MEMBERS) - 1)


def assert_all_have_the_same(lab: Lab) -> None:
    """Row by row, on all members, as soon as all have replayed what the primary has."""
    wait_until(lambda: streaming(lab), 60, "all members stream")
    position = lab.sql(primary(lab), "SELECT pg_current_wal_lsn()")
    query = f"SELECT md5(string_agg(run || ' ' || node || ' ' || number, ',' ORDER BY run, node, number)) FROM {TABLE}"
    found = {}
    for name in MEMBERS:
        if name != primary(lab):
            wait_until(
                lambda name=name: lab.sql(name, f"SELECT pg_last_wal_replay_lsn() >= '{position}'") == "t", 30,
                f"{name} has replayed {position}",
            )  # fmt: skip
        found[name] = lab.sql(name, query, "django")
    assert len(set(found.values())) == 1, found
    assert found["db1"]


def assert_nothing_lost(lab: Lab, writes: Writes, moves: list[str]) -> None:
    server = primary(lab)
    assert writes.lost(lab, server) == []
    assert writes.doubled(lab, server) == ""
    # Never back to one that has been left: then two would have taken writes.
    assert writes.servers == moves, writes.servers


@pytest.fixture(scope="module", autouse=True)
def synchronous(lab: Lab) -> Iterator[None]:
    """Commits wait for one standby while these tests run; afterwards db1 is the primary, as the next tests want it."""
    there = run(lab, "site.yml", "--limit", "postgresql", "--tags", "postgresql")
    assert there.returncode == 0, there.output[-3000:]
    yield
    if primary(lab) != "db1":
        assert switch(lab, "db1").returncode == 0
    back = lab.playbook()
    assert back.returncode == 0, back.output[-3000:]


@pytest.mark.parametrize(
    "rounds", [pytest.param(1, id="once-round"), pytest.param(3, id="long", marks=pytest.mark.full)]
)
def test_the_primary_goes_round_and_no_commit_is_lost(lab: Lab, rounds: int) -> None:
    gaps, floor = [], []
    for number, target in enumerate(["db2", "db3", "db1"] * rounds):
        old = primary(lab)
        with writing(lab, f"round{number}-{time.time()}") as writes:
            moved = switch(lab, target)
        assert moved.returncode == 0, moved.output[-5000:]
        assert_nothing_lost(lab, writes, [old, target])
        gaps += writes.gaps
    assert_all_have_the_same(lab)
    for target in ["db2", "db1"]:
        with writing(lab, f"floor-{target}-{time.time()}") as writes:
            switch_by_hand(lab, primary(lab), target)
        floor += writes.gaps
    print(f"gaps {gaps}, by hand {floor}")
    assert statistics.median(gaps) <= 3 * statistics.median(floor), (gaps, floor)


def test_site_changes_nothing_after_a_move_and_moves_nothing(lab: Lab) -> None:
    target = others(primary(lab))[0]
    assert switch(lab, target).returncode == 0
    again = switch(lab, target)
    assert again.returncode == 0
    assert not again.changed, again.changed_tasks
    site = run(lab, "site.yml", "--limit", "postgresql", "--tags", "postgresql")
    assert site.returncode == 0, site.output[-3000:]
    assert not site.changed, site.changed_tasks
    assert primary(lab) == target


REFUSALS = {
    "unknown-host": ((), "", "", "wants one of db1, db2, db3"),
    "paused-replay": (
        (), "psql -c 'SELECT pg_wal_replay_pause()'", "psql -c 'SELECT pg_wal_replay_resume()'", "replay is paused on",
    ),
    "wrong-password": (("-e", "postgresql_replication_password=wrong-but-long-enough"), "", "", "does not let"),
    "disk-full": (("-e", "postgresql_min_free_mb=1000000000"), "", "", "MiB free, wants 1000000000"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [case if case == "paused-replay" else pytest.param(case, marks=pytest.mark.full) for case in REFUSALS]
)
def test_a_planned_move_is_refused_before_anything_is_changed(lab: Lab, case: str) -> None:
    arguments, before, after, reason = REFUSALS[case]
    old = primary(lab)
    target = "db9" if case == "unknown-host" else others(old)[0]
    as_postgres = "runuser -u postgres -- {}"
    if before:
        lab.ssh(target, as_postgres.format(before))
    try:
        refused = switch(lab, target, *arguments)
    finally:
        if after:
            lab.ssh(target, as_postgres.format(after))
    assert refused.returncode != 0
    assert reason in " ".join(refused.output[-4000:].split()), refused.output[-4000:]
    assert not refused.changed, refused.changed_tasks
    assert primary(lab) == old


@pytest.mark.full
def test_another_manager_and_a_lagging_standby_are_refused(lab: Lab) -> None:
    old = primary(lab)
    target, third = others(old)
    lab.ssh(third, "systemd-run --unit=pretender bash -c 'exec -a patroni sleep 600'")
    try:
        managed = switch(lab, target)
    finally:
        lab.ssh(third, "systemctl stop pretender")
    assert "is managed by Patroni" in managed.output
    # Its receiver hangs, so it looks alive to everybody but the primary, which sees how far it has come.
    pid = lab.sql(target, "SELECT pid FROM pg_stat_wal_receiver")
    lab.ssh(target, f"kill -STOP {pid}")
    try:
        time.sleep(6)
        lab.sql(old, f"INSERT INTO {TABLE} SELECT 'lag', 'x', generate_series(1, 200000)", "django")
        lagging = switch(lab, target)
    finally:
        lab.ssh(target, f"kill -CONT {pid}", check=False)
    assert lagging.returncode != 0
    assert f"{target} has not told {old} for" in " ".join(lagging.output.split()), lagging.output[-3000:]
    assert not lagging.changed, lagging.changed_tasks
    assert primary(lab) == old
    wait_until(lambda: streaming(lab), 60, "it catches up")


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("Let it wait for the end of the primary", marks=pytest.mark.full),
        "Put the primary out of action",
        pytest.param("Learn that it was promoted", marks=pytest.mark.full),
        pytest.param("Make the former primary a standby", marks=pytest.mark.full),
        pytest.param("Run the standby", marks=pytest.mark.full),
    ],
)
def test_a_killed_switchover_is_finished_by_the_next_run(lab: Lab, tmp_path: Path, step: str) -> None:
    old = primary(lab)
    target = others(old)[0]
    log = tmp_path / "log"
    command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(lab.inventory), SWITCHOVER, *SYNCHRONOUS]
    with writing(lab, f"killed-{time.time()}") as writes:
        with log.open("w") as output, subprocess.Popen(
            [*command, "-e", f"postgresql_new_primary={target}"],
            cwd=ROOT, env=lab.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        ) as process:  # fmt: skip
            wait_until(lambda: f"TASK [{step}" in log.read_text() or f": {step}" in log.read_text(), 120, step, 0.02)
            time.sleep(0.4)  # in the middle of it
            os.killpg(process.pid, signal.SIGKILL)
        finished = switch(lab, target)
    assert finished.returncode == 0, finished.output[-5000:]
    assert primary(lab) == target
    assert_nothing_lost(lab, writes, [old, target])
    assert_all_have_the_same(lab)


@pytest.mark.full
def test_a_standby_that_does_not_promote_leaves_the_old_primary_serving(lab: Lab) -> None:
    old = primary(lab)
    target = others(old)[0]
    # Its replay hangs from the moment on in which the move begins: it cannot come to the end.
    pid = lab.ssh(target, "pgrep -f 'startup recovering'").split()[0]
    with writing(lab, f"undone-{time.time()}") as writes:
        trap = (
            "systemd-run --unit=trap bash -c 'while [ ! -s /run/lock/flotilla-promote-*-main ]; do sleep 0.05; done;"
            f" kill -STOP {pid}; sleep 50; kill -CONT {pid}'"
        )
        lab.ssh(target, trap)
        try:
            failed = switch(lab, target, "-e", "postgresql_handover_timeout=10", "-e", "postgresql_stop_timeout=10")
        finally:
            lab.ssh(target, f"systemctl stop trap; kill -CONT {pid}", check=False)
    assert failed.returncode != 0
    assert f"{old} is the primary again" in " ".join(failed.output.split()), failed.output[-4000:]
    assert primary(lab) == old
    assert_nothing_lost(lab, writes, [old])
    assert_all_have_the_same(lab)


def died(lab: Lab, kind: str, host: str) -> None:
    if kind == "killed":
        lab.ssh(host, "pkill -9 -x postgres")
    elif kind != "healthy":
        lab.tool({"dead": "kill", "frozen": "pause", "cut off": "cut"}[kind], host)


def comes_back(lab: Lab, kind: str, host: str) -> None:
    if kind != "killed":
        lab.tool({"dead": "start", "frozen": "unpause", "cut off": "heal"}[kind], host)


@pytest.mark.parametrize(
    "kind",
    ["killed", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("dead", "frozen", "cut off"))],
)
def test_a_failover_loses_nothing_and_leaves_one_primary(lab: Lab, kind: str) -> None:
    old = primary(lab)
    with writing(lab, f"{kind.replace(' ', '-')}-{time.time()}") as writes:
        died(lab, kind, old)
        try:
            moved = run(lab, FAILOVER)
            assert moved.returncode == 0, moved.output[-6000:]
            assert "proven: true" in moved.output
        finally:
            comes_back(lab, kind, old)
        # It is back and may believe that it is the primary: Django must not find it, connected or anew.
        time.sleep(5)
    new = [name for name in others(old) if lab.ssh(name, ASK).strip() == "f"]
    assert len(new) == 1, new
    assert writes.servers == [old, new[0]], writes.servers
    assert writes.lost(lab, new[0]) == []
    again = run(lab, FAILOVER)
    assert not again.changed, again.changed_tasks
    if kind == "killed":
        assert again.returncode == 0, again.output[-3000:]
    else:  # it is a primary that nobody can reach but Ansible
        assert "split brain: " in again.output, again.output[-3000:]
        assert f"{old} (timeline" in again.output
    rejoin(lab, old)
    assert_nothing_lost(lab, writes, [old, new[0]])
    assert_all_have_the_same(lab)
    assert lab.ssh(new[0], "nft list tables | grep flotilla_fence", check=False) == ""


@pytest.mark.full
def test_a_failover_beside_a_live_primary_changes_nothing(lab: Lab) -> None:
    old = primary(lab)
    nothing = run(lab, FAILOVER)
    assert nothing.returncode == 0, nothing.output[-3000:]
    assert not nothing.changed, nothing.changed_tasks
    refused = run(lab, FAILOVER, "-e", f"postgresql_new_primary={others(old)[0]}")
    assert refused.returncode != 0
    assert "playbooks/switchover.yml moves it" in " ".join(refused.output.split())
    assert primary(lab) == old


def started(lab: Lab) -> dict[str, str]:
    return {name: lab.sql(name, "SELECT pg_postmaster_start_time()") for name in MEMBERS}


@pytest.mark.full
def test_only_who_needs_a_restart_gets_one(lab: Lab) -> None:
    before = started(lab)
    standby = others(primary(lab))[0]
    version = lab.sql(standby, "SHOW server_version_num")[:2]
    program = f"/usr/lib/postgresql/{version}/bin/postgres"
    # What an upgrade does to the program file.
    lab.ssh(standby, f"cp -a {program} {program}.new && mv {program}.new {program}")
    restarted = run(lab, RESTART)
    assert restarted.returncode == 0, restarted.output[-5000:]
    assert {name for name, moment in started(lab).items() if moment != before[name]} == {standby}
    again = run(lab, RESTART)
    assert again.returncode == 0
    assert not again.changed, again.changed_tasks


@pytest.mark.full
def test_a_rolling_restart_loses_no_commit(lab: Lab) -> None:
    before, old = started(lab), primary(lab)
    with writing(lab, f"restart-{time.time()}") as writes:
        restarted = run(lab, RESTART, "-e", "postgresql_restart_all=true")
    assert restarted.returncode == 0, restarted.output[-5000:]
    assert all(moment != before[name] for name, moment in started(lab).items())
    assert_nothing_lost(lab, writes, [old, others(old)[0]])
    assert_all_have_the_same(lab)


@pytest.mark.full
def test_without_proof_nobody_is_promoted(lab: Lab) -> None:
    old = primary(lab)
    lab.tool("cut", old)
    lab.tool("pause", "app2")
    try:
        refused = run(lab, FAILOVER)
        assert refused.returncode != 0
        assert "could not be cut off from it: app2" in " ".join(refused.output.split()), refused.output[-3000:]
        assert [lab.ssh(name, ASK).strip() for name in others(old)] == ["t", "t"]
    finally:
        lab.tool("unpause", "app2")
        lab.tool("heal", old)
    rejoin_nothing = run(lab, FAILOVER)
    assert rejoin_nothing.returncode == 0


@pytest.mark.full
def test_without_synchronous_standbys_the_loss_is_what_the_failover_says(lab: Lab) -> None:
    plain = ("--limit", "postgresql", "--tags", "postgresql")
    assert lab.playbook(*plain).returncode == 0
    old = primary(lab)
    try:
        pids = {name: lab.sql(name, "SELECT pid FROM pg_stat_wal_receiver") for name in others(old)}
        with writing(lab, f"async-{time.time()}") as writes:
            for name, pid in pids.items():
                lab.ssh(name, f"kill -STOP {pid}")
            time.sleep(3)
            lab.ssh(old, "pkill -9 -x postgres")
            for name, pid in pids.items():
                lab.ssh(name, f"kill -9 {pid}", check=False)
            moved = lab.playbook(playbook=FAILOVER)
        assert moved.returncode == 0, moved.output[-5000:]
        told = re.search(r"data_loss_bytes: (\d+)", moved.output)
        assert told, moved.output[-3000:]
        lost = writes.lost(lab, primary(lab))
        assert lost
        # A row and its commit take more than 100 bytes of WAL.
        assert int(told[1]) >= 100 * len(lost), (told[1], len(lost))
        back = lab.playbook("-e", f"postgresql_member={old}", playbook=REJOIN)
        assert back.returncode == 0, back.output[-5000:]
        assert_all_have_the_same(lab)
    finally:
        assert run(lab, "site.yml", *plain).returncode == 0
