# SPDX-License-Identifier: GPL-3.0-or-later
"""A converged tier: it replicates, and lets nobody in who has no business there."""

from __future__ import annotations

import pytest
from postgresql_tier import HOSTS, Tier

from tests.cluster import wait_until


def test_all_stream_with_no_lag_left_as_the_primary_sees_it(tier: Tier) -> None:
    tier.wait_streaming("db1", {"db2", "db3"})
    lag = "SELECT count(*) FROM pg_stat_replication WHERE pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) = 0"
    wait_until(lambda: tier.sql("db1", lag) == "2", 15, "both standbys have replayed everything")


def test_a_row_is_on_every_member(tier: Tier) -> None:
    written = "CREATE TABLE IF NOT EXISTS molecule (id serial PRIMARY KEY);\n"
    written += "INSERT INTO molecule DEFAULT VALUES; SELECT max(id) FROM molecule;"
    answer = tier.remote("db3", "db1", written)
    assert answer.splitlines()[-1].isdigit(), answer
    for host in HOSTS:
        wait_until(
            lambda host=host: (
                tier.lab.ssh(
                    host, "runuser -u postgres -- psql -qAtX -d django -c 'SELECT max(id) FROM molecule'"
                ).strip()
                == answer.splitlines()[-1]
            ),
            5,
            f"the row is on {host}",
        )


@pytest.mark.parametrize("host", HOSTS)
def test_settings(tier: Tier, host: str) -> None:
    wanted = {
        "cluster_name": host,
        "data_checksums": "on",
        "wal_log_hints": "on",
        "password_encryption": "scram-sha-256",
        "max_slot_wal_keep_size": "8GB",
        "shared_buffers": "128MB",
        "ssl": "on",
        "listen_addresses": tier.address[host],
    }
    assert {name: tier.sql(host, f"SHOW {name}") for name in wanted} == wanted


@pytest.mark.parametrize("host", HOSTS)
def test_every_member_has_a_slot_for_every_other(tier: Tier, host: str) -> None:
    slots = tier.sql(
        host, "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'physical' ORDER BY 1"
    ).splitlines()
    assert slots == [other for other in HOSTS if other != host]


@pytest.mark.parametrize("host", ["db2", "db3"])
def test_a_slot_that_waits_on_a_standby_keeps_no_wal(tier: Tier, host: str) -> None:
    assert tier.sql(host, "SELECT count(*) FROM pg_replication_slots WHERE restart_lsn IS NOT NULL") == "0"


def test_passwords_are_scram_and_services_have_no_other_right(tier: Tier) -> None:
    rows = tier.sql(
        "db1",
        "SELECT rolname, left(coalesce(rolpassword, 'none'), 13), rolsuper, rolcreatedb, rolcreaterole, "
        "rolreplication, rolbypassrls "
        "FROM pg_authid WHERE rolcanlogin ORDER BY 1",
    ).splitlines()
    assert rows == [
        "django|SCRAM-SHA-256|f|f|f|f|f",
        "monitoring|none|f|f|f|f|f",
        "postgres|none|t|t|t|t|t",
        "replication|SCRAM-SHA-256|f|f|f|t|f",
    ]


def test_only_scram_and_peer_in_pg_hba(tier: Tier) -> None:
    assert tier.sql("db1", "SELECT DISTINCT auth_method FROM pg_hba_file_rules ORDER BY 1").splitlines() == [
        "peer",
        "scram-sha-256",
    ]
    assert tier.sql("db1", "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == "0"


def test_the_application_gets_in_from_its_host_only(tier: Tier) -> None:
    assert tier.remote("db3", "db1", "SELECT current_user") == "django"
    assert "no pg_hba.conf entry" in tier.remote("db2", "db1", "SELECT current_user")


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"dbname": "postgres"}, "no pg_hba.conf entry"),
        ({"user": "postgres"}, "no pg_hba.conf entry"),
        ({"user": "monitoring"}, "no pg_hba.conf entry"),
        ({"replication": "true"}, "no pg_hba.conf entry"),
    ],
)
def test_who_is_refused_even_from_the_application_host(tier: Tier, connection: dict[str, str], message: str) -> None:
    assert message in tier.remote("db3", "db1", "SELECT 1", **connection)


def test_the_query_of_a_killed_client_ends(tier: Tier) -> None:
    """A worker that was killed leaves nothing that holds locks until its query comes to its end by itself."""
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(300)' AND state = 'active'"
    command = "read -r conninfo; nohup psql -X -d \"$conninfo\" -c 'SELECT pg_sleep(300)' > /dev/null 2>&1 & echo $!"
    connection = f"host={tier.address['db1']} dbname=django user=django password={tier.secret('database_password')}\n"
    client = tier.lab.ssh("db3", command, connection).strip()
    wait_until(lambda: tier.sql("db1", sleeping) == "1", 10, "the query runs")
    tier.lab.ssh("db3", f"kill -9 {client}")
    wait_until(lambda: tier.sql("db1", sleeping) == "0", 15, "the query of the killed client has ended")


def test_the_replication_user_cannot_read_a_table(tier: Tier) -> None:
    login = {"user": "replication", "password": tier.secret("replication_password")}
    assert "no pg_hba.conf entry" in tier.remote("db2", "db1", "SELECT 1", **login)
    assert tier.remote("db2", "db1", "IDENTIFY_SYSTEM", replication="true", **login).startswith("7")
    # What pg_rewind needs is there, and no more than that.
    for query in ("TABLE pg_authid", "SELECT pg_read_file('PG_VERSION')", "SELECT pg_read_binary_file('/etc/hosts')"):
        answer = tier.remote("db2", "db1", query, **{**login, "dbname": "postgres"})
        assert "permission denied" in answer or "absolute path not allowed" in answer, answer


def test_monitoring_needs_the_right_system_user(tier: Tier) -> None:
    tier.lab.ssh("db2", "id prometheus >/dev/null 2>&1 || useradd --system prometheus")
    command = "psql -qAtX -d postgres -U monitoring -c \"SELECT pg_has_role('pg_monitor', 'usage')\" 2>&1 || true"
    assert tier.lab.ssh("db2", f"cd /; runuser -u prometheus -- {command}").strip() == "t"
    assert "Peer authentication failed" in tier.lab.ssh("db2", command)


@pytest.mark.parametrize("host", HOSTS)
def test_secrets_are_for_postgres_only(tier: Tier, host: str) -> None:
    assert (
        tier.lab.ssh(host, f"stat -c '%U %a' /etc/postgresql/{tier.version}/main/replication.pgpass").strip()
        == "postgres 600"
    )
    secrets = [tier.secret("database_password"), tier.secret("replication_password")]
    found = tier.lab.ssh(
        host, f"cat /proc/[0-9]*/cmdline; cat /var/log/postgresql/*; cat {tier.data}/postgresql.auto.conf"
    )
    assert not [secret for secret in secrets if secret in found]


@pytest.mark.parametrize("host", HOSTS)
def test_nothing_upgrades_or_restarts_the_database_by_itself(tier: Tier, host: str) -> None:
    assert '::Package-Blacklist:: "^postgresql"' in tier.lab.ssh(host, "apt-config dump")
    script = (
        "our %nrconf; do '/etc/needrestart/conf.d/flotilla-postgresql.conf'; "
        "print grep { 'postgresql@17-main.service' =~ $_ } keys %{$nrconf{override_rc}};"
    )
    assert tier.lab.ssh(host, "perl -", script)


def test_comes_back_after_a_power_cut(tier: Tier) -> None:
    for host in ("db1", "db2"):
        tier.lab.tool("kill", host)
        tier.lab.tool("start", host)
        tier.wait_streaming("db1", {"db2", "db3"}, 60)


def test_a_second_run_and_a_dry_run_change_nothing(tier: Tier) -> None:
    for arguments in ((), ("--check", "--diff")):
        recap = tier.converge(*arguments)
        assert recap.returncode == 0, recap.output
        assert recap.changed == {}, recap.changed_tasks
