# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings members back with real servers: what is left behind is gone afterwards, and nothing else.

Each server has its configuration beside its data, as in Debian's layout, and listens on a port of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import wait_until

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=Path("/nowhere"))
VERSION = int(BIN.parent.name) if BIN.exists() else 0
PASSWORD = "a secret: of 'replication'"
RIGHTS = """
CREATE ROLE replication LOGIN REPLICATION PASSWORD 'a secret: of ''replication''' IN ROLE pg_checkpoint;
GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
  pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO replication;
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not VERSION, reason="needs root and PostgreSQL's server")
Module = Callable[..., dict[str, Any]]


def as_postgres(*command: object, stdin: str = "", check: bool = True) -> str:
    done = subprocess.run(
        ["runuser", "-u", "postgres", "--", *map(str, command)],
        input=stdin, capture_output=True, text=True, check=False, cwd="/", timeout=60,
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


class Server:
    """One server. `others` are those it may follow."""

    def __init__(self, root: Path, name: str, port: int, ports: list[int]) -> None:
        self.root, self.name, self.port = root, name, port
        self.data = root / name
        self.config = root / f"{name}.conf"
        hba = root / f"{name}.hba"
        hosts = ",".join("127.0.0.1" for _port in ports)
        conninfo = f"host={hosts} port={','.join(map(str, ports))} user=replication target_session_attrs=read-write"
        self.config.write_text(
            f"data_directory = '{self.data}'\nhba_file = '{hba}'\nident_file = ''\nport = {port}\n"
            f"listen_addresses = '127.0.0.1'\nunix_socket_directories = '{root}'\ncluster_name = '{name}'\n"
            "wal_log_hints = on\nmax_wal_size = 64MB\nmin_wal_size = 32MB\nshared_buffers = 16MB\nfsync = off\n"
            "wal_retrieve_retry_interval = 100ms\nlog_min_messages = warning\nautovacuum = off\n"
            f"primary_conninfo = '{conninfo} passfile={root}/pgpass'\nprimary_slot_name = '{name}'\n"
        )
        hba.write_text("local all postgres trust\nhost replication,postgres replication 127.0.0.1/32 scram-sha-256\n")

    def start(self, wait: bool = True) -> None:
        arguments = ["-D", self.data, "-l", self.root / f"{self.name}.log", "-o", f"-c config_file={self.config}"]
        as_postgres(BIN / "pg_ctl", "start", "-w" if wait else "-W", *arguments)

    def stop(self, mode: str = "fast") -> None:
        as_postgres(BIN / "pg_ctl", "stop", "-w", "-D", self.data, "-m", mode)

    def sql(self, query: str) -> str:
        return as_postgres("psql", "-qAtX", "-h", self.root, "-p", self.port, stdin=query).strip()

    def promote(self) -> None:
        assert self.sql("SELECT pg_promote()") == "t"

    def write(self, rows: int = 100, note: str = "x") -> None:
        self.sql(f"INSERT INTO facts (note) SELECT '{note}' || i FROM generate_series(1, {rows}) AS i")

    def rows(self) -> str:
        return self.sql("SELECT count(*), md5(string_agg(id || note, ',' ORDER BY id)) FROM facts")

    def control(self, key: str) -> str:
        lines = as_postgres(BIN / "pg_controldata", "-D", self.data).splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(key + ":"))

    def caught_up_with(self, primary: Server) -> None:
        end = primary.sql("SELECT pg_current_wal_lsn()")
        wait_until(lambda: self.sql(f"SELECT pg_last_wal_replay_lsn() >= '{end}'") == "t", 15, f"{self.name} replays")

    def log(self) -> str:
        return (self.root / f"{self.name}.log").read_text()

    def content(self) -> str:
        """A checksum over all files of the data directory."""
        files = sorted(path for path in self.data.rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


class Servers:
    """A primary a, and its standbys b and c, all copied from a template; the module makes one follow another."""

    def __init__(self, root: Path, module: Module) -> None:
        self.root, self.module = root, module
        ports = free_ports(3)
        self.a, self.b, self.c = (Server(root, name, port, ports) for name, port in zip("abc", ports, strict=True))
        passfile = root / "pgpass"
        passfile.write_text("*:*:*:replication:" + PASSWORD.replace(":", "\\:") + "\n")
        passfile.chmod(0o600)

    @property
    def all(self) -> list[Server]:
        return [self.a, self.b, self.c]

    def rejoin(self, member: Server, primary: Server, check: bool = False, **more: Any) -> dict[str, Any]:
        arguments = {
            "version": VERSION, "data_directory": str(member.data), "config_file": str(member.config),
            "port": primary.port, "sources": ["127.0.0.1"], "user": "replication",
            "passfile": str(self.root / "pgpass"), "slot": member.name, **more,
        }  # fmt: skip
        result = self.module("postgresql_standby", arguments, check=check)
        assert PASSWORD not in result.pop("stdout_of_module")
        return result

    def rejoined(self, member: Server, primary: Server, **more: Any) -> dict[str, Any]:
        """The same in check mode first, which must say the same and touch nothing."""
        before = member.content()
        planned = self.rejoin(member, primary, check=True, **more)
        assert member.content() == before
        # An idle primary at the start of a segment: a rewound server waits for the next record. Without hints left to
        # set, pg_rewind's own queries write none.
        primary.sql("VACUUM FREEZE")
        primary.sql("CHECKPOINT")
        primary.sql("SELECT pg_switch_wal()")
        done = self.rejoin(member, primary, **more)
        assert not done["failed"], done
        # What needs no primary to decide asks none in check mode.
        compared = ["changed", "method", "reason", "rewind", "divergence_lsn"]
        compared += ["source", "system_identifier", "timelines"] if "source" in planned else []
        assert [planned[key] for key in compared] == [done[key] for key in compared]
        return done

    def check_follows(self, member: Server, primary: Server) -> None:
        """It streams from the primary, replays what is written, and has the same rows."""
        assert (member.data / "standby.signal").exists()
        member.start()
        primary.write(10, "later")
        member.caught_up_with(primary)
        assert member.sql("SELECT pg_is_in_recovery()") == "t"
        assert member.rows() == primary.rows()
        states = "SELECT application_name, state FROM pg_stat_replication"
        assert f"{member.name}|streaming" in primary.sql(states).splitlines(), member.log()
        timelines = [server.sql("SELECT received_tli FROM pg_stat_wal_receiver") for server in (member,)]
        assert timelines == [
            primary.sql("SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int")
        ]
        left = [path.name for path in self.root.glob(f"{member.name}.*ing*")]
        assert left == []


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _number in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A stopped primary's data directory."""
    # Not pytest's own directory, which each run of pytest closes to other users again.
    root = Path(tempfile.mkdtemp(prefix="flotilla-postgresql-"))
    root.chmod(0o755)
    user = pwd.getpwnam("postgres")
    os.chown(root, user.pw_uid, user.pw_gid)
    as_postgres(BIN / "initdb", "-D", root / "t", "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync", "-A", "trust")
    server = Server(root, "t", *(lambda ports: (ports[0], ports))(free_ports(1)))
    os.chown(server.config, user.pw_uid, user.pw_gid)
    server.start()
    server.sql(RIGHTS + "CREATE TABLE facts (id serial PRIMARY KEY, note text);")
    server.write(1000)
    server.stop()
    yield server.data
    shutil.rmtree(root)


_numbers = itertools.count()


@pytest.fixture
def servers(template: Path, run_module: Module) -> Iterator[Servers]:
    """a runs, and b streams from it."""
    root = template.parent / f"run{next(_numbers)}"
    root.mkdir()
    servers = Servers(root, run_module)
    copy(template, servers.a)
    subprocess.run(["chown", "-R", "postgres:postgres", root], check=True)
    servers.a.start()
    add_standby(template, servers, servers.b)
    yield servers
    for server in servers.all:
        if (server.data / "postmaster.pid").exists():
            server.stop("immediate")
    shutil.rmtree(root)


@pytest.fixture
def trio(template: Path, servers: Servers) -> Servers:
    """And c does, too."""
    add_standby(template, servers, servers.c)
    return servers


def copy(template: Path, server: Server) -> None:
    subprocess.run(["cp", "-a", template, server.data], check=True)


def add_standby(template: Path, servers: Servers, server: Server) -> None:
    copy(template, server)
    (server.data / "standby.signal").touch()
    servers.a.sql(f"SELECT pg_create_physical_replication_slot('{server.name}', true)")
    server.start()
    server.caught_up_with(servers.a)


def lose_a(servers: Servers, mode: str) -> None:
    """a writes what no other receives, ends, and b is promoted and goes its own way."""
    # Many changed pages, so that the checkpoint after the promotion takes its time.
    servers.a.write(20000, "shared")
    servers.b.caught_up_with(servers.a)
    servers.b.sql("ALTER SYSTEM SET primary_conninfo = ''")
    servers.b.sql("SELECT pg_reload_conf()")
    wait_until(lambda: servers.a.sql("SELECT count(*) FROM pg_stat_replication") == "0", 10, "b is cut off")
    servers.a.write(500, "lost")
    servers.a.stop(mode)
    servers.b.promote()
    servers.b.write(300, "won")


@pytest.mark.parametrize(
    ("mode", "recovered"), [("immediate", True), pytest.param("fast", False, marks=pytest.mark.full)]
)
def test_a_primary_that_had_more_is_rewound(servers: Servers, mode: str, recovered: bool) -> None:
    lose_a(servers, mode)
    # A fence, as it is set before a promotion. Single-user mode would refuse it.
    (servers.a.data / "standby.signal").touch()
    result = servers.rejoined(servers.a, servers.b)
    assert result["method"] == "rewind", result
    assert result["rewind"] == {"needed": True, "performed": True, "resumed": False, "recovered": recovered}
    assert result["timelines"] == {"before": 1, "after": 2}
    assert (result["source"], result["kept_directory"]) == ("127.0.0.1", None)
    servers.check_follows(servers.a, servers.b)
    assert servers.a.sql("SELECT count(*) FROM facts WHERE note LIKE 'lost%'") == "0"
    servers.a.stop()
    assert servers.rejoin(servers.a, servers.b)["method"] == "none"


@pytest.mark.full
def test_pg_rewind_alone_would_be_wrong_before_the_checkpoint(servers: Servers) -> None:
    lose_a(servers, "fast")
    arguments = ["--dry-run", "--no-ensure-shutdown", "--target-pgdata", servers.a.data]
    conninfo = f"host={servers.root} port={servers.b.port} dbname=postgres"
    told = as_postgres(BIN / "pg_rewind", *arguments, "--source-server", conninfo)
    assert servers.b.control("Latest checkpoint's TimeLineID") == "1"
    # Later versions look at more than the last checkpoint.
    assert ("no rewind required" in told) == (VERSION == 15)
    assert servers.rejoin(servers.a, servers.b)["method"] == "rewind"
    assert servers.b.control("Latest checkpoint's TimeLineID") == "2"
    servers.check_follows(servers.a, servers.b)


def test_a_primary_that_handed_over_just_follows(servers: Servers) -> None:
    servers.a.sql("ALTER SYSTEM SET primary_conninfo = 'host=192.0.2.1'")
    servers.a.stop()
    servers.b.promote()
    result = servers.rejoined(servers.a, servers.b)
    assert (result["method"], result["changed"], result["rewind"]["needed"]) == ("follow", True, False)
    assert "primary_conninfo" not in (servers.a.data / "postgresql.auto.conf").read_text()
    # Nothing is left to do, before it was started as well as while it runs.
    assert servers.rejoin(servers.a, servers.b)["method"] == "none"
    servers.check_follows(servers.a, servers.b)
    again = servers.rejoin(servers.a, servers.b)
    assert (again["method"], again["changed"]) == ("none", False)


@pytest.mark.full
def test_a_crashed_primary_whose_standby_had_everything_just_follows(servers: Servers) -> None:
    servers.a.write(50, "arrived")
    servers.b.caught_up_with(servers.a)
    servers.a.stop("immediate")
    servers.b.promote()
    result = servers.rejoined(servers.a, servers.b)
    assert (result["method"], result["rewind"]["needed"]) == ("follow", False)
    servers.check_follows(servers.a, servers.b)
    assert servers.a.sql("SELECT count(*) FROM facts WHERE note LIKE 'arrived%'") == "50"


@pytest.mark.full
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_standby_that_replayed_more_is_rewound(trio: Servers, mode: str) -> None:
    trio.b.stop()
    trio.a.write(500, "lost")
    trio.c.caught_up_with(trio.a)
    # What crashes has not told its control file yet how far it was, unless it wrote pages.
    trio.c.sql("CHECKPOINT")
    trio.c.stop(mode)
    trio.a.stop("immediate")
    trio.b.start()
    trio.b.promote()
    trio.b.write(300, "won")
    result = trio.rejoined(trio.c, trio.b)
    assert (result["method"], result["rewind"]["needed"]) in (("rewind", True), ("follow", False)), result
    if mode == "fast":
        assert result["method"] == "rewind"
    trio.check_follows(trio.c, trio.b)
    assert trio.c.sql("SELECT count(*) FROM facts WHERE note LIKE 'lost%'") == "0"


def test_a_standby_that_received_more_and_did_not_replay_it_follows(trio: Servers) -> None:
    trio.c.sql("SELECT pg_wal_replay_pause()")
    trio.b.stop()
    trio.a.write(5000, "lost")
    end = trio.a.sql("SELECT pg_current_wal_lsn()")
    wait_until(lambda: trio.c.sql(f"SELECT pg_last_wal_receive_lsn() >= '{end}'") == "t", 10, "c receives")
    trio.c.stop()
    trio.a.stop("immediate")
    trio.b.start()
    trio.b.promote()
    trio.b.write(300, "won")
    result = trio.rejoined(trio.c, trio.b)
    assert (result["method"], result["changed"]) == ("follow", True)
    # pg_rewind would find nothing to do, and the next start would replay what the primary never had.
    trio.check_follows(trio.c, trio.b)
    assert trio.c.sql("SELECT count(*) FROM facts WHERE note LIKE 'lost%'") == "0"


def promote_both(servers: Servers) -> None:
    """b and c are promoted at the same place, without seeing each other, and go their own ways. Then b runs."""
    servers.a.stop()
    servers.b.stop()
    servers.c.promote()
    servers.c.write(100, "c")
    servers.c.stop()
    servers.b.start()
    servers.b.promote()
    servers.b.write(100, "b")


def test_two_promoted_at_the_same_place_are_refused_and_replaced_when_allowed(trio: Servers) -> None:
    promote_both(trio)
    history = "pg_wal/00000002.history"
    assert (trio.b.data / history).read_text() == (trio.c.data / history).read_text()
    before = trio.c.content()
    result = trio.rejoin(trio.c, trio.b)
    assert result["failed"] and "both been primaries on timeline 2" in result["msg"], result
    assert trio.c.content() == before
    result = trio.rejoined(trio.c, trio.b, replace_damaged=True)
    assert (result["method"], result["timelines"]) == ("clone", {"before": 2, "after": 2})
    kept = Path(result["kept_directory"])
    assert kept.name.startswith("c.kept-2") and (kept / "PG_VERSION").exists()
    trio.check_follows(trio.c, trio.b)


@pytest.mark.full
def test_such_a_one_that_was_started_as_a_standby_is_seen_by_its_wal(trio: Servers) -> None:
    promote_both(trio)
    (trio.c.data / "standby.signal").touch()
    trio.b.stop()
    trio.c.start()
    trio.c.stop()
    trio.b.start()
    assert trio.c.control("Database cluster state") == "shut down in recovery"
    result = trio.rejoin(trio.c, trio.b)
    assert result["failed"] and "two servers wrote the same timeline" in result["msg"], result


@pytest.mark.full
def test_a_newer_timeline_is_never_given_up(trio: Servers) -> None:
    trio.b.stop()
    trio.a.stop()
    trio.c.promote()
    trio.c.stop()
    trio.a.start()
    result = trio.rejoin(trio.c, trio.a, replace_damaged=True)
    assert result["failed"] and "newer than the primary's 1" in result["msg"], result


@pytest.mark.full
def test_another_cluster_is_never_given_up(trio: Servers) -> None:
    trio.c.stop()
    shutil.rmtree(trio.c.data)
    as_postgres(BIN / "initdb", "-D", trio.c.data, "--no-sync", "-A", "trust")
    before = trio.c.content()
    result = trio.rejoin(trio.c, trio.a, replace_damaged=True)
    assert result["failed"] and "never been copies" in result["msg"], result
    assert trio.c.content() == before


@pytest.mark.full
def test_a_damaged_directory_is_replaced_only_when_allowed(trio: Servers) -> None:
    trio.c.stop()
    (trio.c.data / "global/pg_control").write_bytes(b"nothing")
    before = trio.c.content()
    result = trio.rejoin(trio.c, trio.a)
    assert result["failed"] and "damaged" in result["msg"] and "replace_damaged" in result["msg"], result
    assert trio.c.content() == before
    result = trio.rejoined(trio.c, trio.a, replace_damaged=True)
    assert (result["method"], result["timelines"]["before"]) == ("clone", None)
    assert (Path(result["kept_directory"]) / "global/pg_control").read_bytes() == b"nothing"
    trio.check_follows(trio.c, trio.a)


def break_the_rewind(servers: Servers) -> Path:
    """Let pg_rewind fail in the middle: one of the files it writes is not writable."""
    lose_a(servers, "fast")
    path = servers.a.data / servers.b.sql("SELECT pg_relation_filepath('facts')")
    servers.b.sql("CREATE TABLE more AS SELECT * FROM facts")
    path.chmod(0o400)
    result = servers.rejoin(servers.a, servers.b)
    assert result["failed"] and "pg_rewind ended with 1" in result["msg"], result
    # Nothing is there that could be started.
    assert not servers.a.data.exists()
    return servers.root / "a.rewinding" / path.relative_to(servers.a.data)


def test_an_interrupted_rewind_is_resumed(servers: Servers) -> None:
    broken = break_the_rewind(servers)
    # pg_rewind has already replaced the WAL from which it knows what to copy.
    broken.chmod(0o600)
    servers.b.write(100, "meanwhile")
    result = servers.rejoin(servers.a, servers.b)
    assert not result["failed"], result
    assert result["rewind"] == {"needed": True, "performed": True, "resumed": True, "recovered": False}
    servers.check_follows(servers.a, servers.b)
    assert servers.a.sql("SELECT count(*) FROM facts WHERE note LIKE 'lost%'") == "0"


@pytest.mark.full
def test_an_interrupted_rewind_is_replaced_when_allowed(servers: Servers) -> None:
    break_the_rewind(servers)
    result = servers.rejoin(servers.a, servers.b, replace_damaged=True)
    assert not result["failed"], result
    assert (result["method"], result["rewind"]["performed"]) == ("clone", False)
    kept = Path(result["kept_directory"])
    assert kept.exists() and Path(f"{kept}.wal").exists()
    servers.check_follows(servers.a, servers.b)


@pytest.mark.full
def test_the_interrupted_recovery_before_a_rewind_is_begun_anew(servers: Servers) -> None:
    lose_a(servers, "immediate")
    # Killed between the rename and pg_rewind: recovery needs standby.signal to be away.
    servers.a.data.rename(servers.root / "a.rewinding")
    result = servers.rejoin(servers.a, servers.b)
    assert not result["failed"] and result["rewind"]["performed"] and not result["rewind"]["resumed"], result
    servers.check_follows(servers.a, servers.b)


@pytest.mark.full
def test_wal_that_nobody_keeps_is_noticed(trio: Servers) -> None:
    trio.c.stop()
    trio.a.sql("SELECT pg_drop_replication_slot('c')")
    for _round in range(8):
        trio.a.write(1, "away")
        trio.a.sql("SELECT pg_switch_wal()")
        trio.a.sql("CHECKPOINT")
    trio.b.caught_up_with(trio.a)
    trio.a.sql("CHECKPOINT")
    result = trio.rejoin(trio.c, trio.a)
    assert result["failed"] and "does not keep the WAL" in result["msg"], result
    result = trio.rejoined(trio.c, trio.a, replace_damaged=True)
    assert result["method"] == "clone"
    trio.check_follows(trio.c, trio.a)


@pytest.mark.full
def test_an_empty_directory_is_cloned_and_a_running_primary_refused(trio: Servers) -> None:
    result = trio.rejoin(trio.a, trio.b, replace_damaged=True)
    assert result["failed"] and "runs as a primary" in result["msg"], result
    trio.c.stop()
    shutil.rmtree(trio.c.data)
    trio.c.data.mkdir()
    result = trio.rejoined(trio.c, trio.a)
    assert (result["method"], result["timelines"]) == ("clone", {"before": None, "after": 1})
    # Never started: its control file is that of a running primary, and says nothing about itself.
    assert trio.rejoin(trio.c, trio.a)["method"] == "none"
    trio.check_follows(trio.c, trio.a)


@pytest.mark.full
def test_what_hinders_it_is_said(trio: Servers) -> None:
    trio.c.stop()
    (trio.root / "pgpass").write_text("*:*:*:replication:wrong\n")
    result = trio.rejoin(trio.c, trio.a)
    assert result["failed"] and "password authentication failed" in result["msg"], result
    lonely = trio.rejoin(trio.c, trio.c)
    assert lonely["failed"] and "no primary among 127.0.0.1" in lonely["msg"], lonely


@pytest.mark.full
def test_without_the_rights_nothing_is_touched(servers: Servers) -> None:
    servers.a.sql("REVOKE EXECUTE ON FUNCTION pg_read_binary_file(text) FROM replication")
    lose_a(servers, "fast")
    result = servers.rejoin(servers.a, servers.b)
    assert result["failed"] and "permission denied for function pg_read_binary_file" in result["msg"], result
    # Put back, and as a standby: whatever starts it now, it is no second primary.
    assert (servers.a.data / "standby.signal").exists()
    assert servers.a.control("Database cluster state") == "shut down"
    servers.b.sql("GRANT EXECUTE ON FUNCTION pg_read_binary_file(text) TO replication")
    assert servers.rejoined(servers.a, servers.b)["method"] == "rewind"
    servers.check_follows(servers.a, servers.b)


@pytest.mark.full
def test_a_rewind_without_the_wal_after_the_divergence_is_not_begun(servers: Servers) -> None:
    lose_a(servers, "fast")
    for _round in range(3):
        servers.b.write(1, "since")
        servers.b.sql("SELECT pg_switch_wal()")
        servers.b.sql("CHECKPOINT")
    result = servers.rejoin(servers.a, servers.b)
    assert result["failed"] and "does not keep its WAL from" in result["msg"], result
    assert servers.a.control("Database cluster state") == "shut down"
    result = servers.rejoin(servers.a, servers.b, replace_damaged=True)
    assert (result["method"], result["rewind"]["performed"]) == ("clone", False), result
    servers.check_follows(servers.a, servers.b)
