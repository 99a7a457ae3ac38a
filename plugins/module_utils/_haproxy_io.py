# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Talk to HAProxy's admin sockets and to its master, and wait for what they say."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.flotilla.django.plugins.module_utils import _haproxy_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils._haproxy_plan import (
    DRAIN,
    MAINT,
    READY,
    Back,
    Key,
    Process,
    Refused,
    Server,
    Wish,
)

# For one exchange, in seconds. HAProxy answers in milliseconds or not at all.
ANSWER_TIMEOUT = 3.0
# A line that HAProxy reads must fit in its buffer (16 KiB unless configured smaller).
COMMANDS_PER_LINE = 40
# How long sessions that were cut may take to be gone.
CUT_TIMEOUT = 3.0
# How many seconds of a watch go by beside the drain of other servers, which often takes as long. What is left of it
# comes before: nobody is out of service for the length of a watch.
OVERLAP = 2.0
# What a master answers for a worker that is ending, or gone. After the latter it does not even close the connection.
AWAY = (b"Can't connect to the target CLI", b"Can't find the target")
READING = ("show info", "show servers state", "show stat -1 4 -1", "show cli level")


class HaproxyError(Exception):
    """HAProxy cannot be reached, or does not do what it is told."""


class WorkerAwayError(Exception):
    """The master cannot reach a worker."""


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def time(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class RealClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def _denied(path: str) -> str:
    """Why a socket cannot be opened: what it is, and who we are."""
    me = f"our uid is {os.geteuid()}"
    for part in (*reversed(Path(path).parents), Path(path)):
        try:
            status = part.stat()
        except OSError:
            break
        enough = os.R_OK | os.W_OK if part == Path(path) else os.X_OK
        if not os.access(part, enough, effective_ids=True):
            return f"{part} has mode {stat.S_IMODE(status.st_mode):04o} and belongs to {_owner(status)}, {me}"
    return me


def _owner(status: os.stat_result) -> str:
    try:
        return f"{pwd.getpwuid(status.st_uid).pw_name}:{grp.getgrgid(status.st_gid).gr_name}"
    except KeyError:
        return f"{status.st_uid}:{status.st_gid}"


@dataclass
class Endpoint:
    """A socket of HAProxy: a new connection for each exchange, because idle ones are closed after a while."""

    text: str
    connect_timeout: float
    clock: Clock = field(default_factory=RealClock)

    def __post_init__(self) -> None:
        self.address = plan.parse_address(self.text)

    def ask(self, commands: Sequence[str], prefix: str = "", close: bool = False) -> list[str]:
        """The replies to the commands. A socket that is not there is tried again, because HAProxy may be restarting."""
        line = ";".join([prefix + command for command in commands] + (["quit"] if close else [])) + "\n"
        deadline = self.clock.monotonic() + self.connect_timeout
        timed_out = False
        reason: Exception
        while True:
            try:
                return plan.split_replies(self._exchange(line), len(commands))
            except PermissionError as error:
                raise HaproxyError(f"permission denied at {self.text}: {_denied(self.text)}") from error
            except FileNotFoundError as error:
                problem, reason = "the socket is missing: HAProxy is down, or its socket is elsewhere", error
            except ConnectionRefusedError as error:
                problem, reason = "nothing listens there: HAProxy is down", error
            except TimeoutError as error:
                # Once more: a master that starts itself anew forgets whom it was talking to.
                if timed_out:
                    raise HaproxyError(f"no answer from {self.text} within {ANSWER_TIMEOUT:g} s, twice") from error
                timed_out = True
                continue
            except (ConnectionResetError, BrokenPipeError, ValueError) as error:
                problem, reason = f"the answer was cut off ({error})", error
            except OSError as error:
                raise HaproxyError(f"{self.text} cannot be reached: {error.strerror or error}") from error
            if self.clock.monotonic() >= deadline:
                raise HaproxyError(f"{self.text}: {problem} (tried for {self.connect_timeout:g} s)") from reason
            self.clock.sleep(0.1)

    def _exchange(self, line: str) -> str:
        family = socket.AF_UNIX
        if not isinstance(self.address, str):
            family = socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET
        end = self.clock.monotonic() + ANSWER_TIMEOUT
        answer = bytearray()
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_TIMEOUT)
            client.connect(self.address)
            client.sendall(line.encode())
            while chunk := client.recv(1 << 16):
                answer += chunk
                if any(words in answer for words in AWAY):
                    raise WorkerAwayError
                client.settimeout(max(0.01, end - self.clock.monotonic()))
        return answer.decode(errors="replace")


@dataclass
class Master:
    """The master process, the only way to the workers that a reload left behind."""

    endpoint: Endpoint

    def processes(self) -> tuple[list[int], list[int]]:
        return plan.parse_processes(self.endpoint.ask(["show proc"], close=True)[0])

    def ask_worker(self, pid: int, commands: Sequence[str]) -> list[str]:
        return self.endpoint.ask(commands, prefix=f"@!{pid} ", close=True)

    def sessions(self, old: Sequence[int]) -> dict[int, dict[Key, int]]:
        """The sessions of each old worker. One that is gone meanwhile has none."""
        found = {}
        clock = self.endpoint.clock
        for pid in old:
            deadline = clock.monotonic() + ANSWER_TIMEOUT
            while pid not in found:
                try:
                    found[pid] = plan.old_sessions(plan.parse_stat(self.ask_worker(pid, ["show stat"])[0]))
                except WorkerAwayError:
                    # Its command line ends a moment before it does.
                    if pid not in self.processes()[1]:
                        break
                    if clock.monotonic() >= deadline:
                        raise HaproxyError(f"{self.endpoint.text}: the old worker {pid} does not answer") from None
                    clock.sleep(0.05)
                except ValueError as error:
                    raise HaproxyError(f"{self.endpoint.text}: the old worker {pid} says: {error}") from error
        return found

    def cut(self, old: Sequence[int], keys: Sequence[Key]) -> None:
        """Ends the sessions of old workers one by one: they refuse to do it by server."""
        for pid in old:
            with suppress(WorkerAwayError):
                for session in plan.sessions_to_cut(self.ask_worker(pid, ["show sess"])[0], keys):
                    self.ask_worker(pid, [f"shutdown session {session}"])


@dataclass(frozen=True)
class Snapshot:
    """A balancer at one moment."""

    process: Process
    servers: Mapping[Key, Server]
    level: str
    old: Mapping[int, Mapping[Key, int]]  # sessions by old worker

    def sessions(self, key: Key) -> int:
        return self.servers[key].sessions + sum(worker.get(key, 0) for worker in self.old.values())


@dataclass
class Balancer:
    endpoint: Endpoint
    master: Master | None = None

    @property
    def name(self) -> str:
        return self.endpoint.text

    @property
    def is_local(self) -> bool:
        return isinstance(self.endpoint.address, str)

    def read(self, with_old: bool) -> Snapshot:
        try:
            info, state, stats, level = self.endpoint.ask(READING)
            process = plan.parse_info(info)
            servers = plan.parse_servers(state, plan.parse_stat(stats))
        except (ValueError, KeyError) as error:
            raise HaproxyError(f"{self.name} answered with something unexpected: {error}") from error
        old: dict[int, dict[Key, int]] = {}
        if with_old and self.master and self.is_local:
            workers, old_workers = self.master.processes()
            # The master of another HAProxy on this host knows nothing of this one.
            if process.pid in workers + old_workers:
                old = self.master.sessions([pid for pid in old_workers if pid != process.pid])
        return Snapshot(process, servers, level.strip(), old)

    def frontends(self) -> list[dict[str, str]]:
        return plan.parse_stat(self.endpoint.ask(["show stat -1 1 -1"])[0])

    def tell(self, commands: Sequence[str]) -> None:
        for first in range(0, len(commands), COMMANDS_PER_LINE):
            part = commands[first : first + COMMANDS_PER_LINE]
            for command, reply in zip(part, self.endpoint.ask(part), strict=True):
                if reply.strip():
                    raise HaproxyError(f"{self.name} answered {reply.strip()!r} to {command!r}{_hint(reply)}")


def connection_options() -> dict[str, Any]:
    """The part of an argument specification that plugins/doc_fragments/haproxy.py documents."""
    return {
        "sockets": {"type": "list", "elements": "str", "default": ["/run/haproxy/admin.sock"]},
        "master_socket": {"type": "str", "default": "/run/haproxy-master.sock"},
        "connect_timeout": {"type": "float", "default": 5.0},
    }


def balancers(sockets: Sequence[str], connect_timeout: float, clock: Clock | None = None) -> list[Balancer]:
    if not sockets:
        raise Refused("sockets is empty, wants at least one")
    return [Balancer(Endpoint(text, connect_timeout, clock or RealClock())) for text in dict.fromkeys(sockets)]


def check_master_socket(path: str) -> None:
    if path and not isinstance(plan.parse_address(path), str):
        raise Refused(f"master_socket is {path!r}, wants the absolute path of a socket")


def attach_master(found: Sequence[Balancer], path: str) -> list[str]:
    """Gives the master to the balancers of this host; returns a note when there is none."""
    check_master_socket(path)
    local = [balancer for balancer in found if balancer.is_local]
    if not path or not local:
        return []
    try:
        Path(path).stat()
    except FileNotFoundError:
        return [f"{path} does not exist: sessions of workers from before a reload are not counted"]
    except PermissionError as error:
        raise HaproxyError(f"permission denied at {path}: {_denied(path)}") from error
    for balancer in local:
        balancer.master = Master(Endpoint(path, balancer.endpoint.connect_timeout, balancer.endpoint.clock))
    return []


def _hint(reply: str) -> str:
    return ": the socket is not configured with `level admin`" if "Permission denied" in reply else ""


@dataclass(frozen=True)
class Target:
    """One server of one backend of one balancer."""

    at: int  # which balancer
    key: Key


class Operation:
    """One run of haproxy_server: reads all, checks all, writes all, waits for all."""

    def __init__(
        self,
        wish: Wish,
        sockets: Sequence[str],
        master_socket: str,
        on_timeout: str,
        clock: Clock | None = None,
    ) -> None:
        self.wish = wish
        self.on_timeout = on_timeout
        self.clock = clock or RealClock()
        self.started = self.clock.monotonic()
        self.notes: list[str] = []
        self.sessions_cut = 0
        self.soaked = 0.0
        self.seconds_before = 0.0
        # Servers that came back, here or in an earlier run, and are watched by this one.
        self.watched: dict[Target, Back] = {}
        # Those that came back and are not watched yet.
        self.unwatched: list[Back] = []
        self.sessions_left: int | None = None
        self.targets: list[Target] = []
        self.before: dict[Target, Server] = {}
        self.now: list[Snapshot] = []
        self.wrote = False
        # What was last said to each server, so that it can be said again after a reload.
        self.wanted: dict[Target, str] = {}
        # Bad input is refused before any connection.
        self.balancers = balancers(sockets, wish.connect_timeout, self.clock)
        self.master_socket = master_socket
        check_master_socket(master_socket)

    # --- reading and checking

    def prepare(self) -> None:
        """Reads every balancer, and refuses before anything is written."""
        leaves = self.wish.wait and self.wish.state in (DRAIN, MAINT)
        if leaves:
            self.notes += attach_master(self.balancers, self.master_socket)
        self.now = [balancer.read(leaves) for balancer in self.balancers]
        names = {balancer.name for balancer in self.balancers}
        if unknown := sorted({back.socket for back in self.wish.watch} - names):
            raise Refused(f"watch has servers on {', '.join(unknown)}, wants those on {', '.join(sorted(names))}")
        for at, (balancer, snapshot) in enumerate(zip(self.balancers, self.now, strict=True)):
            keys = plan.select(snapshot.servers, self.wish.backends, self.wish.servers, balancer.name)
            plan.check_possible(snapshot.servers, keys, self.wish, balancer.name)
            for key in keys:
                target = Target(at, key)
                self.targets.append(target)
                self.before[target] = snapshot.servers[key]
                self.wanted[target] = snapshot.servers[key].admin
            self.watched |= {
                Target(at, (back.backend, back.server)): back
                for back in self.wish.watch
                if back.socket == balancer.name
            }
            servers = [snapshot.servers[key] for key in keys]
            writes = any(plan.goal(server, self.wish) != self._mine(server) for server in servers)
            if writes and snapshot.level != "admin":
                raise Refused(
                    f"permission denied at {balancer.name}: the socket is configured with `level {snapshot.level}`, "
                    "wants `level admin`; nothing was changed"
                )

    @staticmethod
    def _mine(server: Server) -> dict[str, str | int]:
        return {"admin": server.admin, "weight": server.weight}

    def server(self, target: Target) -> Server:
        server = self.now[target.at].servers.get(target.key)
        if server is None:
            label = "/".join(target.key)
            raise HaproxyError(
                f"{self.balancers[target.at].name} has no server {label} any more: its configuration changed"
            )
        return server

    def _look(self) -> bool:
        """Reads all balancers again. True when one was reloaded or restarted and had to be told again."""
        last = self.now
        self.now = [balancer.read(balancer.master is not None) for balancer in self.balancers]
        told = False
        for at, (before, now) in enumerate(zip(last, self.now, strict=True)):
            if (before.process.pid, before.process.started) == (now.process.pid, now.process.started):
                for target in self.targets:
                    if target.at == at and self.server(target).admin != self.wanted[target]:
                        raise HaproxyError(
                            f"{self.server(target).label} on {self.balancers[at].name} was set to "
                            f"{self.server(target).admin} by somebody else; it was waited for in {self.wanted[target]}"
                        )
                continue
            told = True
            commands = [command for target in self.targets if target.at == at for command in self._again(target)]
            self.balancers[at].tell(commands)
            again = "the state was set again" if commands else "the state was kept"
            self.notes.append(f"HAProxy on {self.balancers[at].name} was reloaded while waiting; {again}")
            if self.balancers[at].master is None and self.wish.state in (DRAIN, MAINT):
                self.notes.append(f"the old worker of {self.balancers[at].name} cannot be asked for its sessions")
        if told:
            self.now = [balancer.read(balancer.master is not None) for balancer in self.balancers]
        return told

    def _again(self, target: Target) -> list[str]:
        server = self.server(target)
        weight = int(plan.goal(self.before[target], self.wish)["weight"])
        prove = self.wish.state == READY and self.wanted[target] == DRAIN
        return plan.set_admin(server, self.wanted[target], prove) + plan.set_weight(server, weight)

    # --- writing

    def _tell(self, commands: Mapping[Target, list[str]]) -> None:
        for at, balancer in enumerate(self.balancers):
            words = [word for target in self.targets if target.at == at for word in commands.get(target, [])]
            if words:
                self.wrote = True
                balancer.tell(words)

    def _set(self, targets: Sequence[Target], admin: str) -> None:
        commands = {target: plan.set_admin(self.server(target), admin) for target in targets}
        for target in targets:
            self.wanted[target] = admin
        self._tell(commands)

    def run(self) -> None:
        """Writes and waits. When it fails, `restore` decides what remains."""
        try:
            self._watch(OVERLAP)
            self.seconds_before = self.clock.monotonic() - self.started
            for target in self.targets:
                self.wanted[target] = plan.first_admin(self.before[target], self.wish)
            self._tell({target: plan.first_commands(self.before[target], self.wish) for target in self.targets})
            leaves = self.wish.wait and self.wish.state in (DRAIN, MAINT)
            if leaves and self._wait_until_drained() and self.wish.state == MAINT:
                self._set(self.targets, MAINT)
            self._watch()
        except (HaproxyError, Refused) as error:
            raise HaproxyError(f"{error}{self._restore()}") from error
        if self.wish.state == READY and self.wish.proof:
            self._note_unchecked()
            if self.wish.wait:
                self._wait_until_ready()
        if self.wish.state == READY and self.wrote:
            self._note_back()
        if self.wrote or self.wish.wait:
            self.settle()

    def settle(self) -> None:
        """Reads how it is in the end, and says again what a reload at the last moment made forgotten."""
        if self.wrote:
            self.now = [balancer.read(balancer.master is not None) for balancer in self.balancers]
            lost = {target: self._again(target) for target in self.targets}
            if any(lost.values()) and self._look_lost(lost):
                self.now = [balancer.read(balancer.master is not None) for balancer in self.balancers]

    def _look_lost(self, lost: Mapping[Target, list[str]]) -> bool:
        states = {
            target: [word for word in words if "health" not in word]
            for target, words in lost.items()
            if self.server(target).admin != self.wanted[target]
        }
        self._tell(states)
        return bool(states)

    def _restore(self) -> str:
        """Brings every server back to where it was found; how that went, for the message."""
        if not self.wrote:
            return ""
        failed = []
        for at, balancer in enumerate(self.balancers):
            try:
                servers = balancer.read(False).servers
                ours = [
                    target
                    for target in self.targets
                    # What somebody else set meanwhile is theirs.
                    if target.at == at
                    and target.key in servers
                    and servers[target.key].admin in (DRAIN, self.wanted[target])
                ]
                balancer.tell(
                    [
                        word
                        for target in ours
                        for word in plan.restoring_commands(self.before[target], servers[target.key])
                    ]
                )
                self.now[at] = balancer.read(False)
            except HaproxyError as error:
                failed.append(str(error))
        if failed:
            return f"; the former state could not be restored everywhere: {'; '.join(failed)}"
        return "; the former state was restored"

    # --- waiting

    def _left(self) -> dict[Target, int]:
        """What still is at the servers: sessions of all workers, and what is queued for them."""
        left = {target: self.now[target.at].sessions(target.key) + self.server(target).queue for target in self.targets}
        return {target: count for target, count in left.items() if count}

    def _describe(self, left: Mapping[Target, int]) -> str:
        return ", ".join(
            f"{count} at {'/'.join(target.key)} on {self.balancers[target.at].name}" for target, count in left.items()
        )

    def _wait_until_drained(self) -> bool:
        """False when sessions are left and the servers stay in DRAIN."""
        deadline = self.clock.monotonic() + self.wish.timeout
        # Where nothing was changed and nothing is left, the first look was enough.
        if not self.wrote and not self._left():
            return True
        quiet = 0
        totals: dict[Target, int] = {}
        more: dict[Target, int] = {}
        while True:
            reloaded = self._look()
            for target in self.targets:
                total = self.server(target).number("stot")
                if target in totals and not reloaded and total > totals[target]:
                    more[target] = more.get(target, 0) + total - totals[target]
                totals[target] = total
            self._still_watching()
            left = self._left()
            quiet = 0 if left or reloaded else quiet + 1
            if quiet >= self.wish.drained_samples:
                break
            if left and self.clock.monotonic() >= deadline:
                self._note_more(more)
                if self.on_timeout == "leave":
                    self.sessions_left = sum(left.values())
                    return False
                self._drain_timed_out(left)
                return True
            self.clock.sleep(self.wish.poll)
        self._note_more(more)
        return True

    def _note_more(self, more: Mapping[Target, int]) -> None:
        for target, count in more.items():
            self.notes.append(
                f"{count} more sessions reached {'/'.join(target.key)} on {self.balancers[target.at].name} while "
                "it was draining: cookies and stick tables still lead there. In MAINT they go elsewhere "
                "(option redispatch), see on_timeout"
            )

    def _drain_timed_out(self, left: Mapping[Target, int]) -> None:
        total = sum(left.values())
        if self.on_timeout == "fail":
            self.sessions_left = total
            raise HaproxyError(f"{total} sessions left after {self.wish.timeout:g} s: {self._describe(left)}")
        if self.on_timeout == "maint":
            self.notes.append(f"{total} sessions left after {self.wish.timeout:g} s go on: {self._describe(left)}")
            self._set(self.targets, MAINT)
            return
        if self.wish.state == MAINT:
            # First, so that nothing new comes in between.
            self._set(self.targets, MAINT)
        for at, balancer in enumerate(self.balancers):
            keys = [target.key for target in left if target.at == at]
            if keys:
                balancer.tell([f"shutdown sessions server {backend}/{name}" for backend, name in keys])
                if balancer.master:
                    balancer.master.cut(list(self.now[at].old), keys)
        self.sessions_cut = total
        end = self.clock.monotonic() + CUT_TIMEOUT
        while True:
            self._look()
            still = self._left()
            if not still:
                break
            if self.clock.monotonic() >= end:
                self.sessions_cut = max(0, total - sum(still.values()))
                self.notes.append(f"sessions that could not be cut: {self._describe(still)}")
                break
            self.clock.sleep(min(self.wish.poll, 0.1))
        self.notes.append(f"{self.sessions_cut} sessions were cut after {self.wish.timeout:g} s")

    def _note_unchecked(self) -> None:
        for target, server in self.before.items():
            if server.admin != READY and not server.checked:
                self.notes.append(
                    f"{server.label} on {self.balancers[target.at].name} has no health check: ready without proof"
                )

    def _wait_until_ready(self) -> None:
        """Makes a server ready as soon as every balancer's own check found it healthy."""
        waiting = {
            target
            for target, server in self.before.items()
            if self.wanted[target] != READY or server.operational != "up"
        }
        deadline = self.clock.monotonic() + self.wish.ready_timeout
        while waiting:
            reloaded = self._look()
            # Of what was just said to a new worker, nothing is proven yet; the next look tells.
            unproven = {target for target in waiting if reloaded or self.server(target).operational != "up"}
            names = {target.key[1] for target in unproven}
            proven = sorted((t for t in waiting if t.key[1] not in names), key=self.targets.index)
            self._set(proven, READY)
            waiting -= set(proven)
            if waiting and self.clock.monotonic() >= deadline:
                raise HaproxyError(self._not_ready(sorted(unproven, key=self.targets.index)))
            if waiting:
                self.clock.sleep(self.wish.poll)

    def _not_ready(self, unproven: Sequence[Target]) -> str:
        reasons = [
            f"{self.server(target).label} on {self.balancers[target.at].name} is {self.server(target).operational} "
            f"({self.server(target).check_report}), left in {self.wanted[target]}"
            for target in unproven
        ]
        return f"not healthy after {self.wish.ready_timeout:g} s: {'; '.join(reasons)}"

    def _note_back(self) -> None:
        """Watches what the servers that came back make of their first requests, or leaves that to a later run."""
        self._look()
        back = {
            target: self._back(target)
            for target, server in self.before.items()
            if server.admin != READY and self.server(target).admin == READY
        }
        if self.wish.soak:
            self.watched = back
            self._watch()
        else:
            self.unwatched = list(back.values())

    def _back(self, target: Target) -> Back:
        server, process = self.server(target), self.now[target.at].process
        return Back(
            self.balancers[target.at].name,
            *target.key,
            round(self.clock.time(), 3),
            f"{process.pid} {process.started}",
            server.errors,
            server.responses,
        )

    def _watch(self, all_but: float = 0.0) -> None:
        while self._still_watching(all_but):
            self.clock.sleep(self.wish.poll)
            self._look()

    def _still_watching(self, all_but: float = 0.0) -> bool:
        """False when the time, but for so many seconds, is over for all that are watched.

        Fails when one of them fails too many requests.
        """
        problems, going = [], False
        for target, then in self.watched.items():
            now = self._back(target)
            if now.worker != then.worker:  # The counters began anew with it.
                self.watched[target] = then = replace(now, at=then.at)
            self.soaked = max(self.soaked, now.at - then.at)
            over = now.at >= then.at + self.wish.soak
            going |= now.at < then.at + self.wish.soak - all_but
            if problem := plan.soak_problem(then, self.server(target), self.wish.soak_errors, over):
                problems.append(f"{problem} on {self.balancers[target.at].name}")
        if problems:
            raise HaproxyError(f"{'; '.join(problems)}; soak_errors allows {self.wish.soak_errors}")
        return going

    # --- the result

    def predict(self) -> None:
        """What check mode reports: nothing is written."""
        if self.wish.state == READY and self.wish.proof:
            self._note_unchecked()

    def result(self, predicted: bool = False) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        for target in self.targets:
            before = self.before[target]
            now = self.now[target.at].servers.get(target.key, before)
            after = now.summary()
            if predicted:
                after |= plan.goal(before, self.wish)
            rows.append(
                {
                    "socket": self.balancers[target.at].name,
                    "backend": target.key[0],
                    "server": target.key[1],
                    "before": before.summary(),
                    "after": after,
                    "sessions": now.sessions + sum(old.get(target.key, 0) for old in self.now[target.at].old.values()),
                    "queue": now.queue,
                }
            )
        changed = any(row["before"][what] != row["after"][what] for row in rows for what in ("admin", "weight"))
        left = sum(row["sessions"] + row["queue"] for row in rows) if self.wish.state in (DRAIN, MAINT) else 0
        return {
            "changed": changed,
            "servers": rows,
            "sessions_left": left if self.sessions_left is None else self.sessions_left,
            "sessions_cut": self.sessions_cut,
            "soaked": round(self.soaked, 3),
            "back": [asdict(back) for back in self.unwatched],
            "seconds": round(self.clock.monotonic() - self.started, 3),
            "seconds_before": round(self.seconds_before, 3),
            "notes": self.notes,
            "diff": {what: "".join(_line(row, what) for row in rows) for what in ("before", "after")},
        }


def _line(row: Mapping[str, Any], what: str) -> str:
    place = f"{row['socket']} {row['backend']}/{row['server']}"
    return f"{place}: {row[what]['admin']}, weight {row[what]['weight']}\n"
