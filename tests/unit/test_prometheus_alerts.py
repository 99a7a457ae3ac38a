# SPDX-License-Identifier: GPL-3.0-or-later
"""Every alert is tried with promtool: quiet before its cause, it fires, and it resolves when the cause is gone."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from render import ROOT, render

ALERTS = ROOT / "roles/prometheus/files/alerts.yml"
PROMTOOL = shutil.which("promtool")
DAY = 86400


@dataclass(frozen=True)
class Case:
    """Series (one sample a minute, in promtool's notation: 1x4 is five samples of 1), and what they lead to."""

    alert: str
    series: dict[str, str]
    # Minutes at which it is quiet, at which it fires, and at which it is quiet again.
    quiet: int
    fires: int
    over: int
    # All labels of the alert but its name and severity.
    labels: dict[str, str] = field(default_factory=dict)
    # Further minutes at which it must be quiet, with other causes: what it must not be confused with.
    about: str = ""


def target(job: str, host: str = "h1", more: str = "") -> str:
    return f'{{job="{job}", host="{host}", instance="{host}"{more}}}'


def of(job: str, host: str = "h1", **more: str) -> dict[str, str]:
    return {"job": job, "host": host, "instance": host, **more}


HAPROXY = {"host": "lb1", "instance": "lb1", "job": "haproxy"}
BACKEND = '{job="haproxy", host="lb1", instance="lb1", proxy="django"'
DISK = ', mountpoint="/", fstype="ext4"'
CASES = [
    Case("HostDown", {"up" + target("node", more=', tier="redis"'): "1x4 0x9 1x9"}, 5, 8, 16, of("node", tier="redis")),
    Case(
        "ExporterDown",
        {"up" + target("redis"): "1x4 0x9 1x9", "up" + target("node"): "1x40"},
        6,
        9,
        16,
        of("redis"),
    ),
    Case(
        "AlertsNotDelivered",
        {
            "alertmanager_notifications_failed_total"
            + target("alertmanager", more=', integration="email"'): "0x9 1+1x9 10x60"
        },
        9,
        17,
        50,
        of("alertmanager", integration="email"),
    ),
    Case(
        "MonitorRefusesItsConfiguration",
        {"prometheus_config_last_reload_successful" + target("prometheus"): "1x4 0x9 1x9"},
        6,
        10,
        16,
        of("prometheus"),
    ),
    Case(
        "BackendWithoutServers",
        {f"haproxy_backend_active_servers{BACKEND}}}": "3x4 0x9 3x9"},
        5,
        8,
        16,
        {"host": "lb1", "proxy": "django", "tier": "haproxy"},
    ),
    Case(
        "BackendFewServers",
        {f"haproxy_backend_active_servers{BACKEND}}}": "3x4 1x19 3x9"},
        8,
        14,
        26,
        {"host": "lb1", "proxy": "django", "tier": "haproxy"},
    ),
    Case(
        "ServerDown",
        {
            f'haproxy_server_status{BACKEND}, server="app1", state="DOWN"}}': "0x4 1x9 0x9",
            f'haproxy_server_status{BACKEND}, server="app2", state="MAINT"}}': "1x30",
        },
        6,
        10,
        16,
        {"proxy": "django", "server": "app1", "tier": "haproxy"},
    ),
    Case(
        "ErrorsAnswered",
        {
            f'haproxy_backend_http_responses_total{BACKEND}, code="2xx"}}': "0+600x60",
            f'haproxy_backend_http_responses_total{BACKEND}, code="5xx"}}': "0x9 100+100x9 1000x60",
        },
        9,
        16,
        30,
        {"proxy": "django", "tier": "haproxy"},
    ),
    Case(
        "RequestsQueue",
        {f"haproxy_backend_current_queue{BACKEND}}}": "2x4 30x9 0x9"},
        6,
        9,
        16,
        {"proxy": "django", "tier": "haproxy"},
    ),
    Case(
        "AnswersSlow",
        {
            f"haproxy_backend_response_time_average_seconds{BACKEND}}}": "0.2x4 3x19 0.2x9",
            f'haproxy_backend_http_responses_total{BACKEND}, code="2xx"}}': "0+600x60",
            # The balancer that only waits to take over.
            f"haproxy_backend_response_time_average_seconds{BACKEND.replace('lb1', 'lb2')}}}": "0x60",
            f'haproxy_backend_http_responses_total{BACKEND.replace("lb1", "lb2")}, code="2xx"}}': "7x60",
        },
        12,
        18,
        26,
        {"proxy": "django", "tier": "haproxy"},
    ),
    Case(
        "SharedAddressNotHeldOnce",
        {
            'node_network_address_info{host="lb1", address="192.0.2.100"}': "1x4 stale _x8 1x30",
            'node_network_address_info{host="lb1", address="192.0.2.11"}': "1x40",
        },
        4,
        8,
        16,
        {"address": "192.0.2.100", "tier": "haproxy"},
        "nobody has it",
    ),
    Case(
        "SharedAddressNotHeldOnce",
        {
            'node_network_address_info{host="lb1", address="192.0.2.100"}': "1x40",
            'node_network_address_info{host="lb2", address="192.0.2.100"}': "_x4 1x9 stale _x20",
        },
        4,
        8,
        16,
        {"address": "192.0.2.100", "tier": "haproxy"},
        "two have it",
    ),
    Case(
        "SiteDown",
        {"probe_success" + target("site", "192.0.2.100"): "1x4 0x9 1x9"},
        5,
        8,
        16,
        of("site", "192.0.2.100"),
    ),
    Case("NodeUnhealthy", {"probe_success" + target("django", "app1"): "1x4 0x9 1x9"}, 6, 10, 16, of("django", "app1")),
    Case(
        "CertificateEndsSoon",
        {"probe_ssl_earliest_cert_expiry" + target("site"): f"{25 * DAY}x4 {19 * DAY}x19 {90 * DAY}x9"},
        12,
        18,
        26,
        of("site"),
    ),
    Case(
        "CertificateEndsNow",
        {"probe_ssl_earliest_cert_expiry" + target("site"): f"{4 * DAY}x4 {2 * DAY}x19 {90 * DAY}x9"},
        12,
        18,
        26,
        of("site"),
    ),
    Case(
        "ReleasesDiffer",
        {
            'flotilla_django_release_info{host="app1", release="v1"}': "1x4 stale _x90",
            'flotilla_django_release_info{host="app1", release="v2"}': "_x4 1x90",
            'flotilla_django_release_info{host="app2", release="v1"}': "1x30 stale _x30",
            'flotilla_django_release_info{host="app2", release="v2"}': "_x30 1x30",
        },
        18,
        25,
        40,
        {"tier": "django"},
    ),
    Case("DjangoWithoutWorkers", {"flotilla_django_workers" + target("node"): "2x4 0x9 2x9"}, 6, 9, 16, of("node")),
    Case(
        "DjangoMetricsOld",
        {
            "node_textfile_mtime_seconds"
            + target("node", more=', file="/x/flotilla_django.prom"'): "0+60x4 240x19 1440+60x9"
        },
        9,
        20,
        26,
        of("node", file="/x/flotilla_django.prom"),
    ),
    Case("PostgresqlDown", {"pg_up" + target("postgresql"): "1x4 0x9 1x9"}, 5, 8, 16, of("postgresql")),
    Case(
        "PostgresqlNotOnePrimary",
        {
            f'flotilla_postgresql_in_recovery{{host="{name}"}}': row
            for name, row in (("db1", "0x4 stale _x8 0x9"), ("db2", "1x40"))
        },
        4,
        8,
        16,
        {"tier": "postgresql"},
        "none",
    ),
    Case(
        "PostgresqlNotOnePrimary",
        {
            f'flotilla_postgresql_in_recovery{{host="{name}"}}': row
            for name, row in (("db1", "0x40"), ("db2", "1x4 0x9 1x9"))
        },
        5,
        8,
        16,
        {"tier": "postgresql"},
        "two",
    ),
    Case(
        "PostgresqlReplicasMissing",
        {
            'flotilla_postgresql_replicas{host="db1"}': "2x4 1x19 2x9",
            'flotilla_postgresql_replicas{host="db2"}': "0x40",
        },
        9,
        14,
        26,
        {"tier": "postgresql"},
    ),
    Case(
        "PostgresqlLag",
        {'flotilla_postgresql_replica_lag_bytes{host="db1", replica="db2"}': "0x4 100000000x19 0x9"},
        9,
        14,
        26,
        {"replica": "db2", "tier": "postgresql"},
    ),
    Case(
        "PostgresqlSlotInactive",
        {
            'flotilla_postgresql_slot_active{host="db1", slot="db2"}': "1x4 0x19 1x9",
            'flotilla_postgresql_in_recovery{host="db1"}': "0x40",
            # The slots that a replica keeps for the others are asleep.
            'flotilla_postgresql_slot_active{host="db2", slot="db1"}': "0x40",
            'flotilla_postgresql_in_recovery{host="db2"}': "1x40",
        },
        14,
        18,
        26,
        {"host": "db1", "slot": "db2"},
    ),
    Case(
        "PostgresqlConnections",
        {
            "flotilla_postgresql_connections" + target("postgresql"): "10x4 95x19 10x9",
            "flotilla_postgresql_connections_max" + target("postgresql"): "100x40",
        },
        9,
        14,
        26,
        of("postgresql"),
    ),
    Case("RedisDown", {"redis_up" + target("redis"): "1x4 0x9 1x9"}, 5, 8, 16, of("redis")),
    Case(
        "RedisNotOneMaster",
        {
            f'redis_instance_info{{job="redis", host="{name}", role="master"}}': row
            for name, row in (("cache1", "1x4 stale _x40"), ("cache2", "_x14 1x30"))
        },
        4,
        8,
        18,
        {"tier": "redis"},
        "none",
    ),
    Case(
        "RedisNotOneMaster",
        {
            f'redis_instance_info{{job="redis", host="{name}", role="master"}}': row
            for name, row in (("cache1", "1x40"), ("cache2", "_x5 1x9 stale _x30"))
        },
        5,
        8,
        18,
        {"tier": "redis"},
        "two",
    ),
    Case("RedisLinkDown", {"redis_master_link_up" + target("redis"): "1x4 0x9 1x9"}, 6, 9, 16, of("redis")),
    Case(
        "RedisQuorumLost",
        {"redis_sentinel_master_ok_sentinels" + target("redis_sentinel"): "3x4 1x9 3x9"},
        6,
        9,
        16,
        of("redis_sentinel"),
    ),
    Case(
        "RedisMemory",
        {
            "redis_memory_used_bytes" + target("redis"): "10x4 95x19 10x9",
            "redis_memory_max_bytes" + target("redis"): "100x40",
        },
        9,
        14,
        26,
        of("redis"),
    ),
    Case(
        "RedisRejectsConnections",
        {"redis_rejected_connections_total" + target("redis"): "0x4 5x30"},
        4,
        6,
        12,
        of("redis"),
    ),
    Case(
        "DiskFills",
        {
            "node_filesystem_avail_bytes" + target("node", more=DISK): "350x400 349-1x199 1000x400",
            "node_filesystem_size_bytes" + target("node", more=DISK): "1000x1000",
            "node_filesystem_readonly" + target("node", more=DISK): "0x1000",
        },
        400,
        580,
        640,
        of("node", mountpoint="/", fstype="ext4"),
    ),
    Case(
        "DiskFull",
        {
            "node_filesystem_avail_bytes" + target("node", more=DISK): "350x4 90x19 350x9",
            "node_filesystem_size_bytes" + target("node", more=DISK): "1000x40",
            "node_filesystem_readonly" + target("node", more=DISK): "0x40",
        },
        9,
        14,
        26,
        of("node", mountpoint="/", fstype="ext4"),
    ),
    Case(
        "InodesFull",
        {
            "node_filesystem_files_free" + target("node", more=DISK): "350x4 90x19 350x9",
            "node_filesystem_files" + target("node", more=DISK): "1000x40",
            "node_filesystem_readonly" + target("node", more=DISK): "0x40",
        },
        9,
        14,
        26,
        of("node", mountpoint="/", fstype="ext4"),
    ),
    Case("OutOfMemory", {"node_vmstat_oom_kill" + target("node"): "0x4 1x40"}, 4, 7, 20, of("node")),
    Case("ClockOff", {"node_time_seconds" + target("node"): "0+60x4 310+60x19 1500+60x9"}, 9, 14, 27, of("node")),
    Case(
        "BackupOld",
        {"flotilla_backup_last_success_timestamp_seconds" + target("node"): f"0x4 {-DAY * 2}x29 0x40"},
        18,
        25,
        40,
        of("node"),
    ),
]


def rules() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in found for rule in group["rules"]}


def selector(labels: dict[str, str]) -> str:
    return "{" + ", ".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"


def promtool(directory: Path, test: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Runs one test against the rules that a cluster of three hosts per tier gets."""
    assert PROMTOOL, "these tests need Debian's prometheus package"
    cluster = render("prometheus", "cluster_rules.yml.j2", {"prometheus_site_addresses": ["192.0.2.100"]})
    (directory / "cluster.yml").write_text(cluster, encoding="utf-8")
    (directory / "alerts.yml").write_text(ALERTS.read_text(encoding="utf-8"), encoding="utf-8")
    whole = {"rule_files": ["cluster.yml", "alerts.yml"], "evaluation_interval": "1m", "tests": [test]}
    (directory / "test.yml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    command = [PROMTOOL, "test", "rules", str(directory / "test.yml")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def expectation(case: Case) -> dict[str, Any]:
    firing = f'ALERTS{{alertname="{case.alert}", alertstate="firing"}}'
    labels = {**case.labels, "alertname": case.alert, "alertstate": "firing", "severity": severity(case.alert)}
    there = [{"labels": f"ALERTS{selector(labels)}", "value": 1}]
    moments = [(case.quiet, []), (case.fires, there), (case.over, [])]
    return {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "promql_expr_test": [
            {"expr": firing, "eval_time": f"{minute}m", "exp_samples": samples} for minute, samples in moments
        ],
    }


def severity(alert: str) -> str:
    return str(rules()[alert]["labels"]["severity"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert} {case.about}".strip())
def test_it_fires_and_resolves(tmp_path: Path, case: Case) -> None:
    done = promtool(tmp_path, expectation(case))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    assert {case.alert for case in CASES} | {"Watchdog"} == set(rules())


def test_the_watchdog_always_fires(tmp_path: Path) -> None:
    firing = {"labels": 'ALERTS{alertname="Watchdog", alertstate="firing", severity="none"}', "value": 1}
    expressions = [
        {"expr": 'ALERTS{alertname="Watchdog"}', "eval_time": f"{minute}m", "exp_samples": [firing]}
        for minute in (0, 60)
    ]
    done = promtool(tmp_path, {"interval": "1m", "input_series": [], "promql_expr_test": expressions})
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_expectation_is_noticed(tmp_path: Path) -> None:
    """promtool's own verdict counts: a test that expects silence of an alert that fires fails."""
    case = CASES[0]
    wrong = Case(case.alert, case.series, case.quiet, case.over, case.fires, case.labels)
    assert promtool(tmp_path, expectation(wrong)).returncode != 0


def test_a_cluster_with_nothing_wrong_is_quiet(tmp_path: Path) -> None:
    """Nothing fires without a series, and there is one database primary and one Redis master here."""
    series = {
        'flotilla_postgresql_in_recovery{host="db1"}': "0x60",
        'redis_instance_info{job="redis", host="cache1", role="master"}': "1x60",
        'node_network_address_info{host="lb1", address="192.0.2.100"}': "1x60",
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": 'ALERTS{alertname!="Watchdog"}', "eval_time": f"{minute}m", "exp_samples": []}
            for minute in (1, 30, 60)
        ],
    }
    done = promtool(tmp_path, test)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", rules())
def test_every_alert_says_what_is_wrong_and_what_to_do(alert: str) -> None:
    rule = rules()[alert]
    assert rule["labels"]["severity"] in ("none", "warning", "critical")
    if alert == "Watchdog":
        return
    assert set(rule["annotations"]) == {"summary", "action"}
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    for case in CASES:
        if case.alert == alert:
            assert used <= {*case.labels}, "a label that the alert does not have"


def test_the_limits_are_those_that_the_alerts_compare_with() -> None:
    cluster = yaml.safe_load(render("prometheus", "cluster_rules.yml.j2"))["groups"][0]["rules"]
    made = {rule["labels"]["limit"] for rule in cluster if rule["record"] == "flotilla_limit"}
    assert set(re.findall(r'flotilla_limit\{limit="(\w+)"\}', ALERTS.read_text(encoding="utf-8"))) == made


def test_the_readme_lists_every_alert() -> None:
    text = (ROOT / "roles/prometheus/README.md").read_text(encoding="utf-8")
    for alert, rule in rules().items():
        row = re.search(rf"^\| `{alert}` \| (\w+) \| .* \| (.*) \|$", text, re.MULTILINE)
        assert row, alert
        assert (row[1], row[2]) == (rule["labels"]["severity"], rule.get("for", "at once"))
