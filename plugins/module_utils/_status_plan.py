# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""What the answers of all hosts say about the cluster: what is wrong, what to do about it. Pure: no I/O, no Ansible."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils._postgresql_settings_plan import slot_name

# Stands in advice for all hosts that a problem is about, as --limit takes them.
HOST = "<host>"
CRITICAL = "critical"  # visitors notice, or one more failure makes them notice
WARNING = "warning"
BACKENDS = ("django", "nginx_static")
DAY = 86400
MIB = 1 << 20


def synchronous(setting: object) -> int:
    """How many standbys a commit waits for, as synchronous_standby_names says it."""
    text = str(setting or "").strip()
    if not text:
        return 0
    found = re.match(r"(?:ANY|FIRST)?\s*(\d+)\s*\(", text, re.IGNORECASE)
    return int(found[1]) if found else 1


# --- What is asked for -----------------------------------------------------------------------------------------------


# The limits by their names without status_: the least, the most, and how that is said.
RANGES: dict[str, tuple[float, float, str]] = {
    "timeout": (1, 600, "seconds from 1 to 600"),
    "certificate_days": (0, 3650, "days from 0 to 3650"),
    "disk_percent": (1, 100, "a percentage from 1 to 100"),
    "memory_percent": (1, 100, "a percentage from 1 to 100"),
    "connections_percent": (1, 100, "a percentage from 1 to 100"),
    "lag_mb": (0, 1 << 20, "MiB from 0 on"),
    "lock_minutes": (0, 1 << 20, "minutes from 0 on"),
}
FORMATS = ("table", "json")


@dataclass(frozen=True)
class Limits:
    """Beyond these something is a problem. (The time-out is what the hosts were given, and only checked here.)"""

    certificate_days: float = 14
    disk_percent: float = 90
    memory_percent: float = 90
    connections_percent: float = 90
    lag_mb: float = 16
    lock_minutes: float = 60
    timeout: float = 5


def setting_problems(limits: Mapping[str, Any], shown_as: Any) -> list[str]:
    """What is wrong with the variables of a status: their name, what they got and what they want."""
    found = []
    if shown_as not in FORMATS:
        found.append(f"status_format: got {shown_as!r}, wants {' or '.join(FORMATS)}")
    for name, value in limits.items():
        least, most, words = RANGES[name]
        # -e makes texts of numbers.
        good = not isinstance(value, bool) and re.fullmatch(r"\d+(\.\d+)?", str(value))
        if not good or not least <= float(str(value)) <= most:
            found.append(f"status_{name}: got {value!r}, wants {words}")
    return found


def limits_from(values: Mapping[str, Any]) -> Limits:
    """The limits from variables."""
    if problems := setting_problems(values, FORMATS[0]):
        raise ValueError("; ".join(problems))
    return Limits(**{name: float(str(value)) for name, value in values.items()})


@dataclass(frozen=True)
class Cluster:
    """What the inventory says, and which of its hosts were asked."""

    domain: str
    tiers: Mapping[str, Sequence[str]]
    addresses: Mapping[str, str]
    asked: Sequence[str]
    weights: Mapping[str, int] = field(default_factory=dict)
    shared: Sequence[str] = ()

    def members(self, tier: str) -> list[str]:
        return list(self.tiers.get(tier, ()))

    @property
    def lock_host(self) -> str:
        return next(iter(self.tiers.get("django", ())), "")

    def named(self, address: str | None) -> str:
        """The host that has an address, or the address itself."""
        return next((name for name, own in self.addresses.items() if own == address), address or "-")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what to do about it."""

    where: tuple[str, ...]
    what: str
    todo: str
    severity: str = WARNING


Answers = Mapping[str, Mapping[str, Any]]


class Findings:
    """What was found so far. Equal things on several hosts are one."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[str]] = {}
        self.notes: list[str] = []

    def add(self, where: str | Iterable[str], what: str, todo: str, severity: str = WARNING) -> None:
        names = self._found.setdefault((what, todo, severity), [])
        names += [name for name in ([where] if isinstance(where, str) else where) if name not in names]

    def problems(self) -> list[Problem]:
        """The urgent ones first."""
        found = [
            Problem(tuple(names), what, todo.replace(HOST, ",".join(names)), severity)
            for (what, todo, severity), names in self._found.items()
        ]
        return sorted(found, key=lambda problem: problem.severity != CRITICAL)


# --- The whole -------------------------------------------------------------------------------------------------------


def report(
    cluster: Cluster, answers: Answers, limits: Limits, now: float, lock_is_dead: Callable[[Mapping[str, Any]], bool]
) -> dict[str, Any]:
    """Everything about the cluster, in plain values, with `ok`, `problems` and `notes`.

    `answers` has what each host that was asked answered, by the names of its tiers and `host`, or what went wrong
    there: `unreachable` or `failed` with the reason.
    """
    found = Findings()
    _host_problems(cluster, answers, found)
    lock = _lock(cluster, answers, limits, now, lock_is_dead, found)
    content: dict[str, Any] = {
        "domain": cluster.domain,
        "at": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "not_asked": [name for name in _all(cluster) if name not in cluster.asked],
        "lock": lock,
        "django": _django(cluster, answers, lock, found),
        "nginx_static": _static(cluster, answers, found),
        "haproxy": _balancers(cluster, answers, limits, now, found),
        "postgresql": _postgresql(cluster, answers, limits, found),
        "redis": _redis(cluster, answers, limits, found),
        "disks": _disks(cluster, answers, limits, found),
        "alerts": _alerts(cluster, answers, found),
    }
    # A server that is down for a reason which its own host told needs no second line.
    explained = {
        row["node"]
        for row in (*content["django"], *content["nginx_static"])
        if row["state"] not in ("active", "not asked") or row["health"] not in ("", "ok")
    }
    content["servers"] = _servers(cluster, answers, lock, explained, found)
    problems = found.problems()
    return {
        "ok": not problems,
        "problems": [{**asdict(problem), "where": list(problem.where)} for problem in problems],
        "notes": found.notes,
        **content,
    }


def concerns(report: Mapping[str, Any], about: Sequence[str] | None) -> bool:
    """Whether anything is wrong, or anything with one of the hosts that it is about."""
    if about is None:
        return not report["ok"]
    return any(set(problem["where"]) & set(about) for problem in report["problems"])


def _all(cluster: Cluster) -> list[str]:
    return list(dict.fromkeys(name for names in cluster.tiers.values() for name in names))


def part_of(answers: Answers, name: str, tier: str) -> Mapping[str, Any]:
    """What a host said about a tier; nothing when it said why it could not."""
    part = (answers.get(name) or {}).get(tier) or {}
    return {} if list(part) == ["error"] else part


def _error(answers: Answers, name: str, tier: str) -> str:
    part = (answers.get(name) or {}).get(tier) or {}
    return str(part["error"]) if list(part) == ["error"] else ""


def _unit(answers: Answers, name: str, unit: str) -> str:
    return str((part_of(answers, name, "host").get("units") or {}).get(unit, ""))


def _silent(answers: Answers, name: str) -> bool:
    answer = answers.get(name) or {}
    return bool(answer.get("unreachable") or answer.get("failed"))


def _host_problems(cluster: Cluster, answers: Answers, found: Findings) -> None:
    for name in cluster.asked:
        answer = answers.get(name) or {}
        if why := answer.get("unreachable"):
            found.add(
                name,
                f"cannot be reached: {_line(why)}",
                "start it or mend its network; a new machine in its place: playbooks/site.yml; without it for now: "
                f"playbooks/site.yml --limit 'all:!{name}'",
                CRITICAL,
            )
        elif why := answer.get("failed"):
            found.add(name, f"could not be asked: {_line(why)}", f"log in to {name} and look", CRITICAL)
        elif why := _error(answers, name, "host"):
            found.add(name, f"could not be asked about itself: {_line(why)}", f"log in to {name} and look")


def _line(text: object, limit: int = 160) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= limit else words[: limit - 3] + "..."


# --- The lock of deploys ---------------------------------------------------------------------------------------------


def _lock(
    cluster: Cluster,
    answers: Answers,
    limits: Limits,
    now: float,
    is_dead: Callable[[Mapping[str, Any]], bool],
    found: Findings,
) -> dict[str, Any]:
    """Who deploys at the moment. `state` is free, held, left (it ended and left nodes behind) or unknown."""
    name = cluster.lock_host
    part = part_of(answers, name, "django")
    if not part:
        return {"state": "unknown", "nodes": []}
    lock = dict(part.get("lock") or {})
    nodes = list(lock.get("nodes") or [])
    if not lock.get("id"):
        if nodes:
            found.add(
                nodes,
                "an earlier deploy failed and left them out of service"
                if len(nodes) > 1
                else "an earlier deploy failed and left it out of service",
                "playbooks/deploy.yml, or playbooks/rollback.yml: either goes on there",
            )
        return {"state": "left" if nodes else "free", "nodes": nodes}
    kind, minutes = str(lock.get("kind") or "deploy"), max(0, int((now - float(lock.get("since") or now)) // 60))
    owner = f"{lock.get('user', '?')}@{lock.get('host', '?')}"
    again = "playbooks/site.yml" if kind == "site.yml" else "playbooks/deploy.yml, or playbooks/rollback.yml"
    if is_dead(lock):
        found.add(
            name,
            f"the {kind} of {owner} was interrupted {minutes} min ago and holds the lock",
            f"{again}: goes on there",
        )
    elif minutes >= limits.lock_minutes:
        found.add(
            name,
            f"the {kind} of {owner} has held the lock for {minutes} min",
            f"ask {owner}; if it died: {again} with -e deploy_take_over_lock=true",
        )
    else:
        found.notes.append(f"{owner} runs a {kind} since {minutes} min ({lock.get('phase') or 'begins'})")
    since = datetime.fromtimestamp(float(lock.get("since") or now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "state": "held",
        "by": owner,
        "kind": kind,
        "since": since,
        "minutes": minutes,
        "phase": lock.get("phase") or "",
        "nodes": nodes,
    }


# --- Django and the static servers -----------------------------------------------------------------------------------


def _django(cluster: Cluster, answers: Answers, lock: Mapping[str, Any], found: Findings) -> list[dict[str, Any]]:
    rows = []
    for name in cluster.members("django"):
        part = part_of(answers, name, "django")
        row = {"node": name, "state": "", "release": "", "current": "", "workers": 0, "health": ""}
        if part:
            row |= {
                "release": part["release"] or "",
                "current": part["current"] or "",
                "workers": part.get("workers", 0),
            }
            row["state"], row["health"] = _django_node(name, part, lock, found)
        elif why := _error(answers, name, "django"):
            row["state"] = "unknown"
            found.add(name, f"its Django could not be looked at: {_line(why)}", f"playbooks/site.yml --limit {HOST}")
        else:
            row["state"] = "unreachable" if _silent(answers, name) else "not asked"
        rows.append(row)
    releases = {row["release"]: row["node"] for row in reversed(rows) if row["release"]}
    if len(releases) > 1 and lock["state"] != "held":
        found.add(
            sorted(str(row["node"]) for row in rows if row["release"]),
            f"run different releases: {', '.join(sorted(map(str, releases)))}",
            "playbooks/deploy.yml with the wanted django_version, or playbooks/rollback.yml",
        )
    return rows


def _django_node(name: str, part: Mapping[str, Any], lock: Mapping[str, Any], found: Findings) -> tuple[str, str]:
    """The state of the service and of the node's health. A node that is being deployed may be in any."""
    deployed = lock["state"] == "held" and name in lock["nodes"]
    state = str((part.get("units") or {}).get("django.service", "unknown"))
    health = part.get("health") or {}
    for unit, seen in (part.get("units") or {}).items():
        if seen != "active" and not deployed:
            last = unit == "django.service" and not part.get("current")
            what = "runs no release yet" if last else f"{unit} is {seen}"
            todo = f"playbooks/site.yml --limit {HOST} starts it; why it ended: journalctl -u {unit} on {HOST}"
            found.add(name, what, "playbooks/site.yml" if last else todo)
    if state != "active" or deployed:
        return state, ""
    if part["release"] and part["current"] and part["release"] != part["current"]:
        found.add(
            name,
            f"runs {part['release']}, and {part['current']} is the one to run",
            f"playbooks/site.yml --limit {HOST}",
        )
    if health.get("status") == 200:
        return state, "ok"
    reasons = health.get("reasons") or [health.get("error") or f"HTTP {health.get('status')}"]
    why = _line("; ".join(str(reason) for reason in reasons))
    found.add(
        name, f"is not well: {why}", "look below at the database and Redis first; else journalctl -u django on the node"
    )
    return state, why


def _static(cluster: Cluster, answers: Answers, found: Findings) -> list[dict[str, Any]]:
    rows = []
    for name in cluster.members("nginx_static"):
        part = part_of(answers, name, "nginx_static")
        unit = _unit(answers, name, "nginx.service")
        row = {"node": name, "state": unit, "health": ""}
        if part:
            status = int((part.get("health") or {}).get("status") or 0)
            row["health"] = "ok" if 200 <= status < 400 else f"HTTP {status}" if status else "no answer"
        elif not unit:
            row["state"] = "unreachable" if _silent(answers, name) else "not asked"
        if unit and unit != "active":
            found.add(
                name,
                f"nginx.service is {unit}",
                f"playbooks/site.yml --limit {HOST} starts it; why it ended: journalctl -u nginx on {HOST}",
            )
        elif row["health"] not in ("", "ok"):
            found.add(name, f"Nginx answers its health page with {row['health']}", f"playbooks/site.yml --limit {HOST}")
        rows.append(row)
    return rows


# --- The balancers ---------------------------------------------------------------------------------------------------


def _balancers(cluster: Cluster, answers: Answers, limits: Limits, now: float, found: Findings) -> list[dict[str, Any]]:
    rows = []
    holders: dict[str, list[str]] = {address: [] for address in cluster.shared}
    names = cluster.members("haproxy")
    for name in names:
        part, host = part_of(answers, name, "haproxy"), part_of(answers, name, "host")
        held = [address for address in cluster.shared if address in (host.get("addresses") or ())]
        for address in held:
            holders[address].append(name)
        days = [int((item["ends"] - now) // DAY) for item in part.get("certificates") or () if item["ends"] is not None]
        row = {
            "node": name,
            "haproxy": "up" if part else "",
            "keepalived": _unit(answers, name, "keepalived.service") if cluster.shared else "",
            "drained": bool(part.get("drained")),
            "holds": held,
            "sessions": sum(
                item["sessions"] for item in part.get("frontends") or () if item["frontend"] in ("http", "https")
            ),
            "certificate_days": min(days) if days else None,
        }
        if not part:
            row["haproxy"] = "unreachable" if _silent(answers, name) else "not asked"
        if why := _error(answers, name, "haproxy"):
            row["haproxy"] = "down"
            found.add(
                name,
                f"HAProxy does not answer: {_line(why)}",
                f"playbooks/site.yml --limit {HOST} starts it; why it ended: journalctl -u haproxy on {HOST}",
                CRITICAL,
            )
        if row["keepalived"] not in ("", "active"):
            found.add(
                name,
                f"keepalived.service is {row['keepalived']}, so it takes no shared address",
                f"playbooks/site.yml --limit {HOST} starts it",
            )
        if row["drained"]:
            found.add(name, "is drained and takes no shared address", f"playbooks/undrain.yml -e drain_host={name}")
        _certificates(name, days, limits, found)
        rows.append(row)
    asked = [name for name in names if part_of(answers, name, "host")]
    for address, having in holders.items():
        if len(having) > 1:
            found.add(
                having,
                f"both hold {address}" if len(having) == 2 else f"all hold {address}",
                "they do not hear each other: look at the network between them (VRRP is IP protocol 112)",
                CRITICAL,
            )
        elif not having and len(asked) == len(names):
            found.add(
                names,
                f"nobody holds {address}: the site cannot be reached there",
                "playbooks/site.yml --tags haproxy; if all are drained: playbooks/undrain.yml",
                CRITICAL,
            )
    return rows


def _certificates(name: str, days: Sequence[int], limits: Limits, found: Findings) -> None:
    if not days or min(days) >= limits.certificate_days:
        return
    left = min(days)
    found.add(
        name,
        f"its certificate ends in {left} days" if left >= 0 else "its certificate has expired",
        "a new haproxy_tls_certificate and key (of your own authority: playbooks/certificates.yml), then "
        "playbooks/site.yml --tags haproxy; with ACME: systemctl status haproxy-acme.service there",
        WARNING if left >= 3 else CRITICAL,
    )


def _servers(
    cluster: Cluster, answers: Answers, lock: Mapping[str, Any], explained: set[str], found: Findings
) -> list[dict[str, Any]]:
    """Every server as every balancer sees it."""
    balancers = [name for name in cluster.members("haproxy") if part_of(answers, name, "haproxy")]
    seen: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {
        (tier, name): {} for tier in BACKENDS for name in cluster.members(tier)
    }
    for balancer in balancers:
        for server in part_of(answers, balancer, "haproxy")["servers"]:
            if server["backend"] in BACKENDS:
                seen.setdefault((server["backend"], server["server"]), {})[balancer] = server
    closed = [
        tier
        for tier in BACKENDS
        if balancers
        and (parts := [by for (backend, _), by in seen.items() if backend == tier and by])
        and all(server["admin"] == "maint" for by in parts for server in by.values())
    ]
    for tier, name in seen:
        _server(cluster, (tier, name), seen[tier, name], balancers, lock, (name in explained, tier in closed), found)
    for tier in BACKENDS:
        _backend(tier, seen, balancers, closed, found)
    return [
        {
            "backend": tier,
            "server": name,
            "weight": next((server["weight"] for server in by.values()), None),
            "balancers": {
                balancer: {key: server[key] for key in ("admin", "operational", "sessions", "queue", "weight")}
                for balancer, server in by.items()
            },
        }
        for (tier, name), by in seen.items()
    ]


def _server(
    cluster: Cluster,
    key: tuple[str, str],
    by: Mapping[str, Mapping[str, Any]],
    balancers: Sequence[str],
    lock: Mapping[str, Any],
    known: tuple[bool, bool],
    found: Findings,
) -> None:
    """`known` says whether its own host told why it is down, and whether its whole backend is in maintenance."""
    tier, name = key
    explained, closed = known
    if name not in cluster.members(tier):
        found.add(
            name, f"gets requests from {_and(by)}, and is not in the group {tier}", "playbooks/site.yml takes it out"
        )
        return
    missing = [balancer for balancer in balancers if balancer not in by]
    if missing:
        found.add(name, f"is not known to {_and(missing)}", "playbooks/site.yml brings it into service")
    drained = {balancer: server["admin"] for balancer, server in by.items() if server["admin"] != "ready"}
    if drained:
        if name not in lock["nodes"] and not closed:
            states = " and ".join(sorted(set(drained.values())))
            found.add(name, f"is in state {states} on {_and(drained)}", f"playbooks/undrain.yml -e drain_host={name}")
        return
    down = {balancer: server for balancer, server in by.items() if server["operational"] != "up"}
    if down and not explained:
        first = next(iter(down.values()))
        why = ": ".join(str(first.get(part)) for part in ("check_status", "check_description") if first.get(part))
        found.add(
            name,
            f"is {first['operational']} for {_and(down)} ({why or 'no check yet'})",
            f"look at the network and the firewall between them; playbooks/site.yml --limit {HOST}",
        )
    weights = sorted({int(server["weight"]) for server in by.values()})
    wanted = cluster.weights.get(name)
    if tier == "django" and wanted and weights and weights != [wanted]:
        found.notes.append(
            f"{name} has the weight {_and(map(str, weights))}, set at run time; the inventory says {wanted}"
        )


def _backend(
    tier: str,
    seen: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]],
    balancers: Sequence[str],
    closed: Sequence[str],
    found: Findings,
) -> None:
    if tier in closed:
        found.add(
            balancers,
            f"all servers of {tier} are in maintenance: visitors see the maintenance page",
            "playbooks/maintenance.yml -e maintenance=off",
            CRITICAL,
        )
        return
    empty = [
        balancer
        for balancer in balancers
        if not any(_serves(by[balancer]) for (backend, _), by in seen.items() if backend == tier and balancer in by)
        and any(backend == tier and balancer in by for (backend, _), by in seen.items())
    ]
    if empty:
        found.add(
            empty,
            f"no server of {tier} takes requests: visitors see an error",
            f"the lines about the hosts of {tier} say why; all at once: playbooks/site.yml --tags {tier}",
            CRITICAL,
        )


def _serves(server: Mapping[str, Any]) -> bool:
    return server["admin"] == "ready" and server["operational"] == "up" and int(server["weight"]) > 0


def _and(names: Iterable[str]) -> str:
    return ", ".join(names)


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def _postgresql(cluster: Cluster, answers: Answers, limits: Limits, found: Findings) -> list[dict[str, Any]]:
    names = cluster.members("postgresql")
    nodes = {name: part for name in names if (part := part_of(answers, name, "postgresql"))}
    primaries = [name for name, node in nodes.items() if node["accepting"] and node["role"] == "primary"]
    primary = primaries[0] if len(primaries) == 1 else ""
    everybody = all(name in cluster.asked for name in names)
    streams = {item["name"]: item for item in (nodes[primary]["downstreams"] if primary else ())}
    for name in names:
        if why := _error(answers, name, "postgresql"):
            found.add(name, f"its PostgreSQL could not be asked: {_line(why)}", f"playbooks/site.yml --limit {HOST}")
    for name, node in nodes.items():
        _database(name, node, primary, streams, limits, found, everybody)
    if len(primaries) > 1:
        oldest = min(primaries, key=lambda name: nodes[name]["timeline"] or 0)
        what = ", ".join(f"{name} on timeline {nodes[name]['timeline']}" for name in primaries)
        found.add(
            primaries,
            f"more than one primary takes writes ({what})",
            f"at once: playbooks/rejoin.yml -e postgresql_member={oldest} (docs/primary.md)",
            CRITICAL,
        )
    elif names and not primaries and everybody:
        _no_primary(names, nodes, found)
    if primary:
        _primary(primary, nodes[primary], names, limits, found)
    return [_database_row(cluster, answers, name, nodes.get(name), streams) for name in names]


def _no_primary(names: Sequence[str], nodes: Answers, found: Findings) -> None:
    stopped = [name for name, node in nodes.items() if node["role"] == "primary" and not node["running"]]
    startable = [name for name in stopped if nodes[name].get("start") != "disabled"]
    if startable:
        todo = "playbooks/site.yml --tags postgresql starts it; if it cannot: playbooks/failover.yml"
        found.add(startable, "was the primary and is stopped: nothing can be written", todo, CRITICAL)
    else:
        missing = [name for name in names if name not in nodes]
        # Whoever did not answer may be the primary and merely busy: that is not said to be an outage.
        what, todo = (
            "none of them is the primary: nothing can be written",
            "if the primary does not come back by itself: ",
        )
        if missing:
            what = f"there is no primary among those that answered; {_and(missing)} did not"
            todo = f"playbooks/status.yml -e status_timeout=20 waits for longer; {todo}"
        found.add(names, what, f"{todo}playbooks/failover.yml (docs/primary.md)", CRITICAL)


def _database(
    name: str,
    node: Mapping[str, Any],
    primary: str,
    streams: Mapping[str, Mapping[str, Any]],
    limits: Limits,
    found: Findings,
    everybody: bool,
) -> None:
    """What is wrong with one member, apart from who is the primary. `everybody`: whether all members were asked."""
    rejoin = f"playbooks/rejoin.yml -e postgresql_member={name}"
    if node["data"] != "present":
        found.add(
            name,
            "has no database yet" if node["data"] == "absent" else f"its data is {node['data']}",
            f"playbooks/site.yml; if that refuses: {rejoin}",
        )
    elif not node["running"]:
        if node.get("start") == "disabled":
            found.add(name, "its PostgreSQL was put out of action when the primary moved", rejoin)
        elif primary:
            role = "the former primary" if node["role"] == "primary" else "a replica"
            found.add(name, f"its PostgreSQL ({role}) is stopped", rejoin)
        elif node["role"] != "primary" or not everybody:
            found.add(name, "its PostgreSQL is stopped", f"when one of the others is the primary: {rejoin}")
    elif not node["accepting"]:
        found.add(
            name,
            f"its PostgreSQL runs and does not answer: {_line(node['error'])}",
            f"it may be starting or recovering: ask again; journalctl -u 'postgresql@*' on {HOST}",
        )
    elif node["role"] == "standby" and primary:
        seen = streams.get(name)
        if not seen or seen["state"] != "streaming":
            found.add(name, f"does not stream from the primary {primary}", rejoin)
        elif (seen["lag_bytes"] or 0) > limits.lag_mb * MIB:
            found.add(
                name,
                f"is {seen['lag_bytes'] // MIB} MiB behind {primary}",
                f"its disk or network is too slow (docs/sizing.md); when it does not shrink: {rejoin}",
            )
        if node["replay_paused"]:
            found.add(
                name,
                "somebody paused the replay",
                f"on {name}: runuser -u postgres -- psql -c 'SELECT pg_wal_replay_resume()'",
            )
    if node["settings_pending_restart"]:
        found.notes.append(
            f"{name} needs a restart for {_and(node['settings_pending_restart'])}: playbooks/restart_postgresql.yml"
        )
    if node["program_replaced"]:
        found.notes.append(f"{name} runs an older PostgreSQL than is installed: playbooks/restart_postgresql.yml")


def _primary(name: str, node: Mapping[str, Any], names: Sequence[str], limits: Limits, found: Findings) -> None:
    if node["archiver"] == "failing":
        found.add(
            name, "WAL cannot be archived, and fills the disk", f"archive_command and the log of PostgreSQL on {name}"
        )
    if needed := synchronous(node["synchronous_standby_names"]):
        have = sum(
            item["state"] == "streaming" and item["sync_state"] in ("sync", "quorum", "potential")
            for item in node["downstreams"]
        )
        if have < needed:
            found.add(
                name,
                f"every commit waits: {needed} synchronous standbys are wanted, {have} are there",
                "bring a replica back (playbooks/rejoin.yml -e postgresql_member=...), or lower "
                "postgresql_synchronous_standbys and run playbooks/site.yml --tags postgresql",
                CRITICAL,
            )
    own = {slot_name(member) for member in names}
    for slot, seen in sorted(node["slots"].items()):
        if slot not in own and not seen["active"] and not seen["temporary"] and seen["restart_lsn"]:
            kept = int(seen["retained_bytes"] or 0) // MIB
            found.notes.append(
                f"{name}: the slot {slot} belongs to no member, is not in use and keeps {kept} MiB of WAL"
            )
    most, sessions = node.get("max_connections"), node["sessions"] or 0
    if most and sessions * 100 >= limits.connections_percent * most:
        found.add(
            name,
            f"{sessions} of {most} connections are taken",
            "postgresql_max_connections, or fewer django_workers and django_threads (docs/sizing.md)",
        )


def _database_row(
    cluster: Cluster,
    answers: Answers,
    name: str,
    node: Mapping[str, Any] | None,
    streams: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "node": name,
        "role": "",
        "state": "",
        "timeline": None,
        "lag_bytes": None,
        "from": "",
        "sync": "",
        "sessions": None,
        "max_connections": None,
    }
    if not node:
        unknown = bool(_error(answers, name, "postgresql"))
        row["state"] = "unknown" if unknown else "unreachable" if _silent(answers, name) else "not asked"
        # The primary still knows whether it streams.
        return row | ({"role": "replica", "state": f"unreachable, {streams[name]['state']}"} if name in streams else {})
    row |= {"role": {"standby": "replica"}.get(node["role"], node["role"] or ""), "timeline": node["timeline"]}
    row |= {"sessions": node["sessions"], "max_connections": node.get("max_connections")}
    if node["data"] != "present":
        row["state"] = f"data {node['data']}"
    elif not node["running"]:
        row["state"] = "out of action" if node.get("start") == "disabled" else "stopped"
    elif not node["accepting"]:
        row["state"] = "does not answer"
    elif node["role"] == "primary":
        row["state"] = "takes writes"
    else:
        upstream, seen = node["upstream"] or {}, streams.get(name) or {}
        row["state"] = upstream.get("status") or "receives nothing"
        row["from"] = cluster.named(upstream.get("host")) if upstream else ""
        row |= {"lag_bytes": seen.get("lag_bytes"), "sync": seen.get("sync_state") or ""}
    return row


# --- Redis -----------------------------------------------------------------------------------------------------------


def _redis(cluster: Cluster, answers: Answers, limits: Limits, found: Findings) -> list[dict[str, Any]]:
    names = cluster.members("redis")
    nodes = {name: part for name in names if (part := part_of(answers, name, "redis"))}
    masters = [name for name, node in nodes.items() if node["state"] == "up" and node["role"] == "master"]
    for name in names:
        if why := _error(answers, name, "redis"):
            found.add(name, f"its Redis could not be asked: {_line(why)}", f"playbooks/site.yml --limit {HOST}")
    for name, node in nodes.items():
        _store(cluster, name, node, masters, limits, found)
    if len(masters) > 1:
        found.add(
            masters,
            "more than one Redis says that it is the master",
            "for ten seconds after one came back that is normal: ask again; then playbooks/site.yml --tags redis says "
            "which one to keep",
            CRITICAL,
        )
    elif names and not masters and all(name in cluster.asked for name in names):
        found.add(
            names,
            "none of them is the Redis master: nobody can log in",
            "Sentinel needs some seconds: ask again; then start what is down, and playbooks/site.yml --tags redis",
            CRITICAL,
        )
    return [_store_row(cluster, answers, name, nodes.get(name)) for name in names]


def _store(
    cluster: Cluster, name: str, node: Mapping[str, Any], masters: Sequence[str], limits: Limits, found: Findings
) -> None:
    site = f"playbooks/site.yml --limit {HOST}"
    if node["state"] != "up":
        why = f": {_line(node['detail'])}" if node["detail"] else ""
        found.add(
            name,
            f"its Redis is {node['state']}{why}",
            f"{site} starts it; why it ended: journalctl -u redis-server on {HOST}",
        )
    elif node["role"] == "replica":
        master = cluster.addresses.get(masters[0]) if len(masters) == 1 else None
        if not node["link_up"]:
            found.add(name, f"its Redis has no link to the master {cluster.named(node['master_address'])}", site)
        elif master and node["master_address"] != master:
            found.add(
                name, f"its Redis follows {cluster.named(node['master_address'])}, not the master {masters[0]}", site
            )
    limit, used = node["memory_limit_bytes"] or 0, node["memory_bytes"] or 0
    if limit and used * 100 >= limits.memory_percent * limit:
        found.add(
            name,
            f"its Redis uses {used // MIB} of {limit // MIB} MiB",
            "more redis_maxmemory_mb, or a shorter SESSION_COOKIE_AGE and manage.py clearsessions (docs/sizing.md)",
        )
    sentinel = node["sentinel"]
    if not sentinel:
        return
    if sentinel["state"] != "up":
        found.add(name, f"its Sentinel is {sentinel['state']}", f"{site} starts it")
    elif not sentinel["master_address"]:
        found.add(name, "its Sentinel watches no master", site)
    elif not sentinel["quorum"].startswith("OK"):
        found.add(
            name,
            f"its Sentinel finds no quorum, so nobody would replace the master: {_line(sentinel['quorum'])}",
            "start the other Sentinels (playbooks/site.yml --tags redis)",
            CRITICAL,
        )
    elif sentinel["flags"] != ["master"]:
        found.add(
            name,
            f"its Sentinel says of the master: {_and(sentinel['flags'])}",
            "ask again in some seconds; a failover may go on",
        )
    elif len(masters) == 1 and sentinel["master_address"] != cluster.addresses.get(masters[0]):
        found.add(
            name, f"its Sentinel watches {cluster.named(sentinel['master_address'])}, not the master {masters[0]}", site
        )
    strangers = [
        item
        for item in sentinel["others"]
        if item not in {cluster.addresses.get(one) for one in cluster.members("redis")}
    ]
    if strangers:
        found.add(name, f"its Sentinel counts {_and(strangers)}, which is no member", site)


def _store_row(cluster: Cluster, answers: Answers, name: str, node: Mapping[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "node": name,
        "role": "",
        "state": "",
        "from": "",
        "link": "",
        "memory_bytes": None,
        "memory_limit_bytes": None,
        "sentinel": "",
    }
    if not node:
        unknown = bool(_error(answers, name, "redis"))
        return row | {"state": "unknown" if unknown else "unreachable" if _silent(answers, name) else "not asked"}
    row |= {key: node[key] for key in ("role", "state", "memory_bytes", "memory_limit_bytes")}
    if node["role"] == "replica":
        row |= {"from": cluster.named(node["master_address"]), "link": "up" if node["link_up"] else "down"}
    sentinel = node["sentinel"]
    if sentinel:
        quorum = sentinel["quorum"].startswith("OK")
        row["sentinel"] = sentinel["state"]
        if sentinel["state"] == "up":
            sees = cluster.named(sentinel["master_address"]) if sentinel["master_address"] else "nobody"
            row["sentinel"] = f"{'quorum' if quorum else 'no quorum'}, sees {sees}"
    return row


# --- Disks and alerts ------------------------------------------------------------------------------------------------


def _disks(cluster: Cluster, answers: Answers, limits: Limits, found: Findings) -> list[dict[str, Any]]:
    """All file systems, the fullest first."""
    rows = []
    for name in cluster.asked:
        for disk in part_of(answers, name, "host").get("disks") or ():
            rows.append({"node": name, **disk})
            fullest = max(disk["used_percent"], disk["inodes_percent"])
            if fullest >= limits.disk_percent:
                what = "inodes" if disk["inodes_percent"] > disk["used_percent"] else "space"
                found.add(
                    name,
                    f"{disk['mount']} has {100 - fullest} % of its {what} left",
                    f"make room on {name} (old WAL, logs, releases: django_keep_releases), or give it a larger disk",
                    CRITICAL if fullest >= 98 else WARNING,
                )
    return sorted(rows, key=lambda row: -row["used_percent"])


def _alerts(cluster: Cluster, answers: Answers, found: Findings) -> dict[str, Any]:
    """Alerts that fire now. `asked` is none without a group prometheus."""
    names = cluster.members("prometheus")
    asked = [name for name in names if name in cluster.asked]
    firing: dict[tuple[str, str], dict[str, Any]] = {}
    answered = False
    for name in asked:
        part = part_of(answers, name, "prometheus")
        if why := _error(answers, name, "prometheus"):
            found.add(
                name, f"Prometheus and Alertmanager cannot be asked: {_line(why)}", f"playbooks/site.yml --limit {HOST}"
            )
        if not part:
            continue
        answered = True
        if part["problem"]:
            found.add(name, _line(part["problem"]), f"playbooks/site.yml --limit {HOST}")
        for alert in part["alerts"]:
            labels, notes = alert.get("labels") or {}, alert.get("annotations") or {}
            if alert.get("state", "firing") != "firing" and part["source"] == "prometheus":
                continue
            if labels.get("alertname") == "Watchdog" or labels.get("severity") == "none":
                continue
            where = str(labels.get("host") or labels.get("instance") or labels.get("job") or "the cluster")
            key = str(labels.get("alertname")), where
            firing[key] = {
                "alert": key[0],
                "where": where,
                "severity": str(labels.get("severity") or WARNING),
                "since": str(alert.get("startsAt") or alert.get("activeAt") or ""),
                "summary": _line(notes.get("summary") or notes.get("description") or ""),
                "todo": _line(notes.get("todo") or notes.get("action") or notes.get("runbook_url") or ""),
            }
    for item in firing.values():
        found.add(
            item["where"],
            f"alert {item['alert']}" + (f": {item['summary']}" if item["summary"] else ""),
            item["todo"] or "the lines about the same host here, and the alert's page on the monitoring host",
            CRITICAL if item["severity"] == "critical" else WARNING,
        )
    state = "none" if not names else "not asked" if not asked else "asked" if answered else "unreachable"
    return {"state": state, "firing": list(firing.values())}
