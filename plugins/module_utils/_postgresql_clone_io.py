# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""Thin I/O of a clone: the slot on the primary, pg_basebackup, and the rename into place."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_clone_plan as clone_plan
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io

OWNER = "postgres"


@dataclass(frozen=True)
class Source:
    """The members that may be the primary, and how to log in."""

    addresses: tuple[str, ...]
    port: int
    user: str
    passfile: str

    def conninfo(self, **more: Any) -> str:
        from psycopg.conninfo import make_conninfo

        return make_conninfo(
            host=",".join(self.addresses),
            port=self.port,
            user=self.user,
            passfile=self.passfile,
            target_session_attrs="read-write",
            connect_timeout=5,
            application_name="flotilla_clone",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=30000,
            **more,
        )


class ReplicationConnection:
    """A connection that takes replication commands."""

    def __init__(self, source: Source) -> None:
        from psycopg import pq

        self._pq = pq
        # The effective user is root here, and libpq refuses a password file that is not its own.
        with io.as_user(OWNER):
            self.connection = pq.PGconn.connect(source.conninfo(replication="true").encode())
        if self.connection.status != pq.ConnStatus.OK:
            raise io.PostgresqlError(
                f"no primary to clone from among {', '.join(source.addresses)}: "
                + self.connection.error_message.decode(errors="replace").strip()
            )

    def command(self, text: str) -> list[str | None]:
        """Run one command and return the first row."""
        result = self.connection.exec_(text.encode())
        if result.status not in (self._pq.ExecStatus.TUPLES_OK, self._pq.ExecStatus.COMMAND_OK):
            raise io.PostgresqlError(f"{text}: {result.error_message.decode(errors='replace').strip()}")
        if result.ntuples == 0:
            return []
        values = (result.get_value(0, column) for column in range(result.nfields))
        return [None if value is None else value.decode() for value in values]

    def renew_slot(self, slot: str, patience: float) -> None:
        """Make the slot anew, holding WAL from now on. The sender of an interrupted clone may need a moment."""
        deadline = time.monotonic() + patience
        while True:
            try:
                if any(self.command(f'READ_REPLICATION_SLOT "{slot}"')):
                    self.command(f'DROP_REPLICATION_SLOT "{slot}"')
                self.command(f'CREATE_REPLICATION_SLOT "{slot}" PHYSICAL RESERVE_WAL')
                return
            except io.PostgresqlError as error:
                if "is active" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise io.PostgresqlError(
                        f"the slot {slot} is in use on the primary: another server streams under this member's "
                        f"name ({error})"
                    ) from error
            time.sleep(1)

    def close(self) -> None:
        self.connection.finish()


def _as_owner() -> dict[str, Any]:
    entry = pwd.getpwnam(OWNER)
    return {
        "user": entry.pw_uid,
        "group": entry.pw_gid,
        "extra_groups": os.getgrouplist(OWNER, entry.pw_gid),
        "env": {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "HOME": entry.pw_dir},
        "cwd": "/",
    }


def _prepare_parent(parent: Path) -> None:
    entry = pwd.getpwnam(OWNER)
    if not parent.exists():
        parent.mkdir(mode=0o755)
        os.chown(parent, entry.pw_uid, entry.pw_gid)


def _finish(copy: Path, data: Path) -> None:
    """Make the complete copy a standby, and only then the data directory."""
    entry = pwd.getpwnam(OWNER)
    auto = copy / "postgresql.auto.conf"
    auto.write_text(clone_plan.auto_conf(auto.read_text(encoding="utf-8")), encoding="utf-8")
    signal = copy / "standby.signal"
    signal.touch(mode=0o600)
    os.chown(signal, entry.pw_uid, entry.pw_gid)
    for path in (auto, signal, copy):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if data.exists():
        data.rmdir()  # fails when it is not empty any more
    copy.rename(data)
    descriptor = os.open(data.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clone(cluster: io.Cluster, source: Source, slot: str, max_rate: int, timeout: int) -> dict[str, Any]:
    """Clone the primary into the empty data directory."""
    if not cluster.installed or io.driver_version() is None:
        raise io.PostgresqlError(f"PostgreSQL {cluster.version} and python3-psycopg must be installed first")
    data = cluster.data_directory
    copy = data.with_name(data.name + ".cloning")
    _prepare_parent(data.parent)
    lock = os.open(data.with_name(data.name + ".cloning.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise io.PostgresqlError(
                f"another run is cloning into {data} right now: wait until it has ended"
            ) from error
        if copy.exists():
            shutil.rmtree(copy)
        connection = ReplicationConnection(source)
        try:
            identifier, timeline = connection.command("IDENTIFY_SYSTEM")[:2]
            connection.renew_slot(slot, patience=15)
            address = connection.connection.host.decode()
        finally:
            connection.close()
        command = [cluster.program("pg_basebackup"), "--pgdata", str(copy), "--dbname", source.conninfo()]
        command += ["--slot", slot, "--wal-method", "stream", "--checkpoint", "fast", "--no-password"]
        if max_rate:
            command += ["--max-rate", str(max_rate)]
        # The lock is handed down: should this process be killed, the copy still has its owner until it ends too.
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, pass_fds=(lock,), **_as_owner()
        )
        if result.returncode != 0:
            raise io.PostgresqlError(f"pg_basebackup ended with {result.returncode}: {result.stderr.strip()}")
        _finish(copy, data)
        data.with_name(data.name + ".cloning.lock").unlink()
    except subprocess.TimeoutExpired as error:
        raise io.PostgresqlError(f"the clone took longer than {timeout} s and was given up") from error
    finally:
        os.close(lock)
    return {"source": address, "system_identifier": identifier, "timeline": int(timeline or 0)}
