# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is the primary is asked: promoted by hand, wiped, half cloned, stopped. The tests build on each other."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from postgresql_tier import Tier

from tests.cluster import ROOT, wait_until


@pytest.mark.full
def test_an_interrupted_clone_is_begun_anew(tier: Tier) -> None:
    tier.lab.ssh("db3", f"systemctl stop {tier.unit}; rm -rf {tier.data}")
    run = subprocess.Popen(
        [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(tier.lab.inventory), "molecule/postgresql/converge.yml",
         "--limit", "db3",
         "-e", "postgresql_clone_max_rate=256"],
        cwd=ROOT, env=tier.lab.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: tier.lab.ssh("db3", f"ls {tier.data}.cloning/base"), 60, "the clone has begun")
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    # A clone that still runs is not disturbed: its directory is locked.
    recap = tier.converge("--limit", "db3")
    assert recap.returncode != 0
    assert "another run is cloning" in recap.output
    tier.lab.ssh("db3", "pkill -9 -x pg_basebackup || true; sleep 0.5")
    assert tier.lab.ssh("db3", f"test -e {tier.data} || echo none").strip() == "none"
    recap = tier.converge("--limit", "db3")
    assert recap.returncode == 0, recap.output
    tier.wait_streaming("db1", {"db2", "db3"})
    left = tier.lab.ssh("db3", f"ls -d {tier.data}*").split()
    assert left == [tier.data]


@pytest.mark.full
def test_a_data_directory_that_is_not_understood_is_kept(tier: Tier) -> None:
    tier.lab.ssh(
        "db3",
        f"systemctl stop {tier.unit}; mv {tier.data} {tier.data}.kept; install -d -o postgres {tier.data}; echo "
        f"mine > {tier.data}/notes",
    )
    recap = tier.converge("--limit", "db3")
    assert recap.returncode != 0
    assert "Nothing was touched" in recap.output
    assert tier.lab.ssh("db3", f"cat {tier.data}/notes").strip() == "mine"
    tier.lab.ssh("db3", f"rm -r {tier.data}; mv {tier.data}.kept {tier.data}")
    recap = tier.converge("--limit", "db3")
    assert recap.returncode == 0, recap.output
    tier.wait_streaming("db1", {"db2", "db3"})


@pytest.mark.full
def test_a_stopped_primary_without_another_is_started(tier: Tier) -> None:
    tier.lab.ssh("db1", f"systemctl stop {tier.unit}")
    recap = tier.converge()
    assert recap.returncode == 0, recap.output
    tier.wait_streaming("db1", {"db2", "db3"})


def test_after_a_promotion_by_hand_the_others_follow_and_the_role_changes_nothing(tier: Tier) -> None:
    tier.lab.ssh("db1", f"systemctl stop {tier.unit}")
    assert tier.sql("db2", "SELECT pg_promote()") == "t"
    # Nobody tells db3: libpq finds the one that accepts writes.
    tier.wait_streaming("db2", {"db3"}, 20)
    recap = tier.converge()
    assert recap.returncode == 0, recap.output
    assert recap.changed == {}, recap.changed_tasks
    assert "db1 was a primary and is stopped while db2 is the primary" in " ".join(recap.output.split())
    assert tier.lab.ssh("db1", "pg_lsclusters -h").split()[3] == "down"


def test_two_primaries_are_refused(tier: Tier) -> None:
    tier.lab.ssh("db1", f"systemctl start {tier.unit}")
    for limit in ("all", "db3", "db1"):
        recap = tier.converge("--limit", limit)
        assert recap.returncode != 0
        assert "Split brain: db1, db2" in " ".join(recap.output.split())
        assert recap.changed == {}, recap.changed_tasks
    tier.lab.ssh("db1", f"systemctl stop {tier.unit}")


def test_no_primary_is_refused(tier: Tier) -> None:
    tier.lab.ssh("db1", f"rm -rf {tier.data}")
    tier.lab.ssh("db2", f"systemctl stop {tier.unit}")
    try:
        recap = tier.converge("--limit", "db1,db3")
        assert recap.returncode != 0
        assert "promote a standby with playbooks/failover.yml" in " ".join(recap.output.split())
        assert recap.changed == {}, recap.changed_tasks
    finally:
        tier.lab.ssh("db2", f"systemctl start {tier.unit}")
    tier.wait_streaming("db2", {"db3"})


def test_the_wiped_first_member_is_cloned_from_whoever_is_the_primary(tier: Tier) -> None:
    recap = tier.converge("--limit", "db1")
    assert recap.returncode == 0, recap.output
    tier.wait_streaming("db2", {"db1", "db3"})
    assert tier.sql("db1", "SELECT pg_is_in_recovery()") == "t"
    recap = tier.converge()
    assert recap.changed == {}, recap.changed_tasks
