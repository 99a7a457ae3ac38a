# SPDX-License-Identifier: GPL-3.0-or-later
"""Promotion and fencing against real servers: a primary and a standby of this machine's own."""

from __future__ import annotations

import concurrent.futures
import fcntl
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

VERSION = 15
BIN = Path(f"/usr/lib/postgresql/{VERSION}/bin")
PORT = 54711
PASSWORD = "of the replication user"
Run = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the modules run as root, as on a host")


def as_postgres(*command: str) -> str:
    owner = pwd.getpwnam("postgres")
    done = subprocess.run(
        command, user=owner.pw_uid, group=owner.pw_gid, extra_groups=[], cwd="/", env={"LC_ALL": "C"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Server:
    name: str
    address: str
    base: Path

    @property
    def data(self) -> Path:
        return self.base / self.name

    @property
    def socket(self) -> Path:
        return self.base / f"{self.name}.socket"

    @property
    def start_conf(self) -> Path:
        return Path(f"/etc/postgresql/{VERSION}/{self.base.name}-{self.name}/start.conf")

    def sql(self, query: str) -> str:
        return as_postgres(str(BIN / "psql"), "-qAtX", "-h", str(self.socket), "-p", str(PORT), "-c", query)

    def start(self) -> None:
        # Its output must not keep the pipes of this process open.
        log = Path(f"{self.data}.log")
        try:
            as_postgres(str(BIN / "pg_ctl"), "-D", str(self.data), "-l", str(log), "-w", "start")
        except AssertionError as error:
            raise AssertionError(log.read_text()[-2000:]) from error

    def stop(self, mode: str = "fast") -> None:
        as_postgres(str(BIN / "pg_ctl"), "-D", str(self.data), "-m", mode, "stop")

    @property
    def pid(self) -> int | None:
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n")[0])
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return None
        # One that has ended and was not waited for yet is a zombie.
        return None if state == "Z" else pid

    def options(self, **more: Any) -> dict[str, Any]:
        return {
            "version": VERSION,
            "cluster": f"{self.base.name}-{self.name}",
            "data_directory": str(self.data),
            "port": PORT,
            "socket_directory": str(self.socket),
            **more,
        }

    def as_peer(self) -> dict[str, Any]:
        return {
            "peers": [{"name": self.name, "address": self.address}],
            "replication_user": "replication",
            "replication_password": PASSWORD,
        }


@dataclass(frozen=True)
class Pair:
    db1: Server
    db2: Server

    def promote(self, **more: Any) -> dict[str, Any]:
        return self.db2.options(**self.db1.as_peer(), **more)

    def handover(self, **more: Any) -> dict[str, Any]:
        return self.promote(handover_from="db1", handover_token="token-of-the-test", handover_timeout=20, **more)


def conninfo(other: Server) -> str:
    return (
        f"host={other.address} port={PORT} user=replication passfile={other.base}/pgpass"
        " target_session_attrs=read-write connect_timeout=2"
    )


def configure(server: Server, other: Server) -> None:
    (server.data / "postgresql.auto.conf").write_text("")
    with (server.data / "postgresql.conf").open("w") as file:
        file.write(
            f"port = {PORT}\nlisten_addresses = '{server.address}'\nunix_socket_directories = '{server.socket}'\n"
            f"cluster_name = '{server.name}'\nshared_buffers = 16MB\nfsync = off\nwal_log_hints = on\n"
            f"primary_conninfo = '{conninfo(other)}'\nprimary_slot_name = '{server.name}'\n"
            "wal_retrieve_retry_interval = 200ms\nlogging_collector = off\n"
        )


def make_pair(base: Path) -> Pair:
    shutil.chown(base, "postgres", "postgres")
    base.chmod(0o755)
    found = Pair(Server("db1", "127.0.0.11", base), Server("db2", "127.0.0.12", base))
    for server in (found.db1, found.db2):
        server.socket.mkdir()
        shutil.chown(server.socket, "postgres", "postgres")
    passfile = base / "pgpass"
    passfile.write_text(f"*:*:*:replication:{PASSWORD}\n")
    passfile.chmod(0o600)
    shutil.chown(passfile, "postgres", "postgres")
    return found


def remove(pair: Pair) -> None:
    for server in (pair.db1, pair.db2):
        if server.pid:
            os.kill(server.pid, signal.SIGCONT)
            server.stop("immediate")
        shutil.rmtree(server.start_conf.parent, ignore_errors=True)
    shutil.rmtree(pair.db1.base)


@pytest.fixture(scope="module")
def template() -> Iterator[Pair]:
    """A primary and its standby, stopped: copied for each test, which is quicker than making them anew."""
    found = make_pair(Path(tempfile.mkdtemp(prefix="flotilla-", dir="/var/tmp")))
    try:
        as_postgres(str(BIN / "initdb"), "-D", str(found.db1.data), "-A", "peer", "--no-sync", "-E", "UTF8")
        (found.db1.data / "pg_hba.conf").write_text(
            "local all postgres peer\nhost replication replication 127.0.0.0/8 scram-sha-256\n"
        )
        configure(found.db1, found.db2)
        found.db1.start()
        found.db1.sql(f"CREATE ROLE replication LOGIN REPLICATION PASSWORD '{PASSWORD}'")
        found.db1.sql("CREATE TABLE kept (id int)")
        found.db1.sql("SELECT pg_create_physical_replication_slot('db2')")
        as_postgres(str(BIN / "pg_basebackup"), "-D", str(found.db2.data), "-d", conninfo(found.db1), "-c", "fast")
        (found.db2.data / "standby.signal").touch()
        shutil.chown(found.db2.data / "standby.signal", "postgres", "postgres")
        found.db1.stop()
        yield found
    finally:
        remove(found)


@pytest.fixture
def pair(template: Pair) -> Iterator[Pair]:
    found = make_pair(Path(tempfile.mkdtemp(prefix="flotilla-", dir="/var/tmp")))
    try:
        for server, copied, other in (
            (found.db1, template.db1, found.db2),
            (found.db2, template.db2, found.db1),
        ):
            subprocess.run(["cp", "-a", str(copied.data), str(server.data)], check=True)
            configure(server, other)
            server.start()
            server.start_conf.parent.mkdir(parents=True)
            server.start_conf.write_text("# comment\nauto\n")
        wait(lambda: found.db2.sql("SELECT status FROM pg_stat_wal_receiver") == "streaming")
        yield found
    finally:
        remove(found)


def wait(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def caught_up(pair: Pair) -> None:
    lsn = pair.db1.sql("SELECT pg_current_wal_flush_lsn()")
    wait(lambda: pair.db2.sql(f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'") == "t")


def test_the_primary_is_handed_over_while_somebody_writes(pair: Pair, run_module: Run) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(run_module, "postgresql_promote", pair.handover(standbys=["db1"]))
        lock = Path(f"/run/lock/flotilla-promote-{VERSION}-{pair.db2.base.name}-db2")
        wait(lambda: lock.exists() and lock.read_text())
        time.sleep(0.3)
        assert pair.db2.sql("SELECT pg_is_in_recovery()") == "t", "it waits as long as nobody hands over"
        pair.db1.sql("INSERT INTO kept SELECT generate_series(1, 20000)")
        fenced = run_module("postgresql_fence", pair.db1.options(handover_token="token-of-the-test"))
        promoted = waiting.result()
    assert not fenced["failed"], fenced
    assert (fenced["fenced"], fenced["shut_down"], fenced["method"]) == (True, True, "fast")
    assert fenced["locks"] == {"start_disabled": True, "standby_signal": True}
    assert not promoted["failed"], promoted
    assert (promoted["promoted"], promoted["role"], promoted["timeline"], promoted["data_loss_bytes"]) == (
        True, "primary", 2, 0,
    )  # fmt: skip
    assert lsn(promoted["shutdown_checkpoint_lsn"]) == lsn(fenced["checkpoint_lsn"])
    assert pair.db2.sql("SELECT count(*) FROM kept") == "20000"
    assert pair.db2.sql("SELECT timeline_id FROM pg_control_checkpoint()") == "2", "the checkpoint was made"
    # Whoever starts the former primary gets a standby, which follows without more ado.
    pair.db1.start()
    assert pair.db1.sql("SELECT pg_is_in_recovery()") == "t"
    pair.db2.sql("SELECT pg_create_physical_replication_slot('db1')")
    wait(lambda: pair.db1.sql("SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'") == "2")
    again = run_module("postgresql_promote", pair.promote())
    assert (again["failed"], again["changed"], again["role"]) == (False, False, "primary")


def lsn(text: str) -> int:
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def test_a_restart_of_the_primary_is_no_hand_over(pair: Pair, run_module: Run) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(run_module, "postgresql_promote", {**pair.handover(), "handover_timeout": 8})
        lock = Path(f"/run/lock/flotilla-promote-{VERSION}-{pair.db2.base.name}-db2")
        wait(lambda: lock.exists() and lock.read_text())
        pair.db1.stop()  # a shutdown checkpoint, but nobody said that it stays down
        time.sleep(1)
        pair.db1.start()
        pair.db1.sql("SELECT pg_logical_emit_message(false, 'flotilla_handover', 'another-token')")
        pair.db1.stop()
        pair.db1.start()
        refused = waiting.result()
    assert refused["failed"]
    assert not refused["promoted"]
    assert "without its message. Nothing was promoted" in refused["msg"]
    assert pair.db2.sql("SELECT pg_is_in_recovery()") == "t"


@pytest.mark.full
def test_a_waiting_run_is_called_off(pair: Pair, run_module: Run) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(wait_for_the_token, pair)
        lock = Path(f"/run/lock/flotilla-promote-{VERSION}-{pair.db2.base.name}-db2")
        wait(lambda: lock.exists() and lock.read_text())
        second = run_module("postgresql_promote", pair.handover())
        another = {"handover_from": "db1", "handover_token": "token-of-another"}
        spared = run_module("postgresql_promote", pair.db2.options(state="called_off", **another))
        assert spared["called_off"] is False
        began = time.monotonic()
        ended = run_module("postgresql_promote", pair.db2.options(state="called_off", patience=2))
        assert time.monotonic() - began > 2, "it might have ended by itself"
        assert waiting.result() == -signal.SIGKILL
    assert second["failed"]
    assert "another run waits" in second["msg"]
    assert (ended["called_off"], ended["role"]) == (True, "standby")
    again = run_module("postgresql_promote", pair.db2.options(state="called_off"))
    assert (again["called_off"], again["changed"]) == (False, False)
    # And what was fenced serves again, after that.
    run_module("postgresql_fence", pair.db1.options(handover_token="token-of-the-test"))
    assert pair.db2.sql("SELECT pg_is_in_recovery()") == "t"
    released = run_module("postgresql_fence", pair.db1.options(state="released", **pair.db2.as_peer()))
    assert not released["failed"], released
    pair.db1.start()
    assert pair.db1.sql("SELECT pg_is_in_recovery()") == "f"
    assert pair.db1.start_conf.read_text() == "# comment\nauto\n"


def test_two_who_hand_over_at_the_same_time_do_not_get_into_each_others_way(pair: Pair, run_module: Run) -> None:
    lock = Path(f"/run/lock/flotilla-fence-{VERSION}-{pair.db1.base.name}-db1")
    handover = pair.db1.options(handover_token="token-of-the-first")
    release = pair.db1.options(state="released", handover_token="token-of-the-second", **pair.db2.as_peer())
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for arguments in (handover, release):
            waited = run_module("postgresql_fence", {**arguments, "stop_timeout": 1})
            assert "another run has been putting" in waited["msg"], waited
    assert pair.db1.sql("SELECT pg_is_in_recovery()") == "f"
    assert run_module("postgresql_fence", handover)["fenced"]
    late = run_module("postgresql_fence", pair.db1.options(handover_token="token-of-the-second"))
    assert "cannot hand over" in late["msg"], late
    # It must not take back what the first one has done: that one's standby may be about to be promoted.
    foreign = run_module("postgresql_fence", release)
    assert "another run has put it out of action" in foreign["msg"], foreign
    assert (pair.db1.data / "standby.signal").exists()
    own = run_module("postgresql_fence", {**release, "handover_token": "token-of-the-first"})
    assert not own["failed"], own
    pair.db1.start()
    assert pair.db1.sql("SELECT pg_is_in_recovery()") == "f"


def wait_for_the_token(pair: Pair) -> int:
    """How the module's process ends."""
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": pair.handover()})
    module = "ansible_collections.flotilla.django.plugins.modules.postgresql_promote"
    return subprocess.run([sys.executable, "-m", module, arguments], capture_output=True, check=False).returncode


def test_after_a_crash_the_standby_says_what_is_lost(pair: Pair, run_module: Run) -> None:
    caught_up(pair)
    standby = pair.db2
    os.kill(int(standby.sql("SELECT pid FROM pg_stat_wal_receiver")), signal.SIGSTOP)
    pair.db1.sql("INSERT INTO kept SELECT generate_series(1, 1000)")
    assert pair.db1.pid
    receiver = int(standby.sql("SELECT pid FROM pg_stat_wal_receiver"))
    for pid in [pair.db1.pid, *children(pair.db1.pid)]:
        os.kill(pid, signal.SIGKILL)
    os.kill(receiver, signal.SIGCONT)
    early = run_module("postgresql_promote", pair.promote())
    assert early["failed"]
    assert "cannot be proven that there is no other primary: db1 (unreachable" in early["msg"]

    fenced = run_module("postgresql_fence", pair.db1.options(force=True))
    assert (fenced["fenced"], fenced["method"], fenced["shut_down"]) == (True, "none", False), fenced
    assert run_module("postgresql_fence", pair.db1.options(force=True))["changed"] is False
    has = standby.sql("SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())")
    lacks = lsn(fenced["end_lsn"]) - lsn(has)
    arguments = pair.promote(fenced=["db1"], upstream_lsn=fenced["end_lsn"])
    if lacks > 0:
        refused = run_module("postgresql_promote", arguments)
        assert f"it lacks {lacks} bytes" in refused["msg"]
    check = run_module("postgresql_promote", {**arguments, "accept": ["data_loss"]}, check=True)
    assert (check["promoted"], standby.sql("SELECT pg_is_in_recovery()")) == (True, "t")
    promoted = run_module("postgresql_promote", {**arguments, "accept": ["data_loss"]})
    assert promoted["promoted"], promoted
    # To the byte: from where the new timeline leaves the old one to where that one had come.
    parent, begins, _reason = (standby.data / "pg_wal/00000002.history").read_text().split("\t")
    assert parent == "1"
    assert promoted["data_loss_bytes"] == lsn(fenced["end_lsn"]) - lsn(begins) >= max(0, lacks)


def children(pid: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


@pytest.mark.full
def test_a_paused_replay_and_a_lagging_standby_are_refused(pair: Pair, run_module: Run) -> None:
    pair.db2.sql("SELECT pg_wal_replay_pause()")
    pair.db1.sql("INSERT INTO kept SELECT generate_series(1, 1000)")
    paused = run_module("postgresql_promote", pair.handover())
    assert "replay is paused on this standby" in paused["msg"]
    fenced = run_module("postgresql_fence", pair.db1.options(force=True))
    known = run_module("postgresql_promote", pair.promote(fenced=["db1"], after_lsn=fenced["checkpoint_lsn"]))
    assert known["failed"]
    assert "replay is paused" in known["msg"]
    accepted = run_module(
        "postgresql_promote",
        pair.promote(fenced=["db1"], upstream_lsn=fenced["end_lsn"], accept=["paused_replay"]),
    )
    assert accepted["promoted"], accepted
    assert pair.db2.sql("SELECT count(*) FROM kept") == "1000", "what was received is replayed first"


@pytest.mark.full
def test_a_standby_beside_a_live_primary_is_refused(pair: Pair, run_module: Run) -> None:
    alive = run_module("postgresql_promote", pair.promote(fenced=["db1"], after_lsn="0/1"))
    assert "db1 answers as a primary although it is fenced" in alive["msg"]
    wrong = run_module("postgresql_promote", {**pair.promote(after_lsn="0/1"), "replication_password": "wrong"})
    assert "db1 (rejected" in wrong["msg"]
    assert pair.db2.sql("SELECT pg_is_in_recovery()") == "t"
    standby = run_module("postgresql_fence", pair.db2.options(force=True))
    assert "the server is a standby" in standby["msg"]
    assert pair.db2.pid
    released = run_module("postgresql_fence", pair.db2.options(state="released", **pair.db1.as_peer()))
    assert released["failed"]


@pytest.mark.full
def test_a_stopped_one_is_released_only_when_nobody_was_promoted(pair: Pair, run_module: Run) -> None:
    fenced = run_module("postgresql_fence", pair.db1.options(force=True))
    promoted = run_module("postgresql_promote", pair.promote(fenced=["db1"], after_lsn=fenced["checkpoint_lsn"]))
    assert promoted["promoted"], promoted
    released = run_module("postgresql_fence", pair.db1.options(state="released", **pair.db2.as_peer()))
    assert released["failed"]
    assert "db2 is the primary" in released["msg"]
    assert (pair.db1.data / "standby.signal").exists()


def test_a_server_that_hangs_is_stopped_all_the_same(pair: Pair, run_module: Run) -> None:
    assert pair.db1.pid
    os.kill(pair.db1.pid, signal.SIGSTOP)
    fenced = run_module("postgresql_fence", pair.db1.options(force=True, stop_timeout=2))
    assert (fenced["fenced"], fenced["method"], fenced["shut_down"]) == (True, "kill", False), fenced
    assert pair.db1.pid is None


@pytest.mark.full
def test_commits_return_after_the_only_other_member_has_gone(pair: Pair, run_module: Run) -> None:
    for server in (pair.db1, pair.db2):
        with (server.data / "postgresql.conf").open("a") as file:
            file.write("""synchronous_standby_names = 'ANY 1 ("db1", "db2")'\n""")
        server.sql("SELECT pg_reload_conf()")
    fenced = run_module("postgresql_fence", pair.db1.options(force=True))
    promoted = run_module(
        "postgresql_promote", pair.promote(fenced=["db1"], after_lsn=fenced["checkpoint_lsn"], standbys=[])
    )
    assert promoted["synchronous_overridden"], promoted
    assert pair.db2.sql("INSERT INTO kept VALUES (1)") == ""
    pair.db1.start()
    back = run_module("postgresql_promote", pair.promote(standbys=["db1"]))
    assert (back["changed"], back["synchronous_overridden"]) == (True, False), back
    assert pair.db2.sql("SHOW synchronous_standby_names") == 'ANY 1 ("db1", "db2")'
