# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""What a deploy decides: in which order nodes are switched, whether it may begin, whose lock it is. Pure: no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils._haproxy_plan import errors_allowed

PERCENT = re.compile(r"(\d+)%")


def batch_size(wanted: Any, nodes: int) -> int:
    """How many nodes are switched at a time: a number, or a percentage of all nodes (rounded down, at least one)."""
    text = str(wanted).strip()
    percent = PERCENT.fullmatch(text)
    if percent and 1 <= int(percent[1]) <= 100:
        return max(1, nodes * int(percent[1]) // 100)
    if text.isdecimal() and int(text) >= 1 and not isinstance(wanted, bool):
        return int(text)
    raise ValueError(f"deploy_batch: got {wanted!r}, wants a number of nodes from 1 on or a percentage from 1% to 100%")


SECONDS = ("deploy_drain_timeout", "deploy_ready_timeout", "deploy_soak", "deploy_canary_soak", "deploy_lock_wait")
CHOICES = {
    "deploy_on_failure": ("rollback", "stop"),
    "deploy_drain_on_timeout": ("fail", "maint", "shutdown"),
}
SWITCHES = ("deploy_take_over_lock", "deploy_without_balancers")
COUNTS = ("deploy_min_healthy", "deploy_min_free_mb")
COMMANDS = ("deploy_before_migrate", "deploy_after_switch", "deploy_after_finish")


def setting_problems(settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with the variables of a deploy: their name, what they got and what they want."""
    found = []

    def check(name: str, good: bool, wants: str) -> None:
        if not good:
            found.append(f"{name}: got {settings[name]!r}, wants {wants}")

    try:
        batch_size(settings["deploy_batch"], 1)
    except ValueError as error:
        found.append(str(error))
    for name, choices in CHOICES.items():
        check(name, settings[name] in choices, " or ".join(choices))
    for name in SECONDS:
        check(name, bool(re.fullmatch(r"\d+(\.\d+)?", str(settings[name]))), "seconds from 0 on")
    for name in COUNTS:
        check(name, str(settings[name]).isdecimal(), "a number from 0 on")
    for name in SWITCHES:
        check(name, str(settings[name]).lower() in ("true", "false", "yes", "no", "1", "0"), "true or false")
    try:
        errors_allowed(str(settings["deploy_soak_errors"]), 0)
        good = True
    except ValueError:
        good = False
    check("deploy_soak_errors", good, "a number of requests or a percentage to 100%")
    for name in COMMANDS:
        commands = settings[name]
        good = isinstance(commands, list) and all(isinstance(one, str) and one.strip() for one in commands)
        check(name, good, "a list of commands, each a text")
    return found


def batches(nodes: Sequence[str], size: Any, first: Sequence[str] = ()) -> list[list[str]]:
    """The nodes in the order in which they are switched.

    Those that are out of service anyway (left over by an interrupted deploy) come first and together: nobody misses
    them. Then one node alone, the canary, and then batches of `size`.
    """
    number = batch_size(size, len(nodes))
    waiting = [node for node in nodes if node in first]
    serving = [node for node in nodes if node not in first]
    found = [waiting] if waiting else []
    if serving:
        found.append(serving[:1])
        rest = serving[1:]
        found.extend(rest[start : start + number] for start in range(0, len(rest), number))
    return found


def problems(
    nodes: Sequence[str],
    balancers: Mapping[str, Sequence[Mapping[str, Any]]],
    unfinished: Sequence[str],
    unhealthy: Mapping[str, str],
    size: Any,
    min_healthy: int,
) -> list[str]:
    """Why the deploy may not begin; empty when it may.

    `balancers` has the servers of the backend django as each balancer knows them, `unfinished` the nodes that an
    interrupted deploy was working at, `unhealthy` what serving nodes say about themselves when they are not well.
    """
    found: list[str] = []
    serving: set[str] = set(nodes)
    for balancer, servers in sorted(balancers.items()):
        known = {server["server"]: server for server in servers}
        for node in nodes:
            server = known.get(node)
            if server is None:
                found.append(f"{balancer} does not know the node {node}: run site.yml first")
                continue
            if server["admin"] != "ready" or server["operational"] != "up":
                serving.discard(node)
            if server["admin"] != "ready" and node not in unfinished:
                found.append(
                    f"{node} is in state {server['admin']} on {balancer}, and not by a deploy: bring it back with "
                    f"undrain.yml, or leave it out with --limit"
                )
    found.extend(f"{node} is not well: {why}" for node, why in sorted(unhealthy.items()) if node in serving)
    largest = max((len(batch) for batch in batches([n for n in nodes if n in serving], size)), default=0)
    if serving and len(serving) - largest < min_healthy:
        found.append(
            f"{len(serving)} nodes serve, and with {largest} of them taken out (deploy_batch: {size}) fewer than "
            f"{min_healthy} would be left (deploy_min_healthy)"
        )
    return found


# Where a deploy writes: releases, the environment's packages and the lock.
WRITTEN = ("/srv", "/var/lib")


def seen(answers: Mapping[str, Mapping[str, Any]], min_free_mb: int) -> dict[str, Any]:
    """What the hosts' answers to status_info say to a deploy.

    `servers`: those of the backend django, by balancer; `unhealthy`: nodes that are not well, and why; `problems`: why
    the deploy may not begin, as far as a host can say alone.
    """
    found: dict[str, Any] = {"servers": {}, "unhealthy": {}, "problems": []}
    for host, parts in answers.items():
        if "haproxy" in parts:
            found["servers"][host] = [
                server for server in parts["haproxy"].get("servers", []) if server["backend"] == "django"
            ]
        for part in ("host", "haproxy", "nginx_static"):
            if why := _not_well(parts.get(part, {})):
                found["problems"].append(f"{host} is not well ({part}): {why}")
        if "django" in parts and (why := _not_well(parts["django"])):
            found["unhealthy"][host] = why
        if "django" in parts or "nginx_static" in parts:
            found["problems"] += [
                f"{host} has {free} MiB free at {mount}, wants {min_free_mb} (deploy_min_free_mb)"
                for mount, free in _free_mb(parts["host"].get("disks", [])).items()
                if free < min_free_mb
            ]
    return found


def _not_well(part: Mapping[str, Any]) -> str:
    """What a part of an answer complains of: it was not read, or its health address does not say 200."""
    health = part.get("health", {})
    if health.get("status", 200) == 200:
        return str(part.get("error") or "")
    reasons = health.get("reasons") or [health.get("error") or f"HTTP {health['status']}"]
    return ", ".join(str(reason) for reason in reasons)


def _free_mb(disks: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The free MiB of the file systems that a deploy writes to, by the place at which they are mounted."""
    free = {str(disk["mount"]): int(disk["free_bytes"]) // 2**20 for disk in disks}
    on = {
        max((mount for mount in free if f"{path}/".startswith(f"{mount.rstrip('/')}/")), key=len, default="")
        for path in WRITTEN
    }
    return {mount: free[mount] for mount in sorted(on) if mount}


def out_of_service(balancers: Mapping[str, Sequence[Mapping[str, Any]]], nodes: Sequence[str]) -> list[str]:
    """The nodes that no balancer sends requests to: they can be switched at once, nobody misses them."""
    return [node for node in nodes if not any(_serves(servers, node) for servers in balancers.values())]


def incomplete(balancers: Mapping[str, Sequence[Mapping[str, Any]]], nodes: Sequence[str]) -> list[str]:
    """The nodes that not all balancers send requests to: a deploy that was killed got to some of them only."""
    return [node for node in nodes if not all(_serves(servers, node) for servers in balancers.values())]


def _serves(servers: Sequence[Mapping[str, Any]], node: str) -> bool:
    return any(
        server["server"] == node and server["admin"] == "ready" and server["operational"] == "up" for server in servers
    )


def kept(lines: Sequence[str]) -> dict[str, Any]:
    """What a node keeps, from lines like `release /srv/django/releases/X`, `current releases/X` and `previous ...`."""
    found: dict[str, Any] = {"current": "", "previous": "", "releases": []}
    for line in lines:
        what, _, path = line.partition(" ")
        name = path.rstrip("/").rsplit("/", 1)[-1]
        if what == "release":
            found["releases"].append(name)
        elif what in ("current", "previous"):
            found[what] = name
    return found


def rollback_target(nodes: Mapping[str, Mapping[str, Any]], wanted: str) -> str:
    """The release to go back to: the one that is wanted by name, or else the one before.

    A deploy that was interrupted leaves nodes with different releases. The way back is then the release that some still
    run and the others ran before.
    """
    in_common = set.intersection(*(set(node["releases"]) for node in nodes.values())) if nodes else set()
    if wanted:
        fits = sorted(name for name in in_common if name == wanted or name.rsplit("-", 1)[0] == wanted)
        if len(fits) == 1:
            return fits[0]
        raise ValueError(
            f"django_version: got {wanted}, wants one release that all nodes keep: "
            + (", ".join(fits or sorted(in_common)) or "there is none")
        )
    candidates = set.intersection(*({node["current"], node["previous"]} for node in nodes.values())) & in_common
    running = {node["current"] for node in nodes.values()}
    if len(running) == 1:
        candidates -= running
    else:
        candidates &= {node["previous"] for node in nodes.values()}
    if len(candidates) != 1:
        raise ValueError(
            "the nodes do not agree about the release before; name one with -e django_version=, all nodes keep "
            + (", ".join(sorted(in_common)) or "none")
        )
    return candidates.pop()


def holder(lock: Mapping[str, Any], now: float) -> str:
    """A sentence about who holds a lock."""
    minutes, seconds = divmod(max(0, int(now - lock.get("since", now))), 60)
    age = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
    text = f"{lock.get('kind', 'deploy')} {lock.get('id')} by {lock.get('user')} on {lock.get('host')}"
    text += f" (process {lock.get('pid')}) holds the lock since {age}"
    phase = lock.get("phase")
    nodes = ", ".join(lock.get("nodes") or [])
    return text + (f"; phase: {phase}" if phase else "") + (f", working at {nodes}" if nodes else "")


def switched(
    release: str,
    phase: str,
    drained: Sequence[Mapping[str, Any]],
    seconds: float,
    readied: Sequence[Mapping[str, Any]],
    waited: float,
) -> dict[str, Any]:
    """A node that went through a batch: its release, the seconds of each phase, the result.

    All balancers work at the same time, so the slowest one counts. `waited` is what draining took in steps before.
    """

    def most(results: Sequence[Mapping[str, Any]], name: str, but: str = "") -> float:
        return max((float(result.get(name, 0)) - float(result.get(but, 0)) for result in results), default=0.0)

    soak = most(readied, "soaked")
    return {
        "release": release,
        "drain": waited + most(drained, "seconds", but="seconds_before"),
        "switch": float(seconds),
        "ready": max(0.0, most(readied, "seconds") - soak),
        "soak": soak,
        "result": "switched" if phase == "switch" else "put back",
    }


def row(node: str, facts: Mapping[str, Any], done: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a deploy has to say about one node, from the facts that its tasks set."""
    found: dict[str, Any] = {"node": node, "release": facts.get("deploy_ran"), "result": "not switched"}
    if facts.get("deploy_to") and facts.get("deploy_to") == facts.get("deploy_ran"):
        found["result"] = "ran it already"
    return found | dict(done or {})


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of the table at the end of a deploy."""
    head = ["node", "release", "drain", "switch", "ready", "soak", "result"]
    lines = [head]
    for one in rows:
        seconds = [f"{one[key]:.1f} s" if isinstance(one.get(key), int | float) else "-" for key in head[2:6]]
        lines.append([str(one["node"]), str(one.get("release") or "-"), *seconds, str(one.get("result") or "-")])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
