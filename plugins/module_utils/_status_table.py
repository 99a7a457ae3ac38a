# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""The report of _status_plan as one screen of text, and as JSON. Pure: no I/O, no Ansible."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 100
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    for unit in UNITS:
        if abs(count) < 1024 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def columns(lines: Sequence[Sequence[object]]) -> list[str]:
    """Cells below each other; a cell that says nothing is a dash."""
    texts = [[str(cell) if cell not in (None, "") else "-" for cell in line] for line in lines]
    widths = [max(len(line[number]) for line in texts) for number in range(len(texts[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in texts]


def render(report: Mapping[str, Any], width: int = WIDTH) -> list[str]:
    """The lines: first what there is, at the end what is wrong and what to do, where the eye is when it is printed."""
    groups = [
        _balancers(report["haproxy"]),
        _servers(report),
        _postgresql(report["postgresql"]),
        _redis(report["redis"]),
    ]
    lines = [f"{report['domain']}, {report['at'].replace('T', ' ').replace('Z', ' UTC')}"]
    for group in groups:
        if group:
            lines += ["", *columns(group)]
    lines += ["", *_rest(report, width), "", *_end(report, width)]
    return lines


def _balancers(rows: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    if not rows:
        return []
    lines: list[list[object]] = [["BALANCERS", "haproxy", "keepalived", "holds", "sessions", "certificate"]]
    for row in rows:
        days = row["certificate_days"]
        keepalived = "drained" if row["drained"] else {"active": "up"}.get(row["keepalived"], row["keepalived"])
        known = row["haproxy"] == "up"
        lines.append(
            [
                row["node"],
                row["haproxy"],
                keepalived,
                ", ".join(row["holds"]),
                row["sessions"] if known else "",
                "" if days is None else f"{days} days",
            ]
        )
    return lines


def _servers(report: Mapping[str, Any]) -> list[list[object]]:
    balancers = [row["node"] for row in report["haproxy"] if row["haproxy"] == "up"]
    own = {("django", row["node"]): row for row in report["django"]}
    own |= {("nginx_static", row["node"]): row for row in report["nginx_static"]}
    if not report["servers"]:
        return []
    lines: list[list[object]] = [
        ["SERVERS", "weight", *(f"{name} (sessions)" for name in balancers), "service", "health", "release"]
    ]
    for server in report["servers"]:
        row = own.get((server["backend"], server["server"]), {})
        seen = [_server(server["balancers"].get(balancer)) for balancer in balancers]
        health = row.get("health") or ""
        lines.append(
            [
                server["server"],
                server["weight"],
                *seen,
                {"active": "up"}.get(row.get("state", ""), row.get("state")),
                health if health in ("", "ok") or len(health) < 12 else "not ok",
                row.get("release"),
            ]
        )
    return lines


def _server(seen: Mapping[str, Any] | None) -> str:
    """The state that matters, and how many sessions it has."""
    if seen is None:
        return "unknown"
    state = seen["admin"] if seen["admin"] != "ready" else seen["operational"]
    return f"{state} ({seen['sessions']})" + (f" +{seen['queue']} wait" if seen["queue"] else "")


def _postgresql(rows: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    if not rows:
        return []
    lines: list[list[object]] = [["POSTGRESQL", "role", "state", "lag", "from", "timeline", "sync", "connections"]]
    for row in rows:
        lag = size(row["lag_bytes"]) if row["lag_bytes"] is not None else ""
        taken = f"{row['sessions']} of {row['max_connections']}" if row["max_connections"] else ""
        lines.append([row["node"], row["role"], row["state"], lag, row["from"], row["timeline"], row["sync"], taken])
    return lines


def _redis(rows: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    if not rows:
        return []
    lines: list[list[object]] = [["REDIS", "role", "state", "link", "from", "memory", "sentinel"]]
    for row in rows:
        limit = f" of {size(row['memory_limit_bytes'])}" if row["memory_limit_bytes"] else ""
        memory = size(row["memory_bytes"]) + limit if row["memory_bytes"] is not None else ""
        lines.append([row["node"], row["role"], row["state"], row["link"], row["from"], memory, row["sentinel"]])
    return lines


def _rest(report: Mapping[str, Any], width: int) -> list[str]:
    disks, lock, alerts = report["disks"], report["lock"], report["alerts"]
    fullest = [
        f"{disk['node']} {disk['mount']} {disk['used_percent']} % ({size(disk['free_bytes'])} free)"
        for disk in disks[:2]
    ]
    pairs = [("DISKS", "fullest: " + ", ".join(fullest) if fullest else "not known")]
    if lock["state"] == "held":
        nodes = f", at {', '.join(lock['nodes'])}" if lock["nodes"] else ""
        text = f"held by {lock['by']} since {lock['since']} ({lock['minutes']} min): {lock['kind']}, "
        text += f"{lock['phase'] or 'begins'}{nodes}"
    else:
        text = {"left": f"free; left out of service: {', '.join(lock['nodes'])}", "unknown": "not known"}.get(
            lock["state"], "free"
        )
    pairs.append(("DEPLOY LOCK", text))
    state = {"none": "no group prometheus in the inventory", "asked": "none fires"}.get(
        alerts["state"], alerts["state"]
    )
    pairs.append(("ALERTS", ", ".join(f"{item['alert']} ({item['where']})" for item in alerts["firing"]) or state))
    if report["not_asked"]:
        pairs.append(("NOT ASKED", ", ".join(report["not_asked"]) + " (--limit)"))
    pairs += [("NOTE", note) for note in report["notes"]]
    lines: list[str] = []
    for word, text in pairs:
        lines += textwrap.wrap(f"{word.ljust(11)}  {text}", width, subsequent_indent=" " * 13, break_long_words=False)
    return lines


def _end(report: Mapping[str, Any], width: int) -> list[str]:
    problems = report["problems"]
    if report["ok"]:
        return ["Everything that was asked is well." if report["not_asked"] else "Everything is well."]
    lines = [f"{len(problems)} PROBLEM{'' if len(problems) == 1 else 'S'}"]
    for number, problem in enumerate(problems, start=1):
        urgent = "URGENT: " if problem["severity"] == "critical" else ""
        start = f"{number}. "
        indent = " " * len(start)
        lines += textwrap.wrap(
            f"{start}{urgent}{', '.join(problem['where'])}: {problem['what']}",
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += textwrap.wrap(
            problem["todo"],
            width,
            initial_indent=indent + "-> ",
            subsequent_indent=indent + "   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def as_json(report: Mapping[str, Any]) -> str:
    """One line, so that a program finds it in what a playbook prints: the only one that begins with a brace."""
    return json.dumps(report, sort_keys=True, ensure_ascii=True)


def summary(report: Mapping[str, Any]) -> str:
    """One sentence, for the end of the playbook."""
    problems = report["problems"]
    if not problems:
        return "everything is well"
    hosts = list(dict.fromkeys(name for problem in problems for name in problem["where"]))
    return f"{len(problems)} problem{'' if len(problems) == 1 else 's'}, see above: {', '.join(hosts)}"
