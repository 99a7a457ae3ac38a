# SPDX-License-Identifier: GPL-3.0-or-later
"""The derived configuration, the steps for roles, databases and slots."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_objects_plan as objects
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_settings_plan as settings

MEMBERS = [
    {"name": name, "address": f"192.0.2.{number}", "weight": 1}
    for number, name in ((31, "db1"), (32, "db2"), (33, "db-3"))
]


def configure(**more: Any) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "self_name": "db1",
        "port": 5432,
        "replication_user": "replication",
        "passfile": "/etc/x y/pass",
        "client_addresses": ["192.0.2.21"],
        "synchronous_standbys": 0,
        "memory_mb": 512,
        "max_connections": 200,
        **more,
    }
    return settings.configuration(parameters.pop("members", MEMBERS), **parameters)


@pytest.mark.parametrize(
    ("memory", "connections", "wanted"),
    [
        (512, 200, ("128MB", "384MB", "32MB", "4MB")),
        (4096, 100, ("1024MB", "3072MB", "256MB", "10MB")),
        (65536, 100, ("16384MB", "49152MB", "1024MB", "64MB")),
        (128, 10, ("32MB", "96MB", "16MB", "4MB")),
    ],
)
def test_memory_is_derived(memory: int, connections: int, wanted: tuple[str, ...]) -> None:
    assert tuple(settings.memory_settings(memory, connections).values()) == wanted


def test_a_kernel_update_asks_for_no_restart() -> None:
    assert (
        settings.memory_settings(15995, 100)["shared_buffers"] == settings.memory_settings(15960, 100)["shared_buffers"]
    )


@pytest.mark.parametrize(("memory", "connections", "name"), [(64, 100, "memory_mb"), (512, 5, "max_connections")])
def test_too_small_is_refused(memory: int, connections: int, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        settings.memory_settings(memory, connections)


def test_conninfo_names_all_others_and_no_password() -> None:
    conninfo = configure(self_name="db2")["primary_conninfo"]
    assert "host='192.0.2.31,192.0.2.33'" in conninfo
    assert "target_session_attrs='read-write'" in conninfo
    assert "passfile='/etc/x y/pass'" in conninfo
    assert "password=" not in conninfo


def test_a_member_follows_only_who_proves_his_address_where_there_is_an_authority() -> None:
    assert "ssl" not in configure()["primary_conninfo"]
    conninfo = configure(ca_file="/etc/x/ca.pem")["primary_conninfo"]
    assert conninfo.endswith("sslmode='verify-full' sslrootcert='/etc/x/ca.pem'")


def test_slots_are_those_of_the_others() -> None:
    found = configure()
    assert (found["slot"], found["peer_slots"]) == ("db1", ["db2", "db_3"])


def test_a_single_member_follows_nobody() -> None:
    found = configure(members=MEMBERS[:1])
    assert (found["primary_conninfo"], found["peer_slots"], found["synchronous_standby_names"]) == ("", [], "")


@pytest.mark.parametrize(("count", "wanted"), [(0, ""), (1, 'ANY 1 ("db2", "db-3")'), (2, 'ANY 2 ("db2", "db-3")')])
def test_synchronous_names_are_all_others(count: int, wanted: str) -> None:
    assert configure(synchronous_standbys=count)["synchronous_standby_names"] == wanted


@pytest.mark.parametrize("count", [3, -1])
def test_synchronous_count_that_cannot_be_met_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="postgresql_synchronous_standbys"):
        configure(synchronous_standbys=count)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*MEMBERS, {"name": "db4", "address": "192.0.2.31"}], "same address"),
        ([*MEMBERS, {"name": "db1", "address": "192.0.2.34"}], "same name"),
        ([*MEMBERS, {"name": "db_3", "address": "192.0.2.34"}], "same slot name"),
        ([*MEMBERS, {"name": "db4", "address": "db4.example.org"}], "neither an IP address"),
        (MEMBERS[1:], "db1 is not one of"),
        ([], "db1 is not one of"),
    ],
)
def test_bad_members_are_refused(members: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(members=members)


@pytest.mark.parametrize(
    ("address", "wanted"),
    [("192.0.2.1", "192.0.2.1/32"), ("2001:db8::1", "2001:db8::1/128"), ("192.0.2.0/24", "192.0.2.0/24")],
)
def test_networks_have_a_prefix(address: str, wanted: str) -> None:
    assert settings.network(address) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"), [(True, "'on'"), (False, "'off'"), (5, "'5'"), ("it's", "'it''s'"), ("64MB", "'64MB'")]
)
def test_settings_are_quoted(value: Any, wanted: str) -> None:
    assert settings.quote_setting(value) == wanted


def test_a_setting_cannot_smuggle_another_one_in() -> None:
    with pytest.raises(ValueError, match="line break"):
        settings.quote_setting("4MB'\nfsync = 'off")


def test_passfile_fields_are_escaped() -> None:
    assert settings.passfile_field("a:b\\c") == "a\\:b\\\\c"
    with pytest.raises(ValueError, match="line break"):
        settings.passfile_field("a\nb")


def test_password_is_compared_with_the_verifier() -> None:
    from psycopg import pq

    connection = pq.PGconn.connect_start(b"host=/nonexistent")
    made, different = (
        connection.encrypt_password(password.encode(), b"django", b"scram-sha-256").decode()
        for password in ("pässword", "pencil")
    )
    assert objects.password_matches("pässword", made)
    assert not objects.password_matches("password", made)
    for other in (None, "", "md5d8578edf8458ce06fbc5bb76a58c5ca4", different):
        assert not objects.password_matches("pässword", other)


def role(**more: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("replication", "superuser", "createdb", "createrole", "bypassrls"), False)
    return {"login": True, **flags, "password": None, "member_of": [], "execute": [], **more}


def plan_roles(wanted: dict[str, Any], current: dict[str, Any]) -> list[objects.Step]:
    return objects.plan_roles([wanted], current, lambda password, user: f"SCRAM({len(password)})")


def test_a_new_role_has_only_what_is_named() -> None:
    steps = plan_roles({"name": "django", "password": "secret"}, {})
    assert [step.statement for step in steps] == ["CREATE ROLE \"django\" LOGIN NOREPLICATION PASSWORD 'SCRAM(6)'"]
    assert all("secret" not in step.description + step.statement for step in steps)


def test_a_converged_role_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        objects, "password_matches", lambda password, verifier: (password, verifier) == ("secret", "stored")
    )
    current = {"django": role(password="stored")}
    assert plan_roles({"name": "django", "password": "secret"}, current) == []
    (step,) = plan_roles({"name": "django", "password": "other"}, current)
    assert step.description == "change role django: password"


def test_rights_that_nobody_named_are_taken_away() -> None:
    (step,) = plan_roles(
        {"name": "monitoring", "member_of": ["pg_monitor"]},
        {"monitoring": role(superuser=True, password="x", member_of=["pg_monitor"])},
    )
    assert step.statement == 'ALTER ROLE "monitoring" NOSUPERUSER PASSWORD NULL'


def test_a_right_to_execute_is_given_once() -> None:
    wanted = {"name": "replication", "execute": ["pg_read_binary_file(text)", "pg_ls_dir(text, boolean, boolean)"]}
    (step,) = plan_roles(wanted, {"replication": role(execute=["pg_read_binary_file(text)"])})
    assert step.statement == 'GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text,boolean,boolean) TO "replication"'
    assert (
        plan_roles(wanted, {"replication": role(execute=[name.replace(" ", "") for name in wanted["execute"]])}) == []
    )
    with pytest.raises(ValueError, match="is no function"):
        plan_roles({"name": "replication", "execute": ["pg_ls_dir() TO x; DROP"]}, {})


@pytest.mark.parametrize("name", ["postgres", "pg_monitor"])
def test_roles_of_postgresql_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        plan_roles({"name": name}, {})


def test_names_and_literals_are_quoted() -> None:
    assert objects.quote_identifier('a"b') == '"a""b"'
    assert objects.quote_literal("a'b") == "'a''b'"
    assert objects.quote_literal("a\\b") == " E'a\\\\b'"


def test_a_database_is_closed_to_everybody_else() -> None:
    wanted = [{"name": "shop", "owner": "shop", "connect": ["monitoring"]}]
    assert [step.statement for step in objects.plan_databases(wanted, {})] == [
        'CREATE DATABASE "shop" OWNER "shop"',
        'REVOKE ALL ON DATABASE "shop" FROM PUBLIC',
        'GRANT CONNECT ON DATABASE "shop" TO "monitoring"',
    ]
    assert (
        objects.plan_databases(wanted, {"shop": {"owner": "shop", "public": False, "connect": ["shop", "monitoring"]}})
        == []
    )
    (step,) = objects.plan_databases(wanted, {"shop": {"owner": "old", "public": False, "connect": ["monitoring"]}})
    assert step.statement == 'ALTER DATABASE "shop" OWNER TO "shop"'


def slot(**more: Any) -> dict[str, Any]:
    return {
        "type": "physical",
        "active": False,
        "temporary": False,
        "restart_lsn": None,
        "wal_status": None,
        "retained_bytes": None,
        **more,
    }


@pytest.mark.parametrize(
    ("found", "in_recovery", "steps"),
    [
        (None, False, 1),
        (None, True, 1),
        (slot(), False, 0),
        (slot(active=True, restart_lsn="0/1", wal_status="reserved"), False, 0),
        # A standby that is away for a moment: its WAL is what the slot is for.
        (slot(restart_lsn="0/1", wal_status="reserved"), False, 0),
        (slot(wal_status="lost"), False, 2),
        # The same slot on a standby is a leftover from when it was the primary.
        (slot(restart_lsn="0/1", wal_status="reserved"), True, 2),
        (slot(active=True, restart_lsn="0/1", wal_status="reserved"), True, 0),
    ],
)
def test_slots(found: dict[str, Any] | None, in_recovery: bool, steps: int) -> None:
    made, warnings = objects.plan_slots(["db2"], {"db2": found} if found else {}, in_recovery)
    assert (len(made), warnings) == (steps, [])


def test_a_slot_of_nobody_is_reported_and_kept() -> None:
    made, warnings = objects.plan_slots([], {"backup": slot(restart_lsn="0/1", retained_bytes=7)}, False)
    assert made == [] and "backup" in warnings[0] and "7 bytes" in warnings[0]


def test_the_slot_of_a_member_that_left_is_dropped_when_nobody_uses_it() -> None:
    current = {"db3": slot(restart_lsn="0/1"), "db2": slot(active=True)}
    assert [step.statement for step in objects.plan_absent_slots(["db3", "db9"], current)] == [
        "SELECT pg_drop_replication_slot('db3')"
    ]
    with pytest.raises(ValueError, match="the slot db2 is in use"):
        objects.plan_absent_slots(["db2"], current)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (
            'connection to server at "192.0.2.1", port 5432 failed: FATAL:  the database system is starting up',
            "starting",
        ),
        (
            'connection to server at "192.0.2.1", port 5432 failed: FATAL:  the database system is shutting down',
            "starting",
        ),
        ("connection failed: FATAL:  no pg_hba.conf entry for replication connection from host", "rejected"),
        ('connection failed: FATAL:  password authentication failed for user "replication"', "rejected"),
        (
            "connection failed: Connection refused\n\tIs the server running on that host and accepting TCP/IP "
            "connections?",
            "unreachable",
        ),
        ("connection failed: timeout expired", "unreachable"),
    ],
)
def test_what_an_error_says_about_a_peer(error: str, wanted: str) -> None:
    assert io.peer_error_state(error) == wanted


def test_the_state_of_a_data_directory(tmp_path: Any) -> None:
    assert io.data_state(tmp_path / "none") == "absent"
    assert io.data_state(tmp_path) == "absent"
    (tmp_path / "PG_VERSION").write_text("17\n")
    assert io.data_state(tmp_path) == "foreign"
    (tmp_path / "global").mkdir()
    (tmp_path / "global/pg_control").write_text("x")
    assert io.data_state(tmp_path) == "present"
