# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What HAProxy said, what is to be said to it, and whether that may be: pure functions.

Learned from HAProxy 2.6 and 3.0, and what the functions below rest on:

- MAINT to `ready` makes a server UP before any check. `state drain` followed by `health down` makes it wait for its
  check.
- `health down` takes a server without a check down for good, so it is only said to servers whose check is running.
- The status column of `show stat` says DOWN for a server that is drained and down: only the masks are believed.
- Old workers refuse `set server` and `shutdown sessions server` ("Proxy is disabled."), but not `shutdown session`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

READY = "ready"
DRAIN = "drain"
MAINT = "maint"

# srv_admin_state. Both kinds of CMAINT only tell where a FMAINT came from.
FORCED_MAINT = 0x01
INHERITED_MAINT = 0x02 | 0x20 | 0x40  # by a tracked server, by DNS, by a host name
FORCED_DRAIN = 0x08
INHERITED_DRAIN = 0x10
# srv_check_state: configured and enabled.
CHECKED = 0x02 | 0x04
OPERATIONAL = {0: "down", 1: "up", 2: "up", 3: "stopping"}

Key = tuple[str, str]


class Refused(ValueError):
    """What was asked for cannot or must not be done; nothing was changed."""


@dataclass(frozen=True)
class Server:
    """One server of one backend as one worker sees it."""

    backend: str
    name: str
    address: str
    port: int
    state: int
    admin_mask: int
    weight: int
    initial_weight: int
    check_mask: int
    stat: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.backend, self.name

    @property
    def label(self) -> str:
        return f"{self.backend}/{self.name}"

    @property
    def admin(self) -> str:
        """The state that somebody gave it."""
        if self.admin_mask & FORCED_MAINT:
            return MAINT
        return DRAIN if self.admin_mask & FORCED_DRAIN else READY

    @property
    def inherited(self) -> str:
        """The state that it has from something else and that cannot be taken from it; empty for none."""
        if self.admin_mask & INHERITED_MAINT:
            return MAINT
        return DRAIN if self.admin_mask & INHERITED_DRAIN else ""

    @property
    def operational(self) -> str:
        return OPERATIONAL.get(self.state, "unknown")

    @property
    def checked(self) -> bool:
        return self.check_mask & CHECKED == CHECKED

    @property
    def is_serving(self) -> bool:
        """Whether requests are spread over it."""
        return self.admin == READY and not self.inherited and self.operational == "up" and self.weight > 0

    def number(self, column: str) -> int:
        return int(self.stat.get(column) or 0)

    @property
    def sessions(self) -> int:
        # A connection in use is a session that may not be counted yet, or no longer.
        return max(self.number("scur"), self.number("used_conn_cur"))

    @property
    def queue(self) -> int:
        return self.number("qcur")

    @property
    def responses(self) -> int:
        """Responses so far, of any status, since HAProxy was started."""
        return sum(self.number(f"hrsp_{kind}") for kind in ("1xx", "2xx", "3xx", "4xx", "5xx", "other"))

    @property
    def errors(self) -> int:
        """Requests that it answered with 5xx, refused (econ) or broke off (eresp), since HAProxy was started.

        HAProxy counts its own 5xx for a broken response, too, so the larger one of the two kinds is taken.
        """
        return max(self.number("hrsp_5xx"), self.number("econ") + self.number("eresp"))

    @property
    def check_report(self) -> str:
        """What the last check found, for people."""
        words = [self.stat.get("check_status", ""), self.stat.get("check_desc", ""), self.stat.get("last_chk", "")]
        return ": ".join(word for word in words if word) or "no check yet"

    def summary(self) -> dict[str, str | int]:
        return {"admin": self.admin, "operational": self.operational, "weight": self.weight}


@dataclass(frozen=True)
class Process:
    """The worker that answered."""

    version: str
    pid: int
    uptime: int
    started: str  # a pid can come back, a pid with the same start cannot


@dataclass(frozen=True)
class Back:
    """A server that came back, and what its counters said then."""

    socket: str
    backend: str
    server: str
    at: float  # seconds since 1970
    worker: str  # with another one the counters begin anew
    errors: int
    responses: int


@dataclass(frozen=True)
class Wish:
    """What is asked for, checked."""

    servers: tuple[str, ...]
    backends: tuple[str, ...] = ("*",)
    state: str = ""
    weight: str = ""
    wait: bool = True
    proof: bool = True
    min_healthy: str = "1"
    timeout: float = 60.0
    ready_timeout: float = 60.0
    connect_timeout: float = 5.0
    poll: float = 0.1
    drained_samples: int = 3
    soak: float = 0.0
    soak_errors: str = "0"
    watch: tuple[Back, ...] = ()

    def __post_init__(self) -> None:
        check_names("servers", self.servers)
        check_names("backends", self.backends)
        if not self.state and not self.weight:
            raise Refused("one of state and weight is required")
        if self.weight:
            weight_of(self.weight, 1)
        enough(self.min_healthy, 1)
        errors_allowed(self.soak_errors, 0)
        if self.watch and self.state not in (DRAIN, MAINT):
            raise Refused(f"watch is for state=drain and state=maint, not for state={self.state or 'none'}")
        for option in ("timeout", "ready_timeout", "connect_timeout", "soak"):
            value = getattr(self, option)
            if not 0 <= value < float("inf"):
                raise Refused(f"{option} is {value:g}, wants seconds from 0 on")
        if not 0.01 <= self.poll <= 60:
            raise Refused(f"poll is {self.poll:g}, wants seconds from 0.01 to 60")
        if not 1 <= self.drained_samples <= 1000:
            raise Refused(f"drained_samples is {self.drained_samples}, wants 1 to 1000")


# --- Bad input -------------------------------------------------------------------------------------------------------


def check_names(option: str, names: Sequence[str]) -> None:
    if not names:
        raise Refused(f"{option} is empty, wants names or globs")
    for name in names:
        if not name or not name.isprintable() or re.search(r"[\s;/#\\]", name):
            raise Refused(f"{option} has {name!r}, wants names or globs without white space, ';', '/', '#' or '\\'")


def parse_address(text: str) -> str | tuple[str, int]:
    """A path, or host and port."""
    if text.startswith("/") and text.isprintable():
        return text
    match = re.fullmatch(r"\[(?P<six>[0-9A-Fa-f:.]+)\]:(?P<port6>\d+)|(?P<host>[\w.-]+):(?P<port>\d+)", text)
    port = int(match["port6"] or match["port"]) if match else 0
    if not match or not 0 < port < 65536:
        raise Refused(f"sockets has {text!r}, wants the absolute path of a socket, HOST:PORT or [IPV6]:PORT")
    return match["six"] or match["host"], port


def weight_of(text: str, initial: int) -> int:
    """The absolute weight, counted as HAProxy counts it."""
    match = re.fullmatch(r"(\d{1,5})(%?)", text)
    if match and match[2]:
        return min(256, initial * int(match[1]) // 100)
    if not match or int(match[1]) > 256:
        raise Refused(f"weight is {text!r}, wants 0 to 256, or a share of the configured weight such as '50%'")
    return int(match[1])


def enough(min_healthy: str, total: int) -> int:
    """How many of so many servers must stay."""
    match = re.fullmatch(r"(\d{1,5})(%?)", min_healthy)
    if not match or (match[2] and int(match[1]) > 100):
        raise Refused(f"min_healthy is {min_healthy!r}, wants a number of servers or a share such as '50%'")
    return -(-total * int(match[1]) // 100) if match[2] else int(match[1])


def errors_allowed(soak_errors: str, responses: int) -> int:
    """How many errors of so many responses are accepted. A share accepts one in any case: a single one says little."""
    match = re.fullmatch(r"(\d{1,6})(%?)", soak_errors)
    if not match or (match[2] and int(match[1]) > 100):
        raise Refused(
            f"soak_errors is {soak_errors!r}, wants a number of errors or a share of the responses such as '5%'"
        )
    return max(1, responses * int(match[1]) // 100) if match[2] else int(match[1])


# --- Reading ---------------------------------------------------------------------------------------------------------


def split_replies(text: str, count: int) -> list[str]:
    """The replies to so many commands of one line. Each ends with an empty line, and none has one inside."""
    replies: list[str] = []
    lines: list[str] = []
    # Only lines that came to their end: nothing at all is not the empty answer that means success.
    *whole, rest = text.split("\n")
    for line in whole:
        if line.strip():
            lines.append(line)
        elif len(replies) < count:
            replies.append("\n".join(lines))
            lines = []
    if lines or rest:
        raise ValueError(f"an answer was cut off after {rest or lines[-1]!r}")
    if len(replies) < count:
        raise ValueError(f"{len(replies)} of {count} answers came")
    return replies


def _table(text: str, separator: str | None, what: str) -> list[dict[str, str]]:
    header, _newline, rest = text.partition("\n")
    if not header.startswith("# "):
        raise ValueError(f"{what}: {text.strip()[:200] or 'no answer'}")
    names = header[2:].strip().rstrip(",").split(separator)
    return [dict(zip(names, line.split(separator), strict=False)) for line in rest.splitlines() if line.strip()]


def parse_stat(text: str) -> list[dict[str, str]]:
    return _table(text, ",", "show stat")


def parse_servers(state: str, stat: Iterable[Mapping[str, str]]) -> dict[Key, Server]:
    """The servers by (backend, server), from `show servers state` and `show stat`."""
    version, _newline, table = state.partition("\n")
    if version.strip() != "1":
        raise ValueError(f"show servers state: {state.strip()[:200] or 'no answer'}")
    # While a check runs HAProxy puts an asterisk before the status of the one before.
    rows = {
        (row.get("pxname", ""), row.get("svname", "")): {
            **row,
            "check_status": row.get("check_status", "").lstrip("* "),
        }
        for row in stat
    }
    servers = [
        Server(
            backend=row["be_name"],
            name=row["srv_name"],
            address=row["srv_addr"],
            port=int(row["srv_port"]),
            state=int(row["srv_op_state"]),
            admin_mask=int(row["srv_admin_state"]),
            weight=int(row["srv_uweight"]),
            initial_weight=int(row["srv_iweight"]),
            check_mask=int(row["srv_check_state"]),
            stat=rows.get((row["be_name"], row["srv_name"]), {}),
        )
        for row in _table(table, None, "show servers state")
    ]
    return {server.key: server for server in servers}


def parse_info(text: str) -> Process:
    lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    if "Pid" not in lines:
        raise ValueError(f"show info: {text.strip()[:200] or 'no answer'}")
    return Process(
        lines.get("Version", ""), int(lines["Pid"]), int(lines["Uptime_sec"]), lines.get("Start_time_sec", "")
    )


def parse_processes(text: str) -> tuple[list[int], list[int]]:
    """The process ids of the workers and of the old workers, from the master's `show proc`."""
    found: dict[str, list[int]] = {"workers": [], "old workers": []}
    section = ""
    for line in text.splitlines():
        words = line.split()
        if line.startswith("#"):
            section = line.lstrip("# ").strip()
        elif section in found and len(words) > 1 and words[1] == "worker" and words[0].isdigit():
            found[section].append(int(words[0]))
    return found["workers"], found["old workers"]


def old_sessions(stat: Iterable[Mapping[str, str]]) -> dict[Key, int]:
    """The sessions that an old worker still has, by (backend, server)."""
    return {
        (row["pxname"], row["svname"]): max(int(row.get("scur") or 0), int(row.get("used_conn_cur") or 0))
        for row in stat
        if row.get("type") == "2"
    }


def sessions_to_cut(sessions: str, keys: Iterable[Key]) -> list[str]:
    """The ids of the sessions at these servers, from `show sess`."""
    wanted = set(keys)
    pattern = re.compile(r"^(0x[0-9a-f]+): .*? be=(\S+) srv=(\S+) ", re.MULTILINE)
    return [match[1] for match in pattern.finditer(sessions) if (match[2], match[3]) in wanted]


# --- Deciding --------------------------------------------------------------------------------------------------------


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def select(
    servers: Mapping[Key, Server], wish_backends: Sequence[str], wish_servers: Sequence[str], where: str
) -> list[Key]:
    """The servers that are meant. Refused when a name or glob stands for nothing."""
    backends = sorted({backend for backend, _name in servers})
    for pattern in wish_backends:
        if not any(_matches(backend, [pattern]) for backend in backends):
            raise Refused(f"{where} has no backend {pattern!r}; it has {', '.join(backends) or 'none'}")
    in_backends = [key for key in servers if _matches(key[0], wish_backends)]
    for pattern in wish_servers:
        if not any(_matches(name, [pattern]) for _backend, name in in_backends):
            there = ", ".join(f"{backend}/{name}" for backend, name in in_backends)
            raise Refused(f"{where} has no server {pattern!r}; it has {there or 'none'}")
    chosen = [key for key in in_backends if _matches(key[1], wish_servers)]
    for pattern in wish_backends:
        if not any(_matches(backend, [pattern]) for backend, _name in chosen):
            raise Refused(f"none of the servers {', '.join(wish_servers)} is in the backend {pattern!r} of {where}")
    return chosen


def check_possible(servers: Mapping[Key, Server], keys: Sequence[Key], wish: Wish, where: str) -> None:
    """Refuses what would leave a backend with too few servers, and what HAProxy would not do."""
    if wish.state == READY:
        for key in keys:
            if servers[key].inherited:
                raise Refused(
                    f"{servers[key].label} on {where} is in state {servers[key].inherited} because of the server that "
                    "it tracks, or because its name does not resolve: that cannot be set here"
                )
    leaving = {key for key in keys if servers[key].is_serving and not _goes_on(servers[key], wish)}
    for backend in sorted({backend for backend, _name in leaving}):
        members = [server for server in servers.values() if server.backend == backend]
        staying = [server for server in members if server.is_serving and server.key not in leaving]
        wanted = enough(wish.min_healthy, len(members))
        if len(staying) < wanted:
            names = ", ".join(sorted(name for of, name in leaving if of == backend))
            raise Refused(
                f"without {names} the backend {backend} on {where} would have {len(staying)} healthy servers in "
                f"service, wants {wanted} (min_healthy={wish.min_healthy}); nothing was changed"
            )


def _goes_on(server: Server, wish: Wish) -> bool:
    if wish.weight and weight_of(wish.weight, server.initial_weight) == 0:
        return False
    return wish.state not in (DRAIN, MAINT)


def goal(server: Server, wish: Wish) -> dict[str, str | int]:
    """The administrative state and the weight in the end."""
    return {
        "admin": wish.state or server.admin,
        "weight": weight_of(wish.weight, server.initial_weight) if wish.weight else server.weight,
    }


def set_weight(server: Server, weight: int) -> list[str]:
    return [f"set server {server.label} weight {weight}"] if server.weight != weight else []


def set_admin(server: Server, admin: str, prove: bool = False) -> list[str]:
    """The commands that bring a server to an administrative state.

    A server that comes back from MAINT to DRAIN would be UP unseen, and persistent clients would reach it. So it, and
    any other one with `prove`, is down until its check says otherwise.
    """
    commands = [f"set server {server.label} state {admin}"] if server.admin != admin else []
    if admin == DRAIN and server.checked and (prove or server.admin == MAINT):
        commands.append(f"set server {server.label} health down")
    return commands


def wants_proof(server: Server, wish: Wish) -> bool:
    """Whether the server must be seen to be healthy before it is ready."""
    return wish.state == READY and wish.proof and server.checked and server.admin != READY


def first_admin(server: Server, wish: Wish) -> str:
    """The administrative state in which the server waits."""
    if wish.wait and (wants_proof(server, wish) or (wish.state == MAINT and server.admin == READY)):
        return DRAIN
    if wish.wait and wish.state == MAINT:
        return server.admin
    return wish.state or server.admin


def first_commands(server: Server, wish: Wish) -> list[str]:
    """Everything that is said before the wait."""
    commands = set_weight(server, int(goal(server, wish)["weight"]))
    if wants_proof(server, wish):
        commands += set_admin(server, DRAIN, prove=True)
        # Ready, but down until its check says otherwise: proof without waiting for it.
        return commands if wish.wait else [*commands, f"set server {server.label} state {READY}"]
    return commands + set_admin(server, first_admin(server, wish))


def restoring_commands(before: Server, now: Server) -> list[str]:
    """What brings a server back to where it was found."""
    commands = [f"set server {now.label} state {before.admin}"] if now.admin != before.admin else []
    return commands + set_weight(now, before.weight)


# --- Telling ---------------------------------------------------------------------------------------------------------

ANSWERS = {f"{digit}xx": f"hrsp_{digit}xx" for digit in range(2, 6)}
SERVER_COUNTERS = {"sessions": "stot", **ANSWERS, **{name: name for name in ("econ", "eresp", "wretr", "wredis")}}
FRONTEND_COUNTERS = {"requests": "req_tot", **ANSWERS, **{name: name for name in ("ereq", "dreq")}}


def _counters(stat: Mapping[str, str], columns: Mapping[str, str]) -> dict[str, int]:
    return {name: int(stat.get(column) or 0) for name, column in columns.items()}


def describe_server(server: Server) -> dict[str, object]:
    return {
        "backend": server.backend,
        "server": server.name,
        "address": server.address,
        "port": server.port,
        **server.summary(),
        "checked": server.checked,
        "check_status": server.stat.get("check_status", ""),
        "check_description": server.stat.get("check_desc", ""),
        "sessions": server.sessions,
        "queue": server.queue,
        "counters": _counters(server.stat, SERVER_COUNTERS),
    }


def describe_frontend(stat: Mapping[str, str]) -> dict[str, object]:
    return {
        "frontend": stat["pxname"],
        "sessions": int(stat.get("scur") or 0),
        "counters": _counters(stat, FRONTEND_COUNTERS),
    }


def describe_old_worker(pid: int, sessions: Mapping[Key, int], keys: Iterable[Key]) -> dict[str, object]:
    """The sessions of an old worker at the servers that are asked for, and all of them."""
    servers = [
        {"backend": backend, "server": name, "sessions": sessions[backend, name]}
        for backend, name in keys
        if sessions.get((backend, name))
    ]
    return {"pid": pid, "sessions": sum(sessions.values()), "servers": servers}


# An early end of a soak wants so many errors: a first one alone may be bad luck.
SOAK_EARLY = 5


def soak_problem(then: Back, now: Server, soak_errors: str, over: bool) -> str:
    """What is wrong with a server that has just come back, from its counters then and now; empty when nothing is."""
    errors, responses = now.errors - then.errors, now.responses - then.responses
    if errors <= errors_allowed(soak_errors, max(responses, errors)) or (not over and errors < SOAK_EARLY):
        return ""
    sent = max(responses, errors)
    return f"{errors} of {sent} requests to {now.label} failed after it came back (5xx, refused or broken off)"
