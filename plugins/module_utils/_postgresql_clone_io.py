# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""Thin I/O of a clone: the connection to the primary, its slot, pg_basebackup, and the rename into place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_standby_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_wal_plan as wal

OWNER = "postgres"


@dataclass(frozen=True)
class Source:
    """The members that may be the primary, and how to log in."""

    addresses: tuple[str, ...]
    port: int
    user: str
    passfile: str
    ca_file: str = ""

    def conninfo(self, **more: Any) -> str:
        from psycopg.conninfo import make_conninfo

        if self.ca_file:
            # None of its own: libpq would look for one in the home of root, which it may not read as postgres.
            more |= {"sslmode": "verify-full", "sslrootcert": self.ca_file, "sslcert": "/nonexistent"}
        return make_conninfo(
            host=",".join(self.addresses),
            port=self.port,
            user=self.user,
            passfile=self.passfile,
            target_session_attrs="read-write",
            connect_timeout=5,
            application_name="flotilla_standby",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=30000,
            **more,
        )


class SourceConnection:
    """A connection to the primary, by libpq itself, because psycopg has no replication commands."""

    def __init__(self, source: Source, **more: Any) -> None:
        from psycopg import pq

        self._pq = pq
        # The effective user is root here, and libpq refuses a password file that is not its own.
        with io.as_user(OWNER):
            self.connection = pq.PGconn.connect(source.conninfo(**more).encode())
        if self.connection.status != pq.ConnStatus.OK:
            raise io.PostgresqlError(
                f"no primary among {', '.join(source.addresses)} lets this host in as {source.user}: "
                + self.connection.error_message.decode(errors="replace").strip()
            )

    @property
    def address(self) -> str:
        """Which of the addresses it is."""
        return str(self.connection.host.decode())

    def command(self, text: str) -> list[str | None]:
        """Run one command and return the first row."""
        result = self.connection.exec_(text.encode())
        if result.status not in (self._pq.ExecStatus.TUPLES_OK, self._pq.ExecStatus.COMMAND_OK):
            raise io.PostgresqlError(f"{text}: {result.error_message.decode(errors='replace').strip()}")
        if result.ntuples == 0:
            return []
        values = (result.get_value(0, column) for column in range(result.nfields))
        return [None if value is None else value.decode() for value in values]

    def close(self) -> None:
        self.connection.finish()


class ReplicationConnection(SourceConnection):
    """A connection that takes replication commands."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, replication="true")

    def describe(self) -> plan.Source:
        """Return which cluster it is, its timeline and that timeline's history."""
        identifier, timeline = self.command("IDENTIFY_SYSTEM")[:2]
        history: plan.History = ()
        if int(timeline or 0) > 1:
            history = plan.parse_history(self.command(f"TIMELINE_HISTORY {timeline}")[1] or "")
        return plan.Source(identifier or "", int(timeline or 0), history)

    def read_wal(self, timeline: int, begin: int, end: int) -> bytes:
        """Return WAL that the primary keeps. Raises PostgresqlError when it has none there."""
        start = f"START_REPLICATION PHYSICAL {wal.lsn_text(begin)} TIMELINE {timeline}"
        result = self.connection.exec_(start.encode())
        if result.status != self._pq.ExecStatus.COPY_BOTH:
            raise io.PostgresqlError(f"{start}: {result.error_message.decode(errors='replace').strip()}")
        found = b""
        # Data is w, begin, end, time, WAL. A keepalive (k) comes when the primary has nothing more to send.
        while begin + len(found) < end or not found:
            length, message = self.connection.get_copy_data(1)
            if length == 0:
                if not select.select([self.connection.socket], [], [], 5)[0]:
                    break
                self.connection.consume_input()
                continue
            if length < 0:
                error = self.connection.get_result()
                text = (error.error_message if error else b"").decode(errors="replace").strip()
                if text:
                    raise io.PostgresqlError(f"{start}: {text}")
                break
            if bytes(message[:1]) == b"k":
                break
            found += bytes(message[25:])
        return found[: end - begin]

    def slot_holds_wal(self, slot: str) -> bool:
        """Tell whether the slot is there and keeps WAL for its standby."""
        found = self.command(f'READ_REPLICATION_SLOT "{slot}"')
        return len(found) > 1 and found[0] == "physical" and found[1] is not None

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


def as_owner() -> dict[str, Any]:
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


def rename(old: Path, new: Path) -> None:
    """Rename within a directory, for good."""
    try:
        old.rename(new)
    except OSError as error:
        raise io.PostgresqlError(
            f"{old} cannot be renamed to {new.name} ({error.strerror}). If it is a mount point, mount it one "
            "directory higher"
        ) from error
    io.sync(new.parent)


def make_standby(data: Path) -> bool:
    """Write what makes a stopped server a standby that follows its own configuration files; tell what changed."""
    entry = pwd.getpwnam(OWNER)
    signal = data / "standby.signal"
    changed = not signal.exists()
    if changed:
        signal.touch(mode=0o600)
        os.chown(signal, entry.pw_uid, entry.pw_gid)
        io.sync(signal)
    auto = data / "postgresql.auto.conf"
    old = auto.read_text(encoding="utf-8") if auto.exists() else ""
    new = plan.auto_conf(old)
    if new != old:
        changed = True
        part = data / "postgresql.auto.conf.tmp"  # PostgreSQL's own name for it
        part.write_text(new, encoding="utf-8")
        part.chmod(0o600)
        os.chown(part, entry.pw_uid, entry.pw_gid)
        io.sync(part)
        part.rename(auto)
    io.sync(data)
    return changed


def follows_its_files(data: Path) -> bool:
    """Tell whether postgresql.auto.conf leaves it to the configuration files whom to follow."""
    auto = data / "postgresql.auto.conf"
    content = auto.read_text(encoding="utf-8") if auto.exists() else ""
    return plan.auto_conf(content) == content


@contextlib.contextmanager
def exclusive(data: Path, check_mode: bool) -> Iterator[int]:
    """Keep others from working on the same data directory; yields what a child process must inherit to keep it."""
    if check_mode:
        yield -1
        return
    _prepare_parent(data.parent)
    path = data.with_name(data.name + ".cloning.lock")
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise io.PostgresqlError(
                f"another run is cloning into {data} right now, or rewinding it: wait until it has ended"
            ) from error
        if os.fstat(lock).st_nlink:
            break
        # Its last holder has removed it in between.
        os.close(lock)
    try:
        yield lock
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def clone(
    cluster: io.Cluster, source: Source, slot: str, max_rate: int, timeout: int, lock: int, keep: Path | None = None
) -> None:
    """Clone the primary. What is in the data directory's place is renamed to `keep` when the clone is complete."""
    data = cluster.data_directory
    copy = data.with_name(data.name + ".cloning")
    if copy.exists():
        shutil.rmtree(copy)
    connection = ReplicationConnection(source)
    try:
        connection.renew_slot(slot, patience=15)
    finally:
        connection.close()
    command = [cluster.program("pg_basebackup"), "--pgdata", str(copy), "--dbname", source.conninfo()]
    command += ["--slot", slot, "--wal-method", "stream", "--checkpoint", "fast", "--no-password"]
    if max_rate:
        command += ["--max-rate", str(max_rate)]
    # The lock is handed down: should this process be killed, the copy still has its owner until it ends too.
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, pass_fds=(lock,), **as_owner()
        )
    except subprocess.TimeoutExpired as error:
        raise io.PostgresqlError(f"the clone took longer than {timeout} s and was given up") from error
    if result.returncode != 0:
        raise io.PostgresqlError(f"pg_basebackup ended with {result.returncode}: {result.stderr.strip()}")
    make_standby(copy)
    if keep is not None and data.exists():
        rename(data, keep)
    if data.exists():
        data.rmdir()  # fails when it is not empty any more
    rename(copy, data)
