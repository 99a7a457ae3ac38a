# SPDX-License-Identifier: GPL-3.0-or-later
"""The primary moves, planned and after its death, while Django writes: none of its commits is lost."""

from __future__ import annotations

import contextlib
import json
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
from tests.writes import PGBENCH_CLIENTS, TABLE, Writes, pgbench, switch_by_hand, writing

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


def go_round(lab: Lab, rounds: int) -> list[float]:
    """From db1 to db2 to db3 to db1; how long Django could not write each time."""
    gaps = []
    for number, target in enumerate(["db2", "db3", "db1"] * rounds):
        old = primary(lab)
        with writing(lab, f"round{number}-{time.time()}") as writes:
            moved = switch(lab, target)
        assert moved.returncode == 0, moved.output[-5000:]
        assert_nothing_lost(lab, writes, [old, target])
        gaps += writes.gaps
    assert_all_have_the_same(lab)
    return gaps


def go_by_hand(lab: Lab, rounds: int) -> list[float]:
    """The same between two members, without any check and any care: the floor."""
    floor = []
    for target in ["db2", "db1"] * rounds:
        wait_until(lambda: streaming(lab), 60, "all members stream")
        with writing(lab, f"floor-{target}-{time.time()}") as writes:
            switch_by_hand(lab, primary(lab), target)
        floor += writes.gaps
    return floor


def test_the_primary_goes_round_and_no_commit_is_lost(lab: Lab) -> None:
    gaps, floor = go_round(lab, 1), go_by_hand(lab, 1)
    assert statistics.median(gaps) <= 3 * statistics.median(floor), (gaps, floor)


@pytest.mark.full
def test_the_primary_goes_round_ten_times_beside_pgbench(lab: Lab) -> None:
    with pgbench(lab, MEMBERS, lambda: primary(lab)) as bench:
        gaps, floor = go_round(lab, 10), go_by_hand(lab, 3)
    gap, least = statistics.median(gaps), statistics.median(floor)
    print(f"median gap {gap:.2f} s, by hand {least:.2f} s, ratio {gap / least:.2f}: {sorted(gaps)}, {sorted(floor)}")
    print(bench)
    assert bench.told <= bench.there <= bench.told + PGBENCH_CLIENTS * bench.broken, bench
    assert bench.told > 1000, bench
    assert bench.balanced, bench
    assert gap <= 1.0, (gaps, floor)
    assert gap <= 3 * least, (gaps, floor)


# Daily, test_5_promoted_by_hand.py runs site.yml after all these moves, and it changes nothing.
@pytest.mark.full
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
    "little-space": (("-e", "postgresql_min_free_mb=1000000000"), "", "", "MiB free, wants 1000000000"),
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


def assert_refused(lab: Lab, refused: Recap, old: str, *reasons: str) -> None:
    said = " ".join(refused.output.split())
    assert refused.returncode != 0
    assert any(reason in said for reason in reasons), refused.output[-4000:]
    assert not refused.changed, refused.changed_tasks
    assert primary(lab) == old


@pytest.mark.full
def test_a_replication_password_that_somebody_has_changed_is_refused(lab: Lab) -> None:
    old = primary(lab)
    kept = lab.sql(old, "SELECT rolpassword FROM pg_authid WHERE rolname = 'replication'")
    lab.sql(old, "ALTER ROLE replication PASSWORD 'somebody has changed it'")
    try:
        refused = switch(lab, others(old)[0])
    finally:
        lab.sql(old, f"ALTER ROLE replication PASSWORD '{kept}'")
    assert_refused(lab, refused, old, "does not let")


@contextlib.contextmanager
def small_disk(lab: Lab, host: str) -> Iterator[str]:
    """The data of a member stands on a small disk of its own meanwhile."""
    version = lab.sql(host, "SHOW server_version_num")[:2]
    data, unit = f"/var/lib/postgresql/{version}/main", f"postgresql@{version}-main"
    lab.ssh(
        host,
        f"set -e; systemctl stop {unit}; mv {data} {data}.aside; install -d -o postgres -g postgres -m 0700 {data};"
        f" mount -t tmpfs -o mode=0700,size=$(($(du -sm {data}.aside | cut -f1) + 400))m tmpfs {data};"
        f" chown postgres: {data}; cp -a {data}.aside/. {data}/; rm -r {data}.aside; systemctl start {unit}",
    )
    try:
        yield data
    finally:
        lab.ssh(
            host,
            f"set -e; systemctl stop {unit}; rm -f {data}/filler; cp -a {data} {data}.aside; umount {data};"
            f" rmdir {data}; mv {data}.aside {data}; systemctl reset-failed {unit} || true; systemctl start {unit}",
        )


@pytest.mark.full
def test_a_standby_whose_disk_is_full_is_refused(lab: Lab) -> None:
    old = primary(lab)
    target = others(old)[0]
    with writing(lab, f"full-{time.time()}") as writes, small_disk(lab, target) as data:
        wait_until(lambda: streaming(lab), 60, "it streams from the small disk")
        # Enough to go on while it is asked: one whose disk is full to the last byte stops, which is the other case.
        lab.ssh(target, f"fallocate -l $(($(df --output=avail -B1 {data} | tail -1) - 100 * 1048576)) {data}/filler")
        assert_refused(lab, switch(lab, target), old, "MiB free, wants 256")
        # Now it meets the end of its disk.
        lab.sql(old, "CREATE TABLE filler AS SELECT generate_series(1, 1500000); DROP TABLE filler", "django")
        time.sleep(5)
        assert_refused(lab, switch(lab, target), old, "MiB free, wants 256", f"{target} is no running standby")
    wait_until(lambda: streaming(lab), 60, "it has room again, and streams")
    assert_nothing_lost(lab, writes, [old])
    assert_all_have_the_same(lab)


@pytest.mark.full
def test_two_primaries_are_refused(lab: Lab) -> None:
    old = primary(lab)
    second, third = others(old)
    with writing(lab, f"before-{time.time()}"):
        pass
    assert lab.sql(second, "SELECT pg_promote()") == "t"
    try:
        for playbook, arguments in (
            (SWITCHOVER, ("-e", f"postgresql_new_primary={third}")),
            (FAILOVER, ()),
            (RESTART, ("-e", "postgresql_restart_all=true")),
        ):
            refused = run(lab, playbook, *arguments)
            assert refused.returncode != 0
            said = " ".join(refused.output.split())
            assert "split brain: " in said, refused.output[-3000:]
            assert f"{old} (timeline" in said
            assert f"{second} (timeline" in said
            assert not refused.changed, refused.changed_tasks
    finally:
        for name in (old, third):
            rejoin(lab, name)
    assert primary(lab) == second
    assert_all_have_the_same(lab)


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


@pytest.mark.full
@pytest.mark.parametrize("targets", [(0, 1), (0, 0)], ids=["to-two-members", "to-the-same"])
def test_two_who_move_the_primary_at_the_same_time(lab: Lab, targets: tuple[int, int]) -> None:
    old = primary(lab)
    first, second = (others(old)[number] for number in targets)
    with writing(lab, f"two-{time.time()}") as writes:
        to = [(*SYNCHRONOUS, "-e", f"postgresql_new_primary={name}") for name in (first, second)]
        with (
            lab.background(*to[0], playbook=SWITCHOVER) as one,
            lab.background(*to[1], playbook=SWITCHOVER) as two,
        ):
            pass
    said = one.output[-3000:] + two.output[-3000:]
    print(said)
    assert 0 in (one.returncode, two.returncode), said
    assert primary(lab) in (first, second)
    # One after the other, or one alone: never to and fro.
    assert len(set(writes.servers)) == len(writes.servers), writes.servers
    assert_nothing_lost(lab, writes, writes.servers)
    assert_all_have_the_same(lab)


@pytest.mark.full
@pytest.mark.parametrize("comes_back", [True, False], ids=["and-comes-back", "for-good"])
def test_a_standby_that_vanishes_while_it_is_promoted(lab: Lab, comes_back: bool) -> None:
    old = primary(lab)
    target, third = others(old)
    # Its replay hangs from the moment on in which the move begins, so that it is not promoted before it vanishes.
    pid = lab.ssh(target, "pgrep -f 'startup recovering'").split()[0]
    lab.ssh(
        target,
        "systemd-run --collect --unit=trap bash -c"
        f" 'while [ ! -s /run/lock/flotilla-promote-*-main ]; do sleep 0.05; done; kill -STOP {pid}'",
    )
    with writing(lab, f"vanished-{time.time()}") as writes:
        with lab.background(*SYNCHRONOUS, "-e", f"postgresql_new_primary={target}", playbook=SWITCHOVER) as move:
            move.wait_for("Learn that it was promoted")
            time.sleep(0.5)
            lab.tool("kill", target)
        assert move.returncode != 0
        said = " ".join(move.output.split())
        assert f"Whether {target} was promoted cannot be known now" in said, move.output[-3000:]
        assert f"{old} stays out of action" in said
        if comes_back:
            lab.tool("start", target)
            wait_until(lambda: lab.ssh(target, ASK).strip() == "t", 60, f"{target} is back")
            finished = switch(lab, target)
        else:
            finished = run(lab, FAILOVER)
        assert finished.returncode == 0, finished.output[-5000:]
    if not comes_back:
        lab.tool("start", target)
        for name in (target, old):
            rejoin(lab, name)
    assert_nothing_lost(lab, writes, [old, target if comes_back else third])
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
            # Django waits for each attempt to reach a host that is gone.
            assert moved.output.count(f"[{old}]: UNREACHABLE!") == (kind != "killed"), moved.output[-6000:]
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


NEWER = """set -e
cd $(mktemp -d)
apt-get -q update >/dev/null
apt-get -q download {package}
dpkg-deb -R *.deb tree
sed -i 's/^Version: .*/&+newer{stamp}/' tree/DEBIAN/control
mkdir -p /var/local/newer
dpkg-deb -Znone -b tree /var/local/newer/newer.deb
cd /var/local/newer
{{ dpkg-deb -f newer.deb; echo "Filename: ./newer.deb"; echo "Size: $(stat -c %s newer.deb)"
   echo "SHA256: $(sha256sum newer.deb | cut -d' ' -f1)"; }} > Packages
echo 'deb [trusted=yes] file:/var/local/newer ./' > /etc/apt/sources.list.d/newer.list
"""


@pytest.mark.full
def test_a_newer_package_comes_with_a_rolling_restart(lab: Lab) -> None:
    """Debian's own package, packed again under a higher version: what a minor release brings to a host."""
    before, old = started(lab), primary(lab)
    package = f"postgresql-{lab.sql(old, 'SHOW server_version_num')[:2]}"
    ask = f"dpkg-query -W -f '${{Version}}' {package}"
    stamp = int(time.time())
    try:
        for name in MEMBERS:
            lab.ssh(name, NEWER.format(package=package, stamp=stamp))
        assert started(lab) == before
        with writing(lab, f"upgrade-{time.time()}") as writes:
            upgraded = run(lab, RESTART, "-e", "postgresql_upgrade=true")
        assert upgraded.returncode == 0, upgraded.output[-5000:]
        assert all(lab.ssh(name, ask).endswith(f"+newer{stamp}") for name in MEMBERS)
        after = started(lab)
        assert all(after[name] != before[name] for name in MEMBERS)
        assert_nothing_lost(lab, writes, [old, others(old)[0]])
        again = run(lab, RESTART, "-e", "postgresql_upgrade=true")
        assert again.returncode == 0, again.output[-3000:]
        assert not again.changed, again.changed_tasks
        assert started(lab) == after
    finally:
        for name in MEMBERS:
            lab.ssh(name, "rm -rf /etc/apt/sources.list.d/newer.list /var/local/newer; apt-get -q update", check=False)
    assert_all_have_the_same(lab)


@pytest.mark.full
def test_a_rolling_restart_loses_no_commit(lab: Lab) -> None:
    before, old = started(lab), primary(lab)
    with writing(lab, f"restart-{time.time()}") as writes:
        restarted = run(lab, RESTART, "-e", "postgresql_restart_all=true")
    assert restarted.returncode == 0, restarted.output[-5000:]
    assert all(moment != before[name] for name, moment in started(lab).items())
    assert_nothing_lost(lab, writes, [old, others(old)[0]])
    assert_all_have_the_same(lab)


@contextlib.contextmanager
def cut_off_without_proof(lab: Lab, old: str) -> Iterator[None]:
    """The primary is cut off, and one node that could reach it does not answer either. In the end old is a standby."""
    lab.tool("cut", old)
    lab.tool("pause", "app2")
    try:
        yield
    finally:
        lab.tool("start", old)
        lab.tool("heal", old)
        back = run(lab, REJOIN, "-e", f"postgresql_member={old}")
        # It must not find a second primary.
        lab.tool("unpause", "app2")
    assert back.returncode == 0, back.output[-5000:]


@pytest.mark.full
def test_without_proof_nobody_is_promoted_until_a_command_has_powered_it_off(lab: Lab) -> None:
    old = primary(lab)
    off = json.dumps({"postgresql_fence_command": f"{ROOT}/lab/lab kill $HOST"})
    with writing(lab, f"powered-off-{time.time()}", ["app1"]) as writes, cut_off_without_proof(lab, old):
        for arguments in ((), ("-e", "postgresql_fence_command=false")):
            refused = run(lab, FAILOVER, *arguments)
            assert refused.returncode != 0
            assert "could not be cut off from it: app2" in " ".join(refused.output.split()), refused.output[-3000:]
            assert [lab.ssh(name, ASK).strip() for name in others(old)] == ["t", "t"]
        moved = run(lab, FAILOVER, "-e", off)
        assert moved.returncode == 0, moved.output[-5000:]
        assert "proven: true" in moved.output
        assert re.search(rf"-{old} +Exited", lab.tool("list")), lab.tool("list")
    assert_nothing_lost(lab, writes, [old, primary(lab)])
    assert_all_have_the_same(lab)


@pytest.mark.full
def test_a_risk_that_is_accepted_is_told(lab: Lab) -> None:
    old = primary(lab)
    with writing(lab, f"risk-{time.time()}", ["app1"]) as writes, cut_off_without_proof(lab, old):
        moved = run(lab, FAILOVER, "-e", "postgresql_accept_split_brain_risk=true")
        assert moved.returncode == 0, moved.output[-5000:]
        said = " ".join(moved.output.split())
        assert "proven: false" in said
        assert "some may be lost" in said
        assert "cannot be proven that there is no other primary" in said
    assert_nothing_lost(lab, writes, [old, primary(lab)])
    assert_all_have_the_same(lab)


ON_DISK = "cd /var/lib/postgresql/*/main; PATH=$PATH:$(echo /usr/lib/postgresql/*/bin);"


def control(lab: Lab, host: str) -> dict[str, str]:
    """What the control file of a member says."""
    lines = lab.ssh(host, f"{ON_DISK} pg_controldata .").splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def where_it_begins(lab: Lab, host: str) -> str:
    """Where the timeline that a primary writes leaves the one before."""
    timeline = int(control(lab, host)["Latest checkpoint's TimeLineID"])
    history = lab.ssh(host, f"{ON_DISK} cat pg_wal/{timeline:08X}.history")
    return history.strip().splitlines()[-1].split("\t")[1]


def waldump(lab: Lab, host: str, start: str, *options: str) -> str:
    """What pg_waldump says of the WAL of a stopped member, to its end."""
    timeline, number = int(control(lab, host)["Latest checkpoint's TimeLineID"]), lsn(start) >> 24
    first = f"{timeline:08X}{number >> 8:08X}{number & 255:08X}"
    last = f"$(ls pg_wal | grep -E '^{timeline:08X}[0-9A-F]{{16}}$' | tail -1)"
    command = f"pg_waldump -p pg_wal -t {timeline} -s {start} {' '.join(options)} {first} {last} 2>&1 || true"
    return lab.ssh(host, f"{ON_DISK} {command}")


def where_it_ends(lab: Lab, host: str) -> str:
    """Where the WAL of a stopped primary ends: after its last record that is whole."""
    complaint = waldump(lab, host, control(lab, host)["Latest checkpoint's REDO location"], "--quiet")
    return re.findall(r"[0-9A-F]+/[0-9A-F]+", complaint)[-1]


def lsn(text: str) -> int:
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


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
        # To the byte what the old one has beyond the place where the new timeline begins; every lost commit lies there.
        begins, ends = where_it_begins(lab, primary(lab)), where_it_ends(lab, old)
        print(f"{len(lost)} lost, {told[1]} bytes told, from {begins} to {ends}")
        assert int(told[1]) == lsn(ends) - lsn(begins), (told[1], begins, ends)
        assert len(lost) <= waldump(lab, old, begins, "--rmgr", "Transaction").count("desc: COMMIT")
        back = lab.playbook("-e", f"postgresql_member={old}", playbook=REJOIN)
        assert back.returncode == 0, back.output[-5000:]
        assert_all_have_the_same(lab)
    finally:
        assert run(lab, "site.yml", *plain).returncode == 0
