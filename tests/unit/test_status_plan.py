# SPDX-License-Identifier: GPL-3.0-or-later
"""What status.yml calls a problem, and what it says to do about it: a healthy cluster, one thing broken at a time."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _status_host_plan as host_plan
from ansible_collections.flotilla.django.plugins.module_utils import _status_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils import _status_table as table
from render import ROOT
from status_cluster import (
    HOSTS,
    NOW,
    SHARED,
    TIERS,
    both,
    down,
    drained,
    healthy,
    host,
    judge,
    promoted,
    put,
    said,
    server,
    stopped_database,
    stopped_gunicorn,
    synchronous,
    without,
)

SITE = r"playbooks/site\.yml"


def test_a_healthy_cluster_has_no_problem() -> None:
    report = judge(healthy())
    assert said(report) == []
    assert report["ok"] is True
    assert report["notes"] == []


CASES = {
    "gunicorn-stopped": (stopped_gunicorn, rf"app2: django\.service is inactive -> {SITE} --limit app2 .*journalctl"),
    "unreachable-app": (
        both(without("app2"), down("app2")),
        rf"app2: cannot be reached: Connection timed out -> .*{SITE}",
    ),
    "module-failed": (put("db3", {"failed": "timed out"}), r"db3: could not be asked: timed out -> log in to db3"),
    "server-drained": (
        drained("app2"),
        r"app2: is in state maint on lb1, lb2 -> playbooks/undrain\.yml -e drain_host=app2",
    ),
    "drained-on-one": (
        drained("app2", ("lb2",), "drain"),
        r"app2: is in state drain on lb2 -> .*undrain\.yml -e drain_host=app2",
    ),
    "not-reached": (
        down("app3"),
        rf"app3: is down for lb1, lb2 \(L4CON: Connection refused\) -> .*network.*{SITE} --limit app3",
    ),
    "maintenance": (
        drained("*"),
        r"lb1,lb2: all servers of django are in maintenance.* -> playbooks/maintenance\.yml -e maintenance=off",
    ),
    "other-release": (
        both(put("app3/django/release", "v2-def"), put("app3/django/current", "v2-def")),
        r"app1,app2,app3: run different releases: v1-abc, v2-def -> playbooks/deploy\.yml .*rollback\.yml",
    ),
    "switched-not-restarted": (
        put("app3/django/current", "v2-def"),
        rf"app3: runs v1-abc, and v2-def .* -> {SITE} --limit app3",
    ),
    "unwell": (
        both(*(put(f"{app}/django/health", {"status": 503, "reasons": ["database: no"]}) for app in TIERS["django"])),
        r"app1,app2,app3: is not well: database: no -> look below",
    ),
    "unknown-to-balancer": (
        lambda answers: answers["lb1"]["haproxy"]["servers"].pop(0),
        rf"app1: is not known to lb1 -> {SITE} brings it",
    ),
    "stranger": (
        lambda answers: answers["lb1"]["haproxy"]["servers"].append(server("django", "old9")),
        rf"old9: gets requests from lb1, and is not in the group django -> {SITE}",
    ),
    "nginx-stopped": (
        both(
            put("static1/host/units/nginx.service", "failed"),
            put("static1/nginx_static/health", {"status": 0}),
            down("static1"),
        ),
        rf"static1: nginx\.service is failed -> {SITE} --limit static1",
    ),
    "haproxy-down": (
        put("lb2/haproxy", {"error": "nothing listens there"}),
        rf"lb2: HAProxy does not answer: nothing .* -> {SITE} --limit lb2",
    ),
    "keepalived-down": (
        put("lb2/host/units/keepalived.service", "inactive"),
        rf"lb2: keepalived\.service is inactive.* -> {SITE} --limit lb2",
    ),
    "balancer-drained": (
        put("lb2/haproxy/drained", True),
        r"lb2: is drained .* -> playbooks/undrain\.yml -e drain_host=lb2",
    ),
    "nobody-holds": (put("lb1/host/addresses", []), rf"lb1,lb2: nobody holds {SHARED}.* -> {SITE} --tags haproxy"),
    "both-hold": (put("lb2/host/addresses", [SHARED]), rf"lb1,lb2: both hold {SHARED} -> .*protocol 112"),
    "certificate": (
        put("lb1/haproxy/certificates", [{"path": "", "ends": NOW + 6.5 * plan.DAY}]),
        r"lb1: its certificate ends in 6 days -> .*certificates\.yml",
    ),
    "expired": (
        put("lb1/haproxy/certificates", [{"path": "", "ends": NOW - 1}]),
        r"lb1: its certificate has expired -> ",
    ),
    "replica-stopped": (
        stopped_database("db3"),
        r"db3: its PostgreSQL \(a replica\) is stopped -> playbooks/rejoin\.yml -e postgresql_member=db3$",
    ),
    "fenced": (
        both(promoted, stopped_database("db1", start="disabled")),
        r"db1: its PostgreSQL was put out of action .* -> playbooks/rejoin\.yml -e postgresql_member=db1$",
    ),
    "former-primary": (
        both(promoted, stopped_database("db1")),
        r"db1: its PostgreSQL \(the former primary\) is stopped -> .*rejoin\.yml -e postgresql_member=db1$",
    ),
    "primary-stopped": (
        stopped_database("db1"),
        rf"db1: was the primary and is stopped: nothing .* -> {SITE} --tags postgresql .*failover\.yml",
    ),
    "primary-unreachable": (
        without("db1"),
        r"db1,db2,db3: there is no primary among those .*; db1 did not -> .*status_timeout=20.*failover\.yml",
    ),
    "two-primaries": (
        promoted,
        r"db1,db2: more than one primary .*db1 on timeline 1.* -> .*rejoin\.yml -e postgresql_member=db1",
    ),
    "not-streaming": (
        lambda answers: answers["db1"]["postgresql"]["downstreams"].pop(),
        r"db3: does not stream from the primary db1 -> .*rejoin\.yml -e postgresql_member=db3$",
    ),
    "lag": (
        lambda answers: answers["db1"]["postgresql"]["downstreams"][0].update(lag_bytes=40 << 20),
        r"db2: is 40 MiB behind db1 -> .*docs/sizing\.md",
    ),
    "paused": (put("db2/postgresql/replay_paused", True), r"db2: somebody paused the replay -> .*pg_wal_replay_resume"),
    "not-accepting": (
        put("db2/postgresql/accepting", False),
        r"db2: its PostgreSQL runs and does not answer.* -> .*journalctl",
    ),
    "no-data": (
        put("db3/postgresql/data", "absent"),
        rf"db3: has no database yet -> {SITE}; if that refuses: playbooks/rejoin",
    ),
    "commits-wait": (
        synchronous,
        r"db1: every commit waits: 1 synchronous standbys are wanted, 0 are there -> .*rejoin\.yml",
    ),
    "archiver": (put("db1/postgresql/archiver", "failing"), r"db1: WAL cannot be archived.* -> archive_command"),
    "connections": (
        put("db1/postgresql/sessions", 181),
        r"db1: 181 of 200 connections are taken -> postgresql_max_connections.*sizing",
    ),
    "redis-down": (put("cache2/redis/state", "refused"), rf"cache2: its Redis is refused -> {SITE} --limit cache2"),
    "no-master": (
        put("cache1/redis/state", "refused"),
        r"cache1,cache2,cache3: none of them is the Redis master.* -> .*ask again",
    ),
    "two-masters": (put("cache2/redis/role", "master"), r"cache1,cache2: more than one Redis says .* -> .*ten seconds"),
    "link-down": (
        put("cache2/redis/link_up", False),
        rf"cache2: its Redis has no link to the master cache1 -> {SITE} --limit cache2",
    ),
    "sentinel-down": (
        put("cache3/redis/sentinel/state", "refused"),
        rf"cache3: its Sentinel is refused -> {SITE} --limit cache3",
    ),
    "no-quorum": (
        put("cache3/redis/sentinel/quorum", "NOQUORUM 1 usable"),
        r"cache3: its Sentinel finds no quorum.*NOQUORUM.* -> .*--tags redis",
    ),
    "sentinel-stranger": (
        lambda answers: answers["cache3"]["redis"]["sentinel"]["others"].append("192.0.2.99"),
        rf"cache3: its Sentinel counts 192\.0\.2\.99.* -> {SITE}",
    ),
    "redis-memory": (
        put("cache1/redis/memory_bytes", 60 << 20),
        r"cache1: its Redis uses 60 of 64 MiB -> more redis_maxmemory_mb",
    ),
    "disk": (
        put("db2/host/disks", [{"mount": "/var", "used_percent": 95, "free_bytes": 1, "inodes_percent": 1}]),
        r"db2: /var has 5 % of its space left -> make room on db2",
    ),
    "inodes": (
        put("db2/host/disks", [{"mount": "/", "used_percent": 20, "free_bytes": 1, "inodes_percent": 99}]),
        r"db2: / has 1 % of its inodes left -> ",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_thing_broken_is_one_problem_with_what_to_do(name: str) -> None:
    change, wanted = CASES[name]
    answers = healthy()
    change(answers)
    report = judge(answers)
    assert report["ok"] is False
    assert any(re.search(wanted, line) for line in said(report)), said(report)
    # The cause, and at most what follows from it for other hosts: a wall of text helps nobody at night.
    follows = {"primary-unreachable": 2, "no-master": 2, "two-primaries": 2, "commits-wait": 3}.get(name, 1)
    assert len(report["problems"]) <= follows, said(report)


def test_every_playbook_that_is_advised_exists() -> None:
    text = "\n".join((ROOT / f"plugins/module_utils/_status_{part}.py").read_text() for part in ("plan", "table"))
    advised = set(re.findall(r"(playbooks/\w+\.yml|docs/\w+\.md)", text))
    assert len(advised) > 8
    assert not [path for path in advised if not (ROOT / path).is_file()]


def test_what_visitors_notice_comes_first() -> None:
    answers = healthy()
    drained("app2")(answers)
    put("lb2/haproxy", {"error": "nothing listens there"})(answers)
    problems = judge(answers)["problems"]
    assert [item["severity"] for item in problems] == [plan.CRITICAL, plan.WARNING]


def test_no_server_left_is_urgent() -> None:
    answers = healthy()
    for app in TIERS["django"]:
        down(app)(answers)
        answers[app]["django"].update(units={"django.service": "failed"}, release=None)
    report = judge(answers)
    assert report["problems"][0]["what"].startswith("no server of django takes requests")
    assert report["problems"][0]["where"] == ["lb1", "lb2"]
    assert len(report["problems"]) == 2, said(report)


LOCK = {
    "id": "x",
    "user": "anna",
    "host": "desk",
    "kind": "deploy",
    "since": NOW - 600,
    "phase": "switch",
    "nodes": ["app2"],
}


def test_a_deploy_under_way_is_no_problem() -> None:
    answers = healthy()
    put("app1/django/lock", LOCK)(answers)
    drained("app2")(answers)
    put("app2/django/release", "v2")(answers)
    report = judge(answers)
    assert said(report) == []
    assert report["lock"] | {"since": ""} == {
        "state": "held",
        "by": "anna@desk",
        "kind": "deploy",
        "since": "",
        "minutes": 10,
        "phase": "switch",
        "nodes": ["app2"],
    }
    assert "anna@desk runs a deploy since 10 min" in report["notes"][0]


@pytest.mark.parametrize(
    ("lock", "dead", "wanted"),
    [
        (
            LOCK,
            True,
            r"app1: the deploy of anna@desk was interrupted 10 min ago .* -> playbooks/deploy\.yml, or .*rollback",
        ),
        ({**LOCK, "kind": "site.yml"}, True, r"app1: the site\.yml of .* -> playbooks/site\.yml: goes on"),
        ({**LOCK, "since": NOW - 7200}, False, r"app1: .* held the lock for 120 min -> ask anna@desk.*take_over_lock"),
        (
            {"nodes": ["app2"]},
            False,
            r"app2: an earlier deploy failed and left it out of service -> playbooks/deploy\.yml",
        ),
    ],
)
def test_a_deploy_that_ended_badly_is_finished_and_not_undrained(lock: dict[str, Any], dead: bool, wanted: str) -> None:
    answers = healthy()
    put("app1/django/lock", lock)(answers)
    drained("app2")(answers)
    (line,) = said(judge(answers, dead=dead))
    assert re.search(wanted, line), line


def test_a_limit_asks_some_and_blames_nobody_else() -> None:
    report = judge({name: healthy()[name] for name in ("app2", "db2")}, asked=["app2", "db2"])
    assert said(report) == []
    assert "lb1" in report["not_asked"]
    assert table.render(report)[-1] == "Everything that was asked is well."


def test_a_limit_sees_what_is_stopped_and_guesses_no_primary() -> None:
    answers = healthy()
    stopped_database("db1")(answers)
    (line,) = said(judge({"db1": answers["db1"]}, asked=["db1"]))
    assert line == (
        "db1: its PostgreSQL is stopped -> when one of the others is the primary: "
        "playbooks/rejoin.yml -e postgresql_member=db1"
    )


def test_the_weight_of_the_moment_is_told() -> None:
    answers = healthy()
    for balancer in TIERS["haproxy"]:
        answers[balancer]["haproxy"]["servers"][0]["weight"] = 25
    report = judge(answers)
    assert report["ok"] is True
    assert report["notes"] == ["app1 has the weight 25, set at run time; the inventory says 100"]


@pytest.mark.parametrize("slot", ["db_4", "backup"])
def test_a_slot_of_nobody_is_told(slot: str) -> None:
    answers = healthy()
    answers["db1"]["postgresql"]["slots"][slot] = {
        "active": False,
        "temporary": False,
        "restart_lsn": "0/1",
        "retained_bytes": 5 << 20,
    }
    report = judge(answers)
    assert report["ok"] is True
    assert report["notes"] == [f"db1: the slot {slot} belongs to no member, is not in use and keeps 5 MiB of WAL"]


# --- alerts

MONITORED = {**TIERS, "prometheus": ["mon1"]}


def monitor(part: dict[str, Any]) -> dict[str, Any]:
    answers = healthy()
    answers["mon1"] = {"host": host("mon1"), "prometheus": part}
    return judge(answers, asked=[*HOSTS, "mon1"], tiers=MONITORED)


def alert(name: str, **labels: str) -> dict[str, Any]:
    return {
        "labels": {"alertname": name, **labels},
        "annotations": {"summary": "too slow"},
        "startsAt": "2026-11-29T01:00:00Z",
    }


def test_without_monitoring_nobody_is_asked() -> None:
    assert judge(healthy())["alerts"] == {"state": "none", "firing": []}


def test_alerts_that_fire_are_problems_and_the_watchdog_is_none() -> None:
    alerts = [
        alert("Watchdog", severity="none"),
        alert("DiskFull", severity="critical", host="db1"),
        alert("DiskFull", host="db1"),
    ]
    report = monitor({"source": "alertmanager", "problem": "", "alerts": alerts})
    (line,) = said(report)
    assert line.startswith("db1: alert DiskFull: too slow -> ")
    assert [item["alert"] for item in report["alerts"]["firing"]] == ["DiskFull"]


def test_prometheus_stands_in_for_alertmanager() -> None:
    alerts = [{**alert("Slow", instance="app1:9100"), "state": state} for state in ("pending",)]
    report = monitor({"source": "prometheus", "problem": "Alertmanager does not answer: refused", "alerts": alerts})
    assert [line.split(" ->")[0] for line in said(report)] == ["mon1: Alertmanager does not answer: refused"]


def test_monitoring_that_does_not_answer_is_a_problem() -> None:
    report = monitor({"error": "connection refused"})
    (line,) = said(report)
    assert re.search(
        rf"mon1: Prometheus and Alertmanager cannot be asked: connection refused -> {SITE} --limit mon1", line
    )
    assert report["alerts"]["state"] == "unreachable"


# --- what single programs say


def test_the_end_of_a_certificate() -> None:
    shown = "Status: Used\nnotBefore: Nov 29 00:00:00 2026 GMT\nnotAfter: Dec  9 00:00:01 2026 GMT\n"
    assert host_plan.certificate_end(shown) == 1796774401.0
    assert host_plan.certificate_end("Status: Empty\n") is None
    assert host_plan.certificate_end("notAfter: soon\n") is None


def test_mounts_are_those_that_can_fill_up() -> None:
    text = (
        "overlay / overlay rw,relatime 0 0\nproc /proc proc rw 0 0\ntmpfs /run tmpfs rw 0 0\n"
        "/dev/vdb1 /var/lib/my\\040data ext4 rw 0 0\n"
        "/dev/loop0 /snap/x squashfs ro 0 0\n/dev/sr0 /mnt ext4 ro,nosuid 0 0\nshort\n"
        "overlay /x/merged overlay rw 0 0\n/dev/vda1 /srv xfs rw 0 0\n"
    )
    assert host_plan.mounts_of(text) == ["/", "/srv", "/var/lib/my data"]


@pytest.mark.parametrize(
    ("limits", "shown_as", "wanted"),
    [
        ({}, "xml", "status_format: got 'xml', wants table or json"),
        ({"disk_percent": "120"}, "table", "status_disk_percent: got '120', wants a percentage from 1 to 100"),
        ({"lag_mb": "-1"}, "json", "status_lag_mb: got '-1', wants MiB from 0 on"),
        ({"certificate_days": True}, "json", "status_certificate_days: got True, wants days from 0 to 3650"),
        ({"lock_minutes": "soon"}, "json", "status_lock_minutes: got 'soon', wants minutes from 0 on"),
    ],
)
def test_bad_settings_are_named(limits: dict[str, Any], shown_as: str, wanted: str) -> None:
    assert plan.setting_problems(limits, shown_as) == [wanted]


def test_settings_move_the_limits() -> None:
    answers = healthy()
    put("cache1/redis/memory_bytes", 60 << 20)(answers)
    assert judge(answers, limits=plan.limits_from({"memory_percent": "95"}))["ok"] is True
    with pytest.raises(ValueError, match="status_disk_percent"):
        plan.limits_from({"disk_percent": 0})


# --- the screen


def test_the_screen_of_a_healthy_cluster() -> None:
    lines = table.render(judge(healthy()))
    assert lines[0] == "www.example.com, 2026-11-30 00:53:20 UTC"
    assert lines[-1] == "Everything is well."
    text = "\n".join(lines)
    assert re.search(rf"^lb1 +up +up +{SHARED} +4 +90 days$", text, re.MULTILINE)
    assert re.search(r"^app2 +100 +up \(2\) +up \(2\) +up +ok +v1-abc$", text, re.MULTILINE)
    assert re.search(r"^db2 +replica +streaming +0 B +db1 +1 +async +12 of 200$", text, re.MULTILINE)
    assert re.search(r"^cache1 +master +up +- +- +3\.0 MiB of 64\.0 MiB +quorum, sees cache1$", text, re.MULTILINE)
    assert re.search(r"^DEPLOY LOCK +free$", text, re.MULTILINE)
    assert len(lines) <= 36
    assert max(map(len, lines)) <= table.WIDTH


@pytest.mark.parametrize("name", CASES)
def test_the_screen_fits_and_ends_with_what_to_do(name: str) -> None:
    answers = healthy()
    CASES[name][0](answers)
    report = judge(answers)
    lines = table.render(report)
    assert max(map(len, lines)) <= 120
    problems = lines[lines.index(next(line for line in lines if re.fullmatch(r"\d+ PROBLEMS?", line))) :]
    assert len(problems) >= 2 * len(report["problems"]) + 1
    assert max(map(len, problems)) <= table.WIDTH + 20
    assert table.summary(report).startswith(f"{len(report['problems'])} problem")


def test_json_is_one_line_that_says_everything() -> None:
    answers = healthy()
    stopped_gunicorn(answers)
    report = judge(copy.deepcopy(answers))
    text = table.as_json(report)
    assert "\n" not in text
    assert text.startswith("{")
    assert json.loads(text) == report


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (250 << 20, "250 MiB"), (5 << 50, "5120 TiB")],
)
def test_sizes_are_for_people(count: int | None, wanted: str) -> None:
    assert table.size(count) == wanted
