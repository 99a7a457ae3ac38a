# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""Thin I/O of the PostgreSQL modules: sockets, SQL, pg_controldata, /proc. No decisions."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_wal_plan as wal

try:
    import psycopg
    from psycopg.rows import dict_row
except ImportError:  # a fresh host has no driver yet; what can be read without one still is
    psycopg = None  # type: ignore[assignment]

MANAGERS = {"patroni": "Patroni", "repmgrd": "repmgr", "pg_autoctl": "pg_auto_failover"}


class PostgresqlError(Exception):
    """Something about the server that the operator has to know, in one sentence."""


# What psycopg raises, for modules that run without it, too.
DriverError: type[Exception] = PostgresqlError if psycopg is None else psycopg.Error


class Cluster:
    """Where one cluster of Debian's layout lives."""

    def __init__(self, version: int, name: str, data_directory: str | None, port: int, socket_directory: str) -> None:
        self.version = version
        self.name = name
        self.data_directory = Path(data_directory or f"/var/lib/postgresql/{version}/{name}")
        self.bin_directory = Path(f"/usr/lib/postgresql/{version}/bin")
        self.log_file = Path(f"/var/log/postgresql/postgresql-{version}-{name}.log")
        self.start_conf = Path(f"/etc/postgresql/{version}/{name}/start.conf")
        self.port = port
        self.socket_directory = socket_directory

    @property
    def installed(self) -> bool:
        return (self.bin_directory / "postgres").exists()

    def program(self, name: str) -> str:
        return str(self.bin_directory / name)

    def log_tail(self, lines: int = 8) -> str:
        """Return the end of the server's log, for error messages."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(max(0, self.log_file.stat().st_size - 8192))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def cluster_options() -> dict[str, Any]:
    """The argument specification that says which cluster is meant; documented in doc_fragments/postgresql.py."""
    return {
        "version": {"type": "int", "required": True},
        "cluster": {"type": "str", "default": "main"},
        "data_directory": {"type": "path"},
    }


def server_options() -> dict[str, Any]:
    """The argument specification that says how its server is reached."""
    return {
        "port": {"type": "int", "default": 5432},
        "socket_directory": {"type": "path", "default": "/var/run/postgresql"},
    }


def peer_options() -> dict[str, Any]:
    """The argument specification that says who the peers are."""
    return {
        "peers": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {"name": {"type": "str", "required": True}, "address": {"type": "str", "required": True}},
        },
        "replication_user": {"type": "str"},
        "replication_password": {"type": "str", "no_log": True},
        "peer_timeout": {"type": "int", "default": 3},
        "peer_tls": {"type": "bool", "default": False},
    }


def check_peer_options(params: Mapping[str, Any]) -> None:
    """Refuse peers that nobody could ask."""
    if params["peers"] and not params["replication_user"]:
        raise PostgresqlError("peers can only be asked with replication_user and replication_password")


def cluster_from(params: Mapping[str, Any]) -> Cluster:
    """Return the cluster that cluster_options() and server_options() name."""
    return Cluster(
        params["version"], params["cluster"], params["data_directory"], params["port"], params["socket_directory"]
    )


def sync(path: Path) -> None:
    """Force a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def as_user(name: str) -> Iterator[None]:
    """Act as another user for a moment: the server's peer authentication looks at the effective user."""
    if os.geteuid() != 0:
        yield
        return
    uid = pwd.getpwnam(name).pw_uid
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def connect(cluster: Cluster, database: str = "postgres", user: str = "postgres") -> Any:
    """Connect through the local socket as the operating system's user postgres.

    Commits do not wait for synchronous standbys: they may not exist yet, and what is written here must be there first.
    """
    if psycopg is None:
        raise PostgresqlError("python3-psycopg is not installed")
    with as_user(user):
        return psycopg.connect(
            host=cluster.socket_directory,
            port=cluster.port,
            dbname=database,
            user=user,
            connect_timeout=5,
            application_name="flotilla",
            options="-c synchronous_commit=local -c statement_timeout=60s -c lock_timeout=15s",
            autocommit=True,
            row_factory=dict_row,
        )


def driver_version() -> str | None:
    """Return psycopg's version, or None where it is not installed."""
    return None if psycopg is None else str(psycopg.__version__)


def start_mode(cluster: Cluster) -> str | None:
    """Return what Debian's start.conf says: auto, manual or disabled (cannot be started). None without the file."""
    try:
        lines = cluster.start_conf.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    words = [word for word in (line.partition("#")[0].strip() for line in lines) if word]
    return words[0] if words else None


def server_process(data_directory: Path) -> int | None:
    """Return the process id of the server that runs on this data directory."""
    try:
        pid = int((data_directory / "postmaster.pid").read_text().split("\n", 1)[0])
        # 123 (postgres) S ...: one that has ended and was not yet waited for (Z) writes nothing any more.
        name, _end, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except (OSError, ValueError):
        return None
    return pid if name.startswith(("postgres", "postmaster")) and not rest.strip().startswith("Z") else None


def program_replaced(pid: int) -> bool:
    """Tell whether the program file of a process was replaced since it started: an upgrade waits for a restart."""
    try:
        return os.readlink(f"/proc/{pid}/exe").endswith(" (deleted)")  # noqa: PTH115 -- what it points to is no path then
    except OSError:
        return False


def data_state(data_directory: Path) -> str:
    """Return absent, present or foreign (not empty, but no complete cluster)."""
    try:
        entries = os.listdir(data_directory)  # noqa: PTH208 -- os.listdir and iterdir differ on a missing directory; this one raises at once
    except FileNotFoundError:
        return "absent"
    except NotADirectoryError:
        return "foreign"
    if not entries:
        return "absent"
    complete = (data_directory / "PG_VERSION").is_file() and (data_directory / "global/pg_control").is_file()
    return "present" if complete else "foreign"


def control_data(cluster: Cluster) -> dict[str, str]:
    """Return what pg_controldata says, which works on a stopped cluster."""
    result = subprocess.run(
        [cluster.program("pg_controldata"), "-D", str(cluster.data_directory)],
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if result.returncode != 0:
        raise PostgresqlError(f"pg_controldata failed on {cluster.data_directory}: {result.stderr.strip()}")
    found = {}
    for line in result.stdout.splitlines():
        key, _colon, value = line.partition(":")
        found[key.strip()] = value.strip()
    return found


def other_versions(version: int, name: str) -> list[str]:
    """Return the versions of other clusters of this name that hold data."""
    found = []
    for path in Path("/var/lib/postgresql").glob(f"*/{name}/PG_VERSION"):
        if path.parts[-3] != str(version):
            found.append(path.parts[-3])
    return sorted(found)


def other_managers() -> list[str]:
    """Return other programs on this host that start, stop and promote PostgreSQL."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")[:3]
        except OSError:
            continue
        for word in words:
            name = os.path.basename(word.decode(errors="replace"))  # noqa: PTH119 -- a word of a command line, not a path of ours
            if name in MANAGERS:
                found.add(MANAGERS[name])
    return sorted(found)


def disk_free_bytes(directory: Path) -> int:
    """Return how much the server can still write, as its own user."""
    status = os.statvfs(directory / "pg_wal")
    return status.f_bavail * status.f_frsize


def memory_bytes() -> int:
    """Return the memory this host may use: what the kernel has, or the control group's limit where that is lower."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    total = int(match.group(1)) * 1024 if match else 0
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text()))
    return total


def ask_peer(address: str, port: int, user: str, password: str, timeout: int, tls: bool = False) -> dict[str, Any]:
    """Ask a peer what it is, over a replication connection: works with the replication user's rights alone."""
    from psycopg import pq
    from psycopg.conninfo import make_conninfo

    # It proves that it knows the password, and that nobody sits between: also while certificates or authorities are
    # being replaced, when the question has to be answered all the same.
    proof = {"sslmode": "require", "channel_binding": "require"} if tls else {}

    conninfo = make_conninfo(
        host=address,
        port=port,
        user=user,
        password=password,
        replication="true",
        connect_timeout=timeout,
        tcp_user_timeout=timeout * 1000,
        application_name="flotilla_info",
        passfile="/dev/null",
        **proof,
    )
    # libpq itself, because psycopg 3.1.7 (Debian 12) does not keep connect_timeout in every case.
    connection = pq.PGconn.connect(conninfo.encode())
    try:
        if connection.status != pq.ConnStatus.OK:
            error = connection.error_message.decode(errors="replace").strip()
            return {"state": peer_error_state(error), "error": error}
        result = connection.exec_(b"IDENTIFY_SYSTEM")
        if result.status != pq.ExecStatus.TUPLES_OK:
            return {"state": "rejected", "error": result.error_message.decode(errors="replace").strip()}
        identifier, timeline, lsn = ((result.get_value(0, column) or b"").decode() for column in range(3))
        standby = connection.parameter_status(b"in_hot_standby") == b"on"
        return {
            "state": "standby" if standby else "primary",
            "system_identifier": identifier,
            "timeline": int(timeline),
            "lsn": lsn,
        }
    finally:
        connection.finish()


def peer_error_state(error: str) -> str:
    """Tell from libpq's message whether the server answered: starting, rejected or unreachable."""
    if "the database system is" in error:
        return "starting"
    return "rejected" if "FATAL:" in error else "unreachable"


def ask_peers(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Ask all peers (peer_options()) at the same time; a frozen one costs the timeout, not more."""
    peers, port, timeout = params["peers"], params["port"], max(2, params["peer_timeout"])
    user, password = params["replication_user"], params["replication_password"]
    answers: dict[str, dict[str, Any]] = {
        peer["name"]: {"state": "unreachable", "error": f"no answer within {timeout} s"} for peer in peers
    }
    if psycopg is None:
        return {
            peer["name"]: {"state": "unreachable", "error": "python3-psycopg is not installed on this host"}
            for peer in peers
        }

    def ask(name: str, address: str) -> None:
        try:
            answers[name] = ask_peer(address, port, user, password, timeout, params["peer_tls"])
        except Exception as error:  # a thread must not die in silence: whatever went wrong is the answer
            answers[name] = {"state": "unreachable", "error": str(error)}

    threads = [threading.Thread(target=ask, args=(peer["name"], peer["address"]), daemon=True) for peer in peers]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout + 2
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {name: dict(answer) for name, answer in answers.items()}


_NODE = """
SELECT pg_is_in_recovery() AS in_recovery,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       (SELECT timeline_id FROM pg_control_checkpoint()) AS checkpoint_timeline,
       (SELECT min_recovery_end_timeline FROM pg_control_recovery()) AS recovery_timeline,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text AS lsn,
       CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END
         AS wal_timeline,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() END::text AS receive_lsn,
       CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END AS replay_paused,
       (SELECT setting::int / 1000 FROM pg_settings WHERE name = 'recovery_min_apply_delay') AS apply_delay_seconds,
       current_setting('max_wal_senders')::int AS max_wal_senders,
       current_setting('max_replication_slots')::int AS max_replication_slots,
       (SELECT count(*)::int FROM pg_stat_progress_basebackup) AS running_backups,
       (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())
         AS sessions,
       (SELECT coalesce(extract(epoch FROM max(clock_timestamp() - xact_start)), 0)::int FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()) AS oldest_transaction_seconds,
       (SELECT CASE WHEN current_setting('archive_mode') = 'off' THEN 'off'
                    WHEN last_failed_time > coalesce(last_archived_time, '-infinity') THEN 'failing' ELSE 'ok' END
        FROM pg_stat_archiver) AS archiver,
       current_setting('synchronous_standby_names') AS synchronous_standby_names,
       current_setting('data_checksums') = 'on' AS checksums,
       ARRAY(SELECT name::text FROM pg_settings WHERE pending_restart ORDER BY name) AS settings_pending_restart,
       ARRAY(SELECT format('%s:%s: %s: %s', sourcefile, sourceline, coalesce(name, '?'), error) FROM pg_file_settings
             WHERE error IS NOT NULL AND error <> 'setting could not be applied' ORDER BY seqno) AS settings_errors
"""

_UPSTREAM = """
SELECT status, sender_host AS host, sender_port AS port, slot_name AS slot, received_tli AS timeline
FROM pg_stat_wal_receiver
"""

_DOWNSTREAMS = """
SELECT application_name AS name, host(client_addr) AS address, state, sync_state, replay_lsn::text AS replay_lsn,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
                       replay_lsn)::bigint AS lag_bytes,
       extract(epoch FROM clock_timestamp() - reply_time)::int AS silent_seconds
FROM pg_stat_replication ORDER BY application_name
"""

_SLOTS = """
SELECT slot_name AS name, slot_type AS type, active, temporary, restart_lsn::text AS restart_lsn, wal_status,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                       restart_lsn)::bigint AS retained_bytes
FROM pg_replication_slots ORDER BY slot_name
"""


def read_slots(connection: Any) -> dict[str, dict[str, Any]]:
    """Return the replication slots by name."""
    return {row.pop("name"): row for row in connection.execute(_SLOTS).fetchall()}


def read_running(connection: Any) -> dict[str, Any]:
    """Return what a server that answers SQL says about itself."""
    row = connection.execute(_NODE).fetchone()
    upstream = connection.execute(_UPSTREAM).fetchone()
    wal_timeline = row.pop("wal_timeline")
    timelines = [
        row.pop("checkpoint_timeline"),
        row.pop("recovery_timeline"),
        int(wal_timeline, 16) if wal_timeline else 0,
        (upstream or {}).get("timeline"),
    ]
    return {
        **row,
        "accepting": True,
        "role": "standby" if row["in_recovery"] else "primary",
        "timeline": max(timeline or 0 for timeline in timelines),
        "upstream": upstream,
        "downstreams": connection.execute(_DOWNSTREAMS).fetchall(),
        "slots": read_slots(connection),
    }


def read_stopped(cluster: Cluster) -> dict[str, Any]:
    """Return what the files of a cluster say."""
    control = control_data(cluster)
    timelines = [control.get("Latest checkpoint's TimeLineID"), control.get("Min recovery ending loc's timeline")]
    signals = [(cluster.data_directory / name).exists() for name in ("standby.signal", "recovery.signal")]
    return {
        "standby_signal": signals[0],
        "role": "standby" if any(signals) else "primary",
        "database_cluster_state": control.get("Database cluster state"),
        "system_identifier": control.get("Database system identifier"),
        "timeline": max(int(timeline or 0) for timeline in timelines),
        "lsn": control.get("Latest checkpoint location"),
        "checksums": control.get("Data page checksum version", "0") != "0",
    }


def replay_timeline(cluster: Cluster, position: str | None) -> int:
    """Return the timeline of the WAL file in which a standby replays."""
    size = int(control_data(cluster)["Bytes per WAL segment"])
    files = (path.name for path in (cluster.data_directory / "pg_wal").iterdir())
    return wal.replay_timeline(files, wal.lsn(position), size)


def read_node(cluster: Cluster) -> dict[str, Any]:
    """Return the truth about one node, running, stopped, empty or not even installed."""
    node: dict[str, Any] = {
        "installed": cluster.installed,
        "driver": driver_version(),
        "version": cluster.version,
        "data_directory": str(cluster.data_directory),
        "data": data_state(cluster.data_directory),
        "running": False,
        "accepting": False,
        "error": None,
        "role": None,
        "in_recovery": None,
        "database_cluster_state": None,
        "standby_signal": False,
        "system_identifier": None,
        "timeline": None,
        "lsn": None,
        "receive_lsn": None,
        "start": start_mode(cluster),
        "disk_free_bytes": None,
        "replay_paused": None,
        "apply_delay_seconds": None,
        "max_wal_senders": None,
        "max_replication_slots": None,
        "running_backups": None,
        "sessions": None,
        "oldest_transaction_seconds": None,
        "archiver": None,
        "program_replaced": False,
        "checksums": None,
        "upstream": None,
        "downstreams": [],
        "slots": {},
        "synchronous_standby_names": None,
        "settings_pending_restart": [],
        "settings_errors": [],
        "memory_bytes": memory_bytes(),
        "other_managers": other_managers(),
        "other_versions": other_versions(cluster.version, cluster.name),
    }
    if node["data"] != "present":
        return node
    try:
        node["disk_free_bytes"] = disk_free_bytes(cluster.data_directory)
        if cluster.installed:
            node.update(read_stopped(cluster))
    except (PostgresqlError, OSError) as error:
        # A directory without a control file that can be read is no complete cluster.
        return {**node, "data": "foreign", "error": str(error)}
    pid = server_process(cluster.data_directory)
    if pid is None:
        return node
    node.update(running=True, program_replaced=program_replaced(pid))
    if psycopg is None:
        return {**node, "error": "python3-psycopg is not installed"}
    try:
        with connect(cluster) as connection:
            node.update(read_running(connection))
        if node["role"] == "standby":
            node["timeline"] = max(node["timeline"], replay_timeline(cluster, node["lsn"]))
    except psycopg.Error as error:
        node["error"] = str(error).strip()
    return node
