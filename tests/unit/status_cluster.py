# SPDX-License-Identifier: GPL-3.0-or-later
"""What thirteen healthy hosts answer to status_info, and what breaks there, one thing at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _status_plan as plan

NOW = 1_796_000_000.0
SHARED = "192.0.2.10"
TIERS = {
    "haproxy": ["lb1", "lb2"],
    "django": ["app1", "app2", "app3"],
    "redis": ["cache1", "cache2", "cache3"],
    "postgresql": ["db1", "db2", "db3"],
    "nginx_static": ["static1", "static2"],
    "prometheus": [],
}
ADDRESSES = {
    name: f"192.0.2.{ten}{number}"
    for ten, names in enumerate(TIERS.values(), start=1)
    for number, name in enumerate(names, start=1)
}
HOSTS = list(ADDRESSES)
ADDRESSES["mon1"] = "192.0.2.61"
Answers = dict[str, dict[str, Any]]


def host(name: str, units: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "now": NOW,
        "addresses": [ADDRESSES[name], *([SHARED] if name == "lb1" else [])],
        "disks": [{"mount": "/", "used_percent": 41, "free_bytes": 9 << 30, "inodes_percent": 7}],
        "units": units or {},
    }


def server(backend: str, name: str, **other: Any) -> dict[str, Any]:
    return {
        "backend": backend,
        "server": name,
        "admin": "ready",
        "operational": "up",
        "weight": 100,
        "sessions": 2,
        "queue": 0,
        "check_status": "L7OK",
        "check_description": "",
        **other,
    }


def database(name: str) -> dict[str, Any]:
    primary = name == "db1"
    streams = [
        {"name": other, "state": "streaming", "sync_state": "async", "lag_bytes": 0, "replay_lsn": "0/3", "address": ""}
        for other in ("db2", "db3")
    ]
    return {
        "data": "present",
        "running": True,
        "accepting": True,
        "error": None,
        "role": "primary" if primary else "standby",
        "start": "auto",
        "timeline": 1,
        "replay_paused": None if primary else False,
        "archiver": "off",
        "sessions": 12,
        "max_connections": 200,
        "program_replaced": False,
        "settings_pending_restart": [],
        "synchronous_standby_names": "",
        "upstream": None if primary else {"status": "streaming", "host": ADDRESSES["db1"]},
        "downstreams": streams if primary else [],
        "slots": {
            other: {"active": primary, "temporary": False, "restart_lsn": "0/1", "retained_bytes": 0}
            for other in ("db1", "db2", "db3")
            if other != name
        },
    }


def store(name: str) -> dict[str, Any]:
    master = name == "cache1"
    others = [ADDRESSES[other] for other in TIERS["redis"] if other != name]
    return {
        "name": name,
        "address": ADDRESSES[name],
        "state": "up",
        "role": "master" if master else "replica",
        "detail": "",
        "master_address": "" if master else ADDRESSES["cache1"],
        "link_up": not master,
        "memory_bytes": 3 << 20,
        "memory_limit_bytes": 64 << 20,
        "sentinel": {
            "state": "up",
            "detail": "",
            "master_address": ADDRESSES["cache1"],
            "flags": ["master"],
            "others": others,
            "quorum": "OK 3 usable Sentinels. Quorum and failover authorization can be reached",
        },
    }


def healthy() -> Answers:
    found: Answers = {}
    for name in TIERS["haproxy"]:
        servers = [server("django", app) for app in TIERS["django"]]
        servers += [server("nginx_static", static, weight=1) for static in TIERS["nginx_static"]]
        found[name] = {
            "host": host(name, {"haproxy.service": "active", "keepalived.service": "active"}),
            "haproxy": {
                "servers": servers,
                "drained": False,
                "certificates": [{"path": "/x", "ends": NOW + 90.5 * plan.DAY}],
                "frontends": [{"frontend": "https", "sessions": 4}, {"frontend": "stats", "sessions": 1}],
            },
        }
    for name in TIERS["django"]:
        found[name] = {
            "host": host(name),
            "django": {
                "units": {"django.service": "active"},
                "release": "v1-abc",
                "current": "v1-abc",
                "previous": None,
                "workers": 2,
                "health": {"status": 200},
                "lock": {},
            },
        }
    for name in TIERS["postgresql"]:
        found[name] = {"host": host(name), "postgresql": database(name)}
    for name in TIERS["redis"]:
        found[name] = {"host": host(name), "redis": store(name)}
    for name in TIERS["nginx_static"]:
        found[name] = {"host": host(name, {"nginx.service": "active"}), "nginx_static": {"health": {"status": 200}}}
    return found


def judge(
    answers: Answers,
    asked: list[str] | None = None,
    dead: bool = False,
    tiers: dict[str, list[str]] | None = None,
    limits: plan.Limits | None = None,
) -> dict[str, Any]:
    cluster = plan.Cluster(
        domain="www.example.com",
        tiers=tiers or TIERS,
        addresses=ADDRESSES,
        asked=HOSTS if asked is None else asked,
        weights=dict.fromkeys(TIERS["django"], 100),
        shared=[SHARED],
    )
    return plan.report(cluster, answers, limits or plan.Limits(), NOW, lambda _lock: dead)


def said(report: dict[str, Any]) -> list[str]:
    return [f"{','.join(item['where'])}: {item['what']} -> {item['todo']}" for item in report["problems"]]


def down(name: str) -> Callable[[Answers], None]:
    """How the balancers see a server that does not answer."""

    def change(answers: Answers) -> None:
        for balancer in TIERS["haproxy"]:
            for item in answers[balancer]["haproxy"]["servers"]:
                if item["server"] == name:
                    item.update(operational="down", check_status="L4CON", check_description="Connection refused")

    return change


def drained(name: str, balancers: tuple[str, ...] = ("lb1", "lb2"), admin: str = "maint") -> Callable[[Answers], None]:
    def change(answers: Answers) -> None:
        for balancer in balancers:
            for item in answers[balancer]["haproxy"]["servers"]:
                if name in ("*", item["server"]) and item["backend"] == "django":
                    item["admin"] = admin

    return change


def put(path: str, value: Any) -> Callable[[Answers], None]:
    def change(answers: Answers) -> None:
        *steps, last = path.split("/")
        found: Any = answers
        for step in steps:
            found = found[step]
        found[last] = value

    return change


def both(*changes: Callable[[Answers], None]) -> Callable[[Answers], None]:
    def change(answers: Answers) -> None:
        for one in changes:
            one(answers)

    return change


def stopped_gunicorn(answers: Answers) -> None:
    answers["app2"]["django"].update(
        units={"django.service": "inactive"}, release=None, health={"status": 0, "error": "x"}
    )
    down("app2")(answers)


def stopped_database(name: str, **other: Any) -> Callable[[Answers], None]:
    def change(answers: Answers) -> None:
        answers[name]["postgresql"].update(
            running=False, accepting=False, upstream=None, downstreams=[], slots={}, **other
        )
        primary = answers["db1"]["postgresql"]
        primary["downstreams"] = [item for item in primary["downstreams"] if item["name"] != name]

    return change


def promoted(answers: Answers) -> None:
    streams = [{**item, "name": "db3"} for item in answers["db1"]["postgresql"]["downstreams"][:1]]
    answers["db2"]["postgresql"].update(role="primary", timeline=2, upstream=None, downstreams=streams)


def without(name: str) -> Callable[[Answers], None]:
    def change(answers: Answers) -> None:
        answers[name] = {"unreachable": "Connection timed out"}

    return change


def synchronous(answers: Answers) -> None:
    primary = answers["db1"]["postgresql"]
    primary["synchronous_standby_names"] = "ANY 1 (db2, db3)"
    primary["downstreams"] = []
