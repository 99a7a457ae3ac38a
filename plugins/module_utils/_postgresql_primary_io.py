# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""Thin I/O for moving the primary: stop a server for good, read the end of its WAL, promote. No decisions."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_standby_plan as standby_plan
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_wal_plan as wal

POLL = 0.02
# Stands in the file of a process that waits, from the moment on in which it can't be called off any more.
PROMOTING = "promoting"


def clock() -> float:
    """Seconds that go on while the machine sleeps: a deadline passes for a suspended host, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name stands in parentheses and may hold anything; the parent is the second field after it.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid:
            found.append(int(path.parts[2]))
    return found


def send(pid: int, what: signal.Signals) -> None:
    """Send a signal; a process that is gone is what was wanted."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)


def kill_all(pid: int) -> None:
    """Kill a server and all its processes, so that none goes on writing to a client or a standby."""
    orphans = children(pid)
    send(pid, signal.SIGKILL)
    for child in orphans:
        send(child, signal.SIGKILL)


def wait_gone(cluster: io.Cluster, seconds: float) -> bool:
    """Wait until no server process runs on the data directory."""
    deadline = clock() + seconds
    while io.server_process(cluster.data_directory) is not None:
        if clock() > deadline:
            return False
        time.sleep(POLL)
    return True


def wait_shut_down(cluster: io.Cluster, seconds: float) -> bool:
    """Wait until the control file says that the server has shut down; the process may hang on for long after that."""
    deadline = clock() + seconds
    quick = clock() + 0.5
    while clock() < deadline:
        gone = io.server_process(cluster.data_directory) is None
        if gone or clock() > quick:
            if is_shut_down(io.control_data(cluster)):
                return True
            if gone:
                return False
            time.sleep(0.1)
        time.sleep(POLL)
    return is_shut_down(io.control_data(cluster))


def is_shut_down(control: dict[str, str]) -> bool:
    """Tell from the control file whether a server was stopped in order."""
    return control.get("Database cluster state") in ("shut down", "shut down in recovery")


def waldump(
    cluster: io.Cluster, control: dict[str, str], timeline: int, start: str, end: str | None, *options: str
) -> tuple[list[str], str]:
    """Return what pg_waldump lists and what it complains about: at the end of the WAL it always does."""
    directory = cluster.data_directory / "pg_wal"
    size = int(control["Bytes per WAL segment"])
    stop = None if end is None else wal.lsn(end)
    named = wal.segments((path.name for path in directory.iterdir()), timeline, wal.lsn(start), stop, size)
    if named is None:
        return [], "the WAL file is not there"
    command = [cluster.program("pg_waldump"), "--path", str(directory)]
    command += ["--timeline", str(timeline), "--start", start, *options]
    if end is not None:
        command += ["--end", end]
    result = subprocess.run(
        [*command, *named],
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return result.stdout.splitlines(), result.stderr.strip()


def end_of_wal(cluster: io.Cluster, control: dict[str, str]) -> str | None:
    """Return where the WAL of a stopped server ends; None where it cannot be read."""
    timeline = int(control.get("Latest checkpoint's TimeLineID") or 0)
    start = control.get("Latest checkpoint's REDO location") or ""
    try:
        _lines, error = waldump(cluster, control, timeline, start, None, "--quiet")
    except (subprocess.TimeoutExpired, OSError):
        return None
    return wal.end_of_wal(error)


def switch_point(cluster: io.Cluster, timeline: int) -> int | None:
    """Return where a timeline begins; None where its history cannot be read."""
    path = cluster.data_directory / "pg_wal" / f"{timeline:08X}.history"
    try:
        history = standby_plan.parse_history(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return history[-1][1] if history else None


def _owned_write(path: Path, content: str) -> None:
    """Write a file of the server's owner so that it survives a power cut."""
    temporary = path.with_name(path.name + ".flotilla")
    temporary.write_text(content, encoding="utf-8")
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(temporary, owner.pw_uid, owner.pw_gid)
    temporary.chmod(0o644 if path.name == "start.conf" else 0o600)
    with temporary.open() as written:
        os.fsync(written.fileno())
    temporary.rename(path)
    io.sync(path.parent)


def locks(cluster: io.Cluster) -> dict[str, bool]:
    """Return which of the two locks are on: the server is not started, and if it is, it comes up read-only."""
    return {
        "start_disabled": io.start_mode(cluster) == "disabled",
        "standby_signal": (cluster.data_directory / "standby.signal").exists(),
    }


@contextlib.contextmanager
def one_at_a_time(cluster: io.Cluster, seconds: float) -> Iterator[None]:
    """Let no other run put this server out of action, or take that back, meanwhile; wait for one that does."""
    path = Path("/run/lock") / f"flotilla-fence-{cluster.version}-{cluster.name}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = clock() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if clock() > deadline:
                    raise io.PostgresqlError(
                        f"another run has been putting {cluster.version}/{cluster.name} out of action, or back, for "
                        f"more than {seconds:.0f} s"
                    ) from error
            time.sleep(POLL)
        yield
    finally:
        os.close(descriptor)


def locked_by(cluster: io.Cluster) -> str | None:
    """Return the token of the hand-over that has locked a server; empty: somebody else has, None: nobody."""
    try:
        return (cluster.data_directory / "standby.signal").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def lock(cluster: io.Cluster, token: str | None = None) -> None:
    """Put both locks on, and say for which hand-over. PostgreSQL looks at the name of its file only."""
    signal_file = cluster.data_directory / "standby.signal"
    if token or not signal_file.exists():
        _owned_write(signal_file, f"{token}\n" if token else "")
    if cluster.start_conf.parent.is_dir() and io.start_mode(cluster) != "disabled":
        lines = [line for line in _start_lines(cluster) if line.lstrip().startswith("#")]
        _owned_write(cluster.start_conf, "\n".join([*lines, "disabled"]) + "\n")


def unlock(cluster: io.Cluster) -> None:
    """Take both locks off: the server starts as a primary again."""
    signal_file = cluster.data_directory / "standby.signal"
    if signal_file.exists():
        signal_file.unlink()
        io.sync(cluster.data_directory)
    if io.start_mode(cluster) == "disabled":
        lines = [line for line in _start_lines(cluster) if line.lstrip().startswith("#")]
        _owned_write(cluster.start_conf, "\n".join([*lines, "auto"]) + "\n")


def _start_lines(cluster: io.Cluster) -> list[str]:
    try:
        return cluster.start_conf.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


@contextlib.contextmanager
def waiting_lock(cluster: io.Cluster, token: str) -> Iterator[Callable[[], None]]:
    """Say in a file that this process waits for a token to promote the server, so that another can call it off.

    Yields what is to be called right before the promotion is begun.
    """
    path = waiting_file(cluster)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise io.PostgresqlError(
                f"another run waits to promote {cluster.version}/{cluster.name} already"
            ) from error
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n{token}\n".encode())

        def promoting() -> None:
            os.write(descriptor, f"{PROMOTING}\n".encode())

        try:
            yield promoting
        finally:
            os.truncate(descriptor, 0)
    finally:
        os.close(descriptor)


def waiting_file(cluster: io.Cluster) -> Path:
    """Return the file that is locked while a process waits to promote this server."""
    return Path("/run/lock") / f"flotilla-promote-{cluster.version}-{cluster.name}"


def call_off(cluster: io.Cluster, token: str | None = None, patience: float = 0) -> tuple[bool, bool]:
    """End a process that waits to promote this server, and return when it is gone for sure.

    With a token only the one that waits for it: another's is not ours to end.
    It is left alone for `patience` seconds, in which it may end by itself.
    Returns whether there was one, and whether one has begun the promotion: then it may be completed at any time.
    """
    path = waiting_file(cluster)
    if not path.exists():
        return False, False
    descriptor = os.open(path, os.O_RDWR)
    try:
        if token and path.read_text().splitlines()[1:2] != [token]:
            return False, False
        found = False
        kill_at = clock() + patience
        deadline = kill_at + 20
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if clock() < kill_at:
                    time.sleep(POLL)
                    continue
                found = True
                if clock() > deadline:
                    raise io.PostgresqlError(f"the process that holds {path} cannot be ended") from error
                with contextlib.suppress(ValueError):
                    send(int(path.read_text().partition("\n")[0]), signal.SIGKILL)
                time.sleep(0.05)
            else:
                # Who was killed leaves the file as it was, so what it says is what it had come to.
                begun = PROMOTING in path.read_text().splitlines()
                os.truncate(descriptor, 0)
                return found, begun
    finally:
        os.close(descriptor)


class Handover:
    """Watches the WAL of a standby until it has replayed the end that a fenced primary has given it."""

    def __init__(self, cluster: io.Cluster, connection: Any, token: str, since: str | None) -> None:
        self.cluster = cluster
        self.connection = connection
        self.token = wal.check_token(token)
        self.control = io.control_data(cluster)
        state = self.state()
        self.scanned = since or state["replay_lsn"]
        self.timeline = self._timeline()
        self.message: str | None = None
        self.replay: str = state["replay_lsn"]

    def state(self) -> dict[str, Any]:
        row: dict[str, Any] = self.connection.execute(
            "SELECT pg_is_in_recovery() AS in_recovery, pg_last_wal_replay_lsn()::text AS replay_lsn,"
            " pg_last_wal_receive_lsn()::text AS receive_lsn,"
            " (SELECT status FROM pg_stat_wal_receiver) AS receiver"
        ).fetchone()
        return row

    def _timeline(self) -> int:
        row = self.connection.execute(
            "SELECT greatest((SELECT received_tli FROM pg_stat_wal_receiver),"
            " (SELECT timeline_id FROM pg_control_checkpoint()),"
            " (SELECT min_recovery_end_timeline FROM pg_control_recovery())) AS timeline"
        ).fetchone()
        return int(row["timeline"])

    def look(self) -> str | None:
        """Return the position of the shutdown checkpoint when all of the primary's WAL has been replayed."""
        self.replay = self.state()["replay_lsn"]
        if self.message is None and wal.lsn(self.replay) > wal.lsn(self.scanned):
            lines, _error = waldump(
                self.cluster, self.control, self.timeline, self.scanned, self.replay, "--rmgr", "LogicalMessage"
            )
            self.message = wal.message_at(wal.records(lines), self.token)
            self.scanned = self.replay
        if self.message is None:
            return None
        lines, _error = waldump(self.cluster, self.control, self.timeline, self.message, self.replay)
        return wal.ends_with_shutdown(wal.records(lines), self.token)


_STANDBY = """
SELECT state, extract(epoch FROM clock_timestamp() - reply_time)::int AS silent_seconds,
       pg_wal_lsn_diff(pg_current_wal_flush_lsn(), replay_lsn)::bigint AS lag_bytes
FROM pg_stat_replication WHERE application_name = %s
"""


def wait_for_standby(connection: Any, name: str, max_lag_bytes: int, seconds: float) -> None:
    """Return when a standby streams, answers and has nearly everything."""
    deadline = clock() + seconds
    while True:
        row = connection.execute(_STANDBY, (name,)).fetchone() or {"state": "not connected", "lag_bytes": None}
        good = row["state"] == "streaming" and (row["silent_seconds"] or 0) <= 5
        if good and row["lag_bytes"] is not None and row["lag_bytes"] <= max_lag_bytes:
            return
        if clock() > deadline:
            told = ", ".join(f"{key}: {value}" for key, value in row.items())
            raise io.PostgresqlError(f"{name} is not ready to take over ({told}). Nothing was changed")
        time.sleep(0.1)


def promote(connection: Any, seconds: float) -> bool:
    """Promote and wait. False: it is still under way, and may be completed later."""
    connection.execute("SELECT pg_promote(false)")
    return wait_for_promotion(connection, seconds)


def wait_for_promotion(connection: Any, seconds: float) -> bool:
    """Wait until a promotion that was begun is completed."""
    deadline = clock() + seconds
    while clock() < deadline:
        if not connection.execute("SELECT pg_is_in_recovery() AS value").fetchone()["value"]:
            return True
        time.sleep(0.01)
    return False


def wal_timeline(connection: Any) -> int:
    """Return the timeline that a primary writes."""
    row = connection.execute("SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) AS value").fetchone()
    return int(row["value"], 16)


_SYNCHRONOUS = """
SELECT current_setting('synchronous_standby_names') AS current,
       (SELECT setting FROM pg_file_settings WHERE name = 'synchronous_standby_names' AND error IS NULL
        AND sourcefile NOT LIKE '%/postgresql.auto.conf' ORDER BY seqno DESC LIMIT 1) AS configured
"""


def read_synchronous(connection: Any) -> dict[str, str]:
    """Return synchronous_standby_names as in force and as the configuration files have it."""
    row = connection.execute(_SYNCHRONOUS).fetchone()
    return {"current": row["current"] or "", "configured": row["configured"] or ""}


def write_synchronous(connection: Any, value: str | None) -> None:
    """Override synchronous_standby_names, or go back to the configuration files with None."""
    from psycopg import sql

    if value is None:
        connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
    else:
        connection.execute(sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(value)))
    connection.execute("SELECT pg_reload_conf()")


def end_receiver(connection: Any) -> bool:
    """End this standby's WAL receiver, which looks for the primary anew. A receiver whose sender hangs sees nothing."""
    row = connection.execute("SELECT pid FROM pg_stat_wal_receiver").fetchone()
    if row and row["pid"]:
        send(int(row["pid"]), signal.SIGTERM)
        return True
    return False
