# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles prometheus and exporters write, held against promtool, amtool and the real Nginx."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible_collections.flotilla.django.plugins.module_utils import _cluster_plan as cluster
from ansible_collections.flotilla.django.plugins.module_utils import _firewall_plan as firewall
from render import ROOT, TOPOLOGIES, evaluate, hosts, render

ROLE = "prometheus"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PEM = "-----BEGIN CERTIFICATE-----\n"
TOLD: dict[str, Any] = {
    "prometheus_email_to": ["a@example.org", "b@example.org"],
    "prometheus_email_user": "alerts",
    "prometheus_email_password": "unit-mail-password",
    "prometheus_slack_url": "https://hooks.example.org/unit-slack-secret",
    "prometheus_slack_channel": "#ops",
    "prometheus_receiver": {"webhook_configs": [{"url": "http://192.0.2.9:9000/"}]},
    "prometheus_watchdog_url": "https://watch.example.org/unit-watchdog-secret",
}


def tool(*command: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which(command[0], path=PATH)
    assert program, f"this test needs {command[0]}: Debian's prometheus, prometheus-alertmanager and nginx"
    return subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)


def moved(text: str, directory: Path) -> str:
    """The files that root alone can write, below a directory."""
    return text.replace("/etc/prometheus", str(directory)).replace("/etc/flotilla-monitoring", str(directory))


def config(variables: dict[str, Any] | None = None, **where: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(render(ROLE, "prometheus.yml.j2", variables, **where))
    return found


def job(parsed: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in parsed["scrape_configs"] if item["job_name"] == name)


def targets(parsed: dict[str, Any], name: str) -> dict[str, str]:
    """Host -> target of a job."""
    return {item["labels"]["instance"]: item["targets"][0] for item in job(parsed, name)["static_configs"]}


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"prometheus_site_addresses": ["192.0.2.100", "2001:db8::100"], "prometheus_address": "2001:db8::61"},
        {"prometheus_tls_certificate": PEM, "prometheus_tls_key": PEM},
        {"prometheus_extra_jobs": [{"job_name": "mail", "static_configs": [{"targets": ["192.0.2.200:9100"]}]}]},
        {"prometheus_topology": {}},
    ],
    ids=lambda value: ",".join(value) or "defaults",
)
def test_prometheus_accepts_it(tmp_path: Path, variables: dict[str, Any], topology: str) -> None:
    for host in hosts(ROLE, topology):
        text = moved(render(ROLE, "prometheus.yml.j2", variables, topology=topology, host=host), tmp_path)
        (tmp_path / "flotilla.yml").write_text(text, encoding="utf-8")
        (tmp_path / "flotilla-password").write_text("x", encoding="utf-8")
        (tmp_path / "flotilla-rules").mkdir(exist_ok=True)
        for name, rules in (
            ("cluster.yml", render(ROLE, "cluster_rules.yml.j2", variables, topology=topology, host=host)),
            ("alerts.yml", (ROOT / "roles/prometheus/files/alerts.yml").read_text(encoding="utf-8")),
        ):
            (tmp_path / "flotilla-rules" / name).write_text(rules, encoding="utf-8")
        done = tool("promtool", "check", "config", str(tmp_path / "flotilla.yml"))
        assert done.returncode == 0, done.stdout + done.stderr


def test_targets_are_the_hosts_of_the_inventory() -> None:
    parsed = config()
    assert targets(parsed, "postgresql") == {f"db{n}": f"192.0.2.4{n}:9187" for n in (1, 2, 3)}
    assert targets(parsed, "haproxy") == {f"lb{n}": f"192.0.2.1{n}:8405" for n in (1, 2, 3)}
    assert targets(parsed, "django") == {f"app{n}": f"http://192.0.2.2{n}:8000/-/health" for n in (1, 2, 3)}
    assert targets(parsed, "redis") == {f"cache{n}": f"192.0.2.3{n}:9121" for n in (1, 2, 3)}
    sentinels = {item["labels"]["__param_target"] for item in job(parsed, "redis_sentinel")["static_configs"]}
    assert sentinels == {f"redis://192.0.2.3{n}:26379" for n in (1, 2, 3)}
    assert len(targets(parsed, "node")) == 17
    for item in parsed["scrape_configs"]:
        if item["job_name"] != "site":
            assert all({"host", "instance", "tier"} <= set(entry["labels"]) for entry in item["static_configs"])


def test_a_host_of_several_tiers_is_one_machine() -> None:
    parsed = config(topology="single")
    assert targets(parsed, "node") == {"one": "192.0.2.10:9100"}
    assert "redis_sentinel" not in {item["job_name"] for item in parsed["scrape_configs"]}


def test_the_site_is_asked_at_the_shared_addresses_and_at_each_balancer() -> None:
    parsed = config({"prometheus_site_addresses": ["192.0.2.100"], "prometheus_site_tls": True})
    assert targets(parsed, "site") == {
        "192.0.2.100": "https://192.0.2.100:443/", **{f"lb{n}": f"https://192.0.2.1{n}:443/" for n in (1, 2, 3)}
    }  # fmt: skip


def test_two_monitors_tell_each_others_alertmanager() -> None:
    first, second = config(host="mon1")["alerting"]["alertmanagers"]
    assert first["static_configs"] == [{"targets": ["127.0.0.1:9093"]}]
    assert second["static_configs"] == [{"targets": ["192.0.2.62:9095"]}]
    assert second["basic_auth"]["password_file"]
    arguments = str(evaluate(ROLE, "__prometheus_units['alertmanager']['command']", host="mon2"))
    assert "--cluster.listen-address=192.0.2.62:9094 --cluster.peer=192.0.2.61:9094" in arguments
    alone = str(evaluate(ROLE, "__prometheus_units['alertmanager']['command']", topology="plain"))
    assert alone.rstrip().endswith("--cluster.listen-address=")


@pytest.mark.parametrize(
    "variables", [{}, TOLD, *({key: value} for key, value in TOLD.items())], ids=lambda v: ",".join(v)
)
def test_alertmanager_accepts_it(tmp_path: Path, variables: dict[str, Any]) -> None:
    text = render(ROLE, "alertmanager.yml.j2", variables)
    (tmp_path / "alertmanager.yml").write_text(text, encoding="utf-8")
    done = tool("amtool", "check-config", str(tmp_path / "alertmanager.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_way_of_telling_is_in_one_receiver() -> None:
    parsed = yaml.safe_load(render(ROLE, "alertmanager.yml.j2", TOLD))
    people = next(item for item in parsed["receivers"] if item["name"] == "people")
    assert people["email_configs"][0]["to"] == "a@example.org, b@example.org"
    assert people["slack_configs"][0]["channel"] == "#ops"
    assert people["webhook_configs"] == TOLD["prometheus_receiver"]["webhook_configs"]
    assert parsed["route"]["receiver"] == "people"
    silent = yaml.safe_load(render(ROLE, "alertmanager.yml.j2"))
    assert (silent["route"]["receiver"], silent["receivers"]) == ("nobody", [{"name": "nobody"}])


def test_secrets_are_in_files_of_their_own() -> None:
    """What can be shown in a diff holds none; what holds one is written as a secret, for root and the daemon."""
    shown = "".join(
        render(ROLE, path.name, {**TOLD, "prometheus_tls_certificate": PEM, "prometheus_tls_key": "unit-key"})
        for path in sorted((ROOT / "roles/prometheus/templates").iterdir())
        if path.name not in ("alertmanager.yml.j2", "users.j2")
    )
    for secret in ("unit-prometheus-password", "unit-mail-password", "unit-slack-secret", "unit-key", "unit-watchdog"):
        assert secret not in shown
    whole = render(ROLE, "alertmanager.yml.j2", TOLD)
    assert "unit-mail-password" not in whole
    assert "unit-slack-secret" not in whole
    for expression, mode in (("__prometheus_used", "0640"),):
        for item in evaluate(ROLE, expression, {**TOLD, "prometheus_tls_certificate": PEM, "prometheus_tls_key": "k"}):
            assert "content" in item or item["mode"] == mode, item
    assert evaluate("exporters", "'unit-redis-monitoring' in exporters_redis_password", host="cache1")
    assert "unit-redis" not in render("exporters", "unit.conf.j2", host="cache1")


def test_what_no_variable_asks_for_is_removed() -> None:
    gone = {item["path"]: item["state"] for item in evaluate(ROLE, "__prometheus_unused")}
    assert set(gone.values()) == {"absent"}
    assert {Path(path).name for path in gone} == {
        "flotilla-email-password", "flotilla-slack-url", "flotilla-site-ca.pem", "flotilla-django-ca.pem",
        "certificate.pem", "certificate.key", "extra.yml",
    }  # fmt: skip
    assert evaluate(ROLE, "__prometheus_used | length") == 0


@pytest.mark.parametrize("debian", [12, 13])
def test_nginx_accepts_the_login(tmp_path: Path, debian: int) -> None:
    variables = {"prometheus_address": "127.0.0.1"}
    text = render(ROLE, "door.conf.j2", variables, debian=debian).replace("/run/flotilla-monitoring", str(tmp_path))
    (tmp_path / "nginx.conf").write_text(moved(text, tmp_path), encoding="utf-8")
    done = tool("nginx", "-t", "-q", "-c", str(tmp_path / "nginx.conf"))
    assert done.returncode == 0, done.stderr
    assert text.count("auth_basic ") == 1
    assert "auth_basic off" not in text
    assert ("/classic/" in text) == (debian == 12)


@pytest.mark.parametrize("topology", ("single", "plain", "three"))
def test_ports_of_the_matrix_are_those_that_listen_and_those_that_are_asked(topology: str) -> None:
    """Three places must agree: the firewall, the exporter and the monitor."""
    for name in ("node", "postgresql", "redis", "nginx"):
        port = evaluate("exporters", f"exporters_{name}_port", topology=topology)
        assert port == evaluate(ROLE, f"prometheus_{name}_port", topology=topology)
        service = next(item for item in firewall.SERVICES if item.variables[0] == f"exporters_{name}_port")
        assert (service.default, service.clients) == (port, ("prometheus",))


def test_nothing_but_the_login_listens_where_others_reach_it() -> None:
    for unit in ("prometheus", "alertmanager", "blackbox"):
        assert "--web.listen-address=127.0.0.1:" in evaluate(ROLE, f"__prometheus_units['{unit}']['command']")
    for item in evaluate("exporters", "__exporters_all", host="db1"):
        assert "--web.listen-address=192.0.2.41:" in item["command"]


def test_each_host_has_the_exporters_of_its_tiers() -> None:
    def names(host: str, topology: str = "three") -> list[str]:
        return list(evaluate("exporters", "__exporters_names", topology=topology, host=host))

    assert names("lb1") == names("app1") == names("mon1") == ["node"]
    assert names("db1") == ["node", "postgresql"]
    assert names("cache1") == ["node", "redis"]
    assert names("static1") == ["node", "nginx"]
    assert names("one", "single") == ["node", "postgresql", "redis", "nginx"]
    assert evaluate("exporters", "exporters_tiers", topology="single", host="one") == list(cluster.TIERS)


def units() -> list[tuple[str, str]]:
    """Each unit with the drop-in that the roles write, on top of the little that Debian's say."""
    base = "[Service]\nUser=prometheus\nExecStart=/bin/true\n"
    exporters = evaluate("exporters", "__exporters_all", host="db1")
    own = evaluate(ROLE, "__prometheus_units")
    return [
        *((str(item["package"]), base + render("exporters", "unit.conf.j2", {"unit": item})) for item in exporters),
        *((f"prometheus-{name}", base + render(ROLE, "sandbox.conf.j2", {"unit": item}))
          for name, item in own.items() if item["sandbox"]),
        ("flotilla-monitoring", render(ROLE, "door.service.j2")),
        ("flotilla-django-metrics", render("exporters", "django_metrics.service.j2", host="app1")),
    ]  # fmt: skip


def test_every_daemon_is_in_a_sandbox(tmp_path: Path) -> None:
    """As systemd judges them: below 3 of 10. Debian's units have more than 9. Prometheus' own is in one already."""
    assert len(units()) == 8
    for name, text in units():
        (tmp_path / f"{name}.service").write_text(text, encoding="utf-8")
        done = tool("systemd-analyze", "security", "--offline=yes", "--no-pager", str(tmp_path / f"{name}.service"))
        exposure = float(done.stdout.strip().splitlines()[-1].split(":")[1].split()[0])
        assert exposure < 3.0, f"{name}: {exposure}"


def test_without_a_monitor_its_secrets_are_not_wanted() -> None:
    groups = {tier: [tier[0]] for tier in cluster.REQUIRED_TIERS}
    variables: dict[str, dict[str, Any]] = {name: {} for names in groups.values() for name in names}

    def wanted(found: dict[str, list[str]]) -> set[str]:
        said = cluster._secret_problems(found, {**variables, "m": {}})
        return {line.split(" ", 1)[0] for line in said} & cluster.MONITORING_SECRETS

    assert wanted(groups) == set()
    assert wanted({**groups, "prometheus": ["m"]}) == cluster.MONITORING_SECRETS


@pytest.fixture(scope="module")
def program() -> ModuleType:
    path = ROOT / "roles/exporters/files/django_metrics.py"
    spec = importlib.util.spec_from_file_location("django_metrics", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_workers_are_the_children_of_the_main_process(program: ModuleType, tmp_path: Path) -> None:
    family = {100: 1, 101: 100, 102: 100, 103: 101}
    others = {1: 0, 50: 1, 60: 100}
    for pid, parent in (family | others).items():
        service = "django.service" if pid in family else "django-beat.service"
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (gunicorn: a) b) S {parent} 1 1")
        (tmp_path / str(pid) / "cgroup").write_text(f"1:name=systemd:/x/system.slice/{service}\n0::/\n")
    (tmp_path / "999").mkdir()
    found = program.parents(tmp_path)
    assert found == family
    assert program.workers(found) == 2
    assert program.workers(program.parents(tmp_path / "nowhere")) == 0


def test_the_metrics_are_what_prometheus_reads(program: ModuleType) -> None:
    text = program.metrics(200, 'v1 "odd"\\', 2)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'flotilla_django_release_info{release="v1 \\"odd\\"\\\\"} 1' in text
    silent = program.metrics(0, "", 0)
    assert "flotilla_django_healthy 0" in silent
    assert "release_info" not in silent


def test_the_file_is_whole_when_gunicorn_is_away(tmp_path: Path) -> None:
    path = ROOT / "roles/exporters/files/django_metrics.py"
    target = tmp_path / "flotilla_django.prom"
    command = [sys.executable, "-I", "-S", str(path), "127.0.0.1", "9", "/-/health", str(target)]
    subprocess.run(command, check=True, timeout=20)
    assert "flotilla_django_healthy 0" in target.read_text()
    assert [item.name for item in tmp_path.iterdir()] == [target.name]


def test_the_queries_are_those_that_the_alerts_need() -> None:
    queries = yaml.safe_load((ROOT / "roles/exporters/files/postgresql_queries.yml").read_text(encoding="utf-8"))
    made = {
        f"{name}_{column}"
        for name, query in queries.items()
        for metric in query["metrics"]
        for column, about in metric.items()
        if about["usage"] == "GAUGE"
    }
    alerts = (ROOT / "roles/prometheus/files/alerts.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"\bflotilla_postgresql_\w+", alerts)) <= made


def test_what_planned_work_silences_are_alerts() -> None:
    names = set(re.findall(r"- alert: (\w+)", (ROOT / "roles/prometheus/files/alerts.yml").read_text(encoding="utf-8")))
    silenced = yaml.safe_load((ROOT / "playbooks/vars/silence.yml").read_text(encoding="utf-8"))["__silence_alerts"]
    for kind, alerts in silenced.items():
        assert set(alerts) <= names, kind
    playbooks = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "playbooks").glob("*.yml"))
    assert set(re.findall(r"^    __silence: (\w+)", playbooks, re.MULTILINE)) == set(silenced)
