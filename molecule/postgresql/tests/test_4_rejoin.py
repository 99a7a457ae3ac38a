# SPDX-License-Identifier: GPL-3.0-or-later
"""Members come back with playbooks/rejoin.yml, and have the primary's data, row by row. Promoted by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from postgresql_tier import HOSTS, Tier

from tests.cluster import ROOT, Recap, wait_until

TABLES = """
SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
"""
CHECKSUM = """
SELECT '{table}', count(*), md5(coalesce(string_agg(row::text, E'\\n' ORDER BY row::text), '')) FROM {table} AS row;
"""


def arguments(tier: Tier, member: str, **variables: object) -> list[str]:
    # The hosts of the other tiers are not there; molecule/postgresql/converge.yml says who the clients are.
    told = {"postgresql_member": member, "postgresql_client_addresses": [tier.address["db3"]], **variables}
    return ["--limit", ",".join(HOSTS), "--extra-vars", json.dumps(told)]


def rejoin(tier: Tier, member: str, *more: str, **variables: object) -> Recap:
    return tier.lab.playbook(*arguments(tier, member, **variables), *more, playbook="playbooks/rejoin.yml")


def rejoined(tier: Tier, member: str, method: str, **variables: object) -> Recap:
    recap = rejoin(tier, member, **variables)
    assert recap.returncode == 0, recap.output
    assert f"{member}: {method}, because" in " ".join(recap.output.split()), recap.output
    return recap


def primary(tier: Tier) -> str:
    (found,) = (host for host in HOSTS if tier.sql(host, "SELECT pg_is_in_recovery()") == "f")
    return found


def psql(tier: Tier, host: str, query: str) -> str:
    return tier.lab.ssh(host, "runuser -u postgres -- psql -qAtX -d django", query).strip()


def write(tier: Tier, host: str, note: str, rows: int = 2000) -> None:
    psql(
        tier,
        host,
        "CREATE TABLE IF NOT EXISTS rejoined (id serial PRIMARY KEY, note text);\n"
        f"INSERT INTO rejoined (note) SELECT '{note}' || md5(i::text) FROM generate_series(1, {rows}) AS i;\n"
        f"UPDATE rejoined SET note = note || '{note}' WHERE id % 7 = 0;",
    )


def rows(tier: Tier, host: str) -> dict[str, str]:
    """The number of rows and a checksum over all of them, for each table."""
    tables = psql(tier, host, TABLES).splitlines()
    assert "public.rejoined" in tables
    query = "".join(CHECKSUM.format(table=table) for table in tables)
    return dict(line.split("|", 1) for line in psql(tier, host, query).splitlines())


def check_all_have_the_same(tier: Tier, head: str) -> None:
    tier.wait_streaming(head, set(HOSTS) - {head}, 60)
    write(tier, head, "afterwards", 10)
    end = tier.sql(head, "SELECT pg_current_wal_lsn()")
    replayed = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
    for host in HOSTS:
        if host != head:
            wait_until(lambda host=host: tier.sql(host, replayed) == "t", 20, f"{host} has replayed everything")
    wanted = rows(tier, head)
    assert {host: rows(tier, host) for host in HOSTS} == dict.fromkeys(HOSTS, wanted)
    # What a member keeps for others is kept on the primary alone.
    keeps = "SELECT count(*) FROM pg_replication_slots WHERE restart_lsn IS NOT NULL"
    assert {host: tier.sql(host, keeps) for host in HOSTS if host != head} == {
        host: "0" for host in HOSTS if host != head
    }


def check_nothing_is_left_to_do(tier: Tier, member: str) -> None:
    for recap in (rejoin(tier, member), rejoin(tier, member, "--check", "--diff"), tier.converge()):
        assert recap.returncode == 0, recap.output
        assert recap.changed == {}, recap.changed_tasks


def units(tier: Tier, verb: str, hosts: list[str]) -> None:
    for host in hosts:
        tier.lab.ssh(host, f"systemctl {verb} {tier.unit}")


def lose_the_primary(tier: Tier) -> tuple[str, str]:
    """It writes what no other receives, and is killed; another is promoted and goes its own way."""
    old = primary(tier)
    new, third = (host for host in HOSTS if host != old)
    write(tier, old, "shared")
    tier.wait_streaming(old, {new, third})
    # The one that is promoted has most, as it must: whoever had more could not follow it.
    units(tier, "stop", [third])
    write(tier, old, "later")
    units(tier, "stop", [new])
    write(tier, old, "lost")
    tier.lab.ssh(old, f"kill -9 $(head -1 {tier.data}/postmaster.pid)")
    units(tier, "start", [new, third])
    wait_until(lambda: tier.sql(new, "SELECT pg_promote()") == "t", 20, f"{new} is promoted")
    write(tier, new, "won")
    return old, new


@pytest.mark.full  # in make test the cluster's failover ends like this
def test_a_primary_that_was_killed_and_came_up_beside_the_new_one_is_rewound(tier: Tier) -> None:
    old, new = lose_the_primary(tier)
    # A reboot of its host: it does not know that it was replaced.
    wait_until(
        lambda: tier.lab.ssh(old, f"systemctl reset-failed {tier.unit}; systemctl start {tier.unit}; echo 1"), 20, "up"
    )
    wait_until(lambda: tier.sql(old, "SELECT pg_is_in_recovery()") == "f", 30, f"{old} accepts writes")
    write(tier, old, "stray")
    planned = rejoin(tier, old, "--check", "--diff")
    assert planned.returncode == 0, planned.output
    assert f"{old} runs as a second primary, on timeline" in " ".join(planned.output.split())
    assert tier.sql(old, "SELECT pg_is_in_recovery()") == "f"
    rejoined(tier, old, "rewind")
    check_all_have_the_same(tier, new)
    lost = "SELECT count(*) FROM rejoined WHERE note ~ '^(lost|stray)'"
    assert psql(tier, old, lost) == "0"
    check_nothing_is_left_to_do(tier, old)


@pytest.mark.full
def test_a_primary_that_was_killed_is_rewound(tier: Tier) -> None:
    old, new = lose_the_primary(tier)
    planned = rejoin(tier, old, "--check", "--diff")
    assert planned.returncode == 0, planned.output
    assert f"{old}: rewind, because" in " ".join(planned.output.split())
    assert "in production" in tier.lab.ssh(old, f"/usr/lib/postgresql/*/bin/pg_controldata {tier.data}")
    rejoined(tier, old, "rewind")
    check_all_have_the_same(tier, new)


@pytest.mark.full  # in make test the moves of the cluster's primary end like this
def test_a_primary_that_was_stopped_in_order_just_follows(tier: Tier) -> None:
    old = primary(tier)
    write(tier, old, "handed over")
    new = next(host for host in HOSTS if host != old)
    tier.wait_streaming(old, set(HOSTS) - {old})
    units(tier, "stop", [old])
    assert tier.sql(new, "SELECT pg_promote()") == "t"
    write(tier, new, "since then")
    rejoined(tier, old, "follow")
    check_all_have_the_same(tier, new)
    recap = rejoin(tier, old)
    assert recap.changed == {}, recap.changed_tasks


def test_an_empty_disk_is_cloned(tier: Tier) -> None:
    head = primary(tier)
    member = next(host for host in HOSTS if host != head)
    tier.lab.ssh(member, f"systemctl stop {tier.unit}; rm -rf {tier.data}")
    rejoined(tier, member, "clone")
    check_all_have_the_same(tier, head)


@pytest.mark.full
def test_damaged_data_is_replaced_only_when_that_is_allowed(tier: Tier) -> None:
    head = primary(tier)
    member = next(host for host in HOSTS if host != head)
    tier.lab.ssh(member, f"systemctl stop {tier.unit}; : > {tier.data}/global/pg_control")
    recap = rejoin(tier, member)
    assert recap.returncode != 0
    assert "replace_damaged" in recap.output
    rejoined(tier, member, "clone", postgresql_replace_damaged=True)
    check_all_have_the_same(tier, head)
    kept = tier.lab.ssh(member, f"ls -d {tier.data}.kept-*").split()
    assert len(kept) == 1
    tier.lab.ssh(member, f"rm -r {kept[0]}")


@pytest.mark.full
@pytest.mark.parametrize(
    "task", ["Make its data a standby's", "Say what became of its data", "Run the standby", "Make the slots", "replays"]
)
def test_killed_at_any_step_and_run_again_it_goes_on(tier: Tier, task: str) -> None:
    old, new = lose_the_primary(tier)
    command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(tier.lab.inventory), "playbooks/rejoin.yml"]
    run = subprocess.Popen(
        [*command, *arguments(tier, old)],
        cwd=ROOT, env={**tier.lab.environment, "PYTHONUNBUFFERED": "1"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert run.stdout
    for line in run.stdout:
        if line.startswith("TASK [") and task in line:
            break
    else:
        raise AssertionError(f"{task} never came")
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    # The module on the host may live on for a moment, and holds the lock of the directory until it ends.
    tier.lab.ssh(old, "for _ in $(seq 300); do pgrep -f '[A]nsiballZ_' >/dev/null || exit 0; sleep 0.2; done; exit 1")
    recap = rejoin(tier, old)
    assert recap.returncode == 0, recap.output
    check_all_have_the_same(tier, new)


@pytest.mark.full
def test_what_is_refused(tier: Tier) -> None:
    head = primary(tier)
    others = [host for host in HOSTS if host != head]
    for member, message in (("db9", "got 'db9', wants one of db1, db2, db3"), (head, f"{head} is the primary itself")):
        recap = rejoin(tier, member)
        assert recap.returncode != 0
        assert message in " ".join(recap.output.split()), recap.output
        assert recap.changed == {}
    # A second primary on the same timeline as the primary: which is right is not for a playbook to say.
    # Both at once: the second one, still running, would follow the first one onto its timeline.
    units(tier, "stop", [head, *others])
    for host in others:
        units(tier, "start", [host])
        assert tier.sql(host, "SELECT pg_promote()") == "t"
        write(tier, host, host)
        units(tier, "stop", [host])
    wrong, right = others
    units(tier, "start", [right, wrong])
    recap = rejoin(tier, wrong)
    assert recap.returncode != 0
    assert "holds the truth is for you to say" in " ".join(recap.output.split()), recap.output
    assert tier.sql(wrong, "SELECT pg_is_in_recovery()") == "f"
    recap = rejoin(tier, wrong, postgresql_stop_second_primary=True)
    assert recap.returncode != 0
    assert "both been primaries on timeline" in " ".join(recap.output.split()), recap.output
    # Stopped all the same, and locked: the refusal leaves no second primary.
    assert "disabled" in tier.lab.ssh(wrong, f"cat /etc/postgresql/{tier.version}/main/start.conf")
    rejoined(tier, wrong, "clone", postgresql_replace_damaged=True)
    rejoined(tier, head, "follow")
    check_all_have_the_same(tier, right)
    tier.lab.ssh(wrong, f"rm -r {tier.data}.kept-*")
