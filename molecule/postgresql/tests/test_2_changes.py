# SPDX-License-Identifier: GPL-3.0-or-later
"""What is changed in the inventory happens, and what would be an outage does not."""

from __future__ import annotations

import pytest
from postgresql_tier import HOSTS, Tier

from tests.cluster import wait_until


def test_a_commit_waits_for_a_standby_where_that_is_wanted(tier: Tier) -> None:
    recap = tier.converge(postgresql_synchronous_standbys=1)
    assert recap.returncode == 0, recap.output
    try:
        states = "SELECT application_name, sync_state FROM pg_stat_replication ORDER BY 1"
        wait_until(lambda: tier.sql("db1", states).splitlines() == ["db2|quorum", "db3|quorum"], 10, "both count")
        # On every member it names the others, so it can be met whoever is the primary.
        assert [tier.sql(host, "SHOW synchronous_standby_names") for host in HOSTS] == [
            'ANY 1 ("db2", "db3")',
            'ANY 1 ("db1", "db3")',
            'ANY 1 ("db1", "db2")',
        ]
        write = "DROP TABLE IF EXISTS sync; CREATE TABLE sync (id int); SELECT 1;"
        assert tier.remote("db3", "db1", write).endswith("1")
        tier.lab.ssh("db2", f"systemctl stop {tier.unit}")
        assert tier.remote("db3", "db1", write).endswith("1")
        tier.lab.ssh("db3", f"systemctl stop {tier.unit}")
        # Nobody is left to confirm it: the commit waits (timeout ends with 124).
        assert tier.remote("db3", "db1", write).endswith("status 124")
    finally:
        recap = tier.converge()
    assert recap.returncode == 0, recap.output
    tier.wait_streaming("db1", {"db2", "db3"})
    assert tier.sql("db1", "SHOW synchronous_standby_names") == ""


@pytest.mark.full
def test_a_setting_that_needs_a_restart_is_reported_and_not_restarted_for(tier: Tier) -> None:
    before = [tier.started(host) for host in HOSTS]
    recap = tier.converge(postgresql_parameters={"max_worker_processes": 9, "work_mem": "7MB"})
    assert recap.returncode == 0, recap.output
    try:
        assert [tier.started(host) for host in HOSTS] == before
        assert tier.sql("db1", "SHOW work_mem") == "7MB"
        assert tier.sql("db1", "SHOW max_worker_processes") == "8"
        assert recap.output.count("take effect after a restart") == 3
        assert "max_worker_processes" in recap.output
    finally:
        assert tier.converge().returncode == 0
        # PostgreSQL goes on calling it pending when the line is gone: a restart, by the operator, ends that.
        for host in ("db2", "db3", "db1"):
            tier.lab.ssh(host, f"systemctl restart {tier.unit}")
    tier.wait_streaming("db1", {"db2", "db3"})


def test_a_bad_setting_never_reaches_the_running_server(tier: Tier) -> None:
    path = f"/etc/postgresql/{tier.version}/main/conf.d/90-parameters.conf"
    before = [tier.lab.ssh(host, f"cat {path}") for host in HOSTS]
    recap = tier.converge(postgresql_parameters={"work_mem": "very much"})
    assert recap.returncode != 0
    assert "work_mem" in recap.output
    assert [tier.lab.ssh(host, f"cat {path}") for host in HOSTS] == before
    # The files were put back, which gives them a new time, so the next run reloads once more than needed. The tests
    # after this one count changes.
    assert tier.converge().returncode == 0


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"postgresql_synchronous_standbys": 3}, "postgresql_synchronous_standbys is 3"),
        pytest.param({"postgresql_memory_mb": 10}, "postgresql_memory_mb is 10", marks=pytest.mark.full),
        pytest.param({"postgresql_initial_primary": "db9"}, "db9", marks=pytest.mark.full),
        pytest.param({"postgresql_client_addresses": ["app1.example.org"]}, "app1.example.org", marks=pytest.mark.full),
    ],
)
def test_bad_input_changes_nothing(tier: Tier, variables: dict[str, object], message: str) -> None:
    recap = tier.converge(**variables)
    assert recap.returncode != 0
    assert message in recap.output
    assert recap.changed == {}


@pytest.mark.full
def test_passwords_are_changed_by_changing_the_variables(tier: Tier) -> None:
    new = {"cluster_database_password": "an other: 'one'\\", "postgresql_replication_password": "and:a\\nother"}
    recap = tier.converge(**new)
    assert recap.returncode == 0, recap.output
    try:
        assert "password authentication failed" in tier.remote("db3", "db1", "SELECT 1")
        assert tier.remote("db3", "db1", "SELECT 1", password="'an other: \\'one\\'\\\\'") == "1"
        # The standbys log in with the new one.
        tier.lab.ssh("db2", f"systemctl restart {tier.unit}")
        tier.wait_streaming("db1", {"db2", "db3"})
        again = tier.converge(**new)
        assert again.changed == {}, again.changed_tasks
        assert not [secret for secret in new.values() if secret in recap.output + again.output]
    finally:
        assert tier.converge().returncode == 0
    tier.wait_streaming("db1", {"db2", "db3"})
    assert tier.remote("db3", "db1", "SELECT 1") == "1"


@pytest.mark.full
def test_rights_given_by_hand_are_taken_back(tier: Tier) -> None:
    tier.sql(
        "db1",
        "ALTER ROLE django CREATEDB; GRANT CONNECT ON DATABASE django TO PUBLIC; SELECT "
        "pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active;",
    )
    recap = tier.converge()
    assert recap.changed == {"db1": 1}, recap.changed_tasks
    assert tier.sql("db1", "SELECT rolcreatedb FROM pg_roles WHERE rolname = 'django'") == "f"
