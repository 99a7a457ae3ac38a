# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""Thin I/O for roles, databases and slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io
from ansible_collections.flotilla.django.plugins.module_utils._postgresql_objects_plan import Step

_ROLES = """
SELECT rolname AS name, rolcanlogin AS login, rolreplication AS replication, rolsuper AS superuser,
       rolcreatedb AS createdb,
       rolcreaterole AS createrole, rolbypassrls AS bypassrls, rolpassword AS password,
       ARRAY(SELECT roleid::regrole::text FROM pg_auth_members WHERE member = pg_authid.oid) AS member_of,
       ARRAY(SELECT p.oid::regprocedure::text FROM pg_proc p, aclexplode(p.proacl) AS a
             WHERE p.proacl IS NOT NULL AND a.grantee = pg_authid.oid AND a.privilege_type = 'EXECUTE') AS execute
FROM pg_authid
"""

# An empty ACL is the default one, by which everybody may connect and make temporary tables.
_DATABASES = """
SELECT datname AS name, pg_get_userbyid(datdba) AS owner,
       EXISTS (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE grantee = 0) AS public,
       ARRAY(SELECT pg_get_userbyid(grantee)::text FROM aclexplode(datacl)
             WHERE grantee <> 0 AND privilege_type = 'CONNECT') AS connect
FROM pg_database
"""


def wait_for_sql(cluster: io.Cluster, timeout: float, sleep: Callable[[float], None] = time.sleep) -> Any:
    """Return a connection as soon as there is one: Debian's unit hides a failed start, the server itself does not."""
    import psycopg

    deadline = time.monotonic() + timeout
    while True:
        try:
            return io.connect(cluster)
        except psycopg.OperationalError as error:
            # Without a process nothing is on its way, unless it is just being started.
            if time.monotonic() > deadline or (
                io.server_process(cluster.data_directory) is None and time.monotonic() > deadline - timeout + 5
            ):
                raise io.PostgresqlError(
                    f"PostgreSQL {cluster.version}/{cluster.name} does not answer on its local socket: "
                    f"{str(error).strip()}\n"
                    f"The end of {cluster.log_file}:\n{cluster.log_tail()}"
                ) from error
        sleep(0.2)


def in_recovery(connection: Any) -> bool:
    """Tell whether this is a standby."""
    return bool(connection.execute("SELECT pg_is_in_recovery() AS value").fetchone()["value"])


def read_roles(connection: Any) -> dict[str, dict[str, Any]]:
    """Return all roles by name."""
    return {row["name"]: row for row in connection.execute(_ROLES).fetchall()}


def read_databases(connection: Any) -> dict[str, dict[str, Any]]:
    """Return all databases by name."""
    return {row["name"]: row for row in connection.execute(_DATABASES).fetchall()}


def verifier_maker(connection: Any) -> Callable[[str, str], str]:
    """Return what turns a password into a SCRAM verifier, by libpq itself: the password does not leave this process."""

    def make(password: str, user: str) -> str:
        verifier: bytes = connection.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256")
        return verifier.decode()

    return make


def execute(connection: Any, steps: Sequence[Step]) -> None:
    """Carry out the steps. An error names the step, never the statement, which may hold a verifier."""
    import psycopg

    for step in steps:
        try:
            connection.execute(step.statement)
        except psycopg.Error as error:
            raise io.PostgresqlError(f"{step.description}: {error.diag.message_primary or error}") from error


def wait_for_streaming(
    cluster: io.Cluster, connection: Any, timeout: float, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Return when this standby streams."""
    deadline = time.monotonic() + timeout
    while True:
        row = connection.execute("SELECT status FROM pg_stat_wal_receiver").fetchone()
        if row and row["status"] == "streaming":
            return
        if time.monotonic() > deadline:
            raise io.PostgresqlError(
                f"the standby does not stream from the primary after {timeout} s. "
                f"The end of "
                f"{cluster.log_file}:\n{cluster.log_tail()}"
            )
        sleep(0.2)
