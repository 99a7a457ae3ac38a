# SPDX-License-Identifier: GPL-3.0-or-later
"""The balancer's configuration, rendered for several clusters and accepted by the real HAProxy without a warning."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from render import evaluate, render

TLS = {"haproxy_tls_certificate": "certificate", "haproxy_tls_key": "key"}
ACME = {"haproxy_acme_directory_url": "https://acme.example.com/directory", "haproxy_acme_terms_agreed": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "leastconn": {"haproxy_balance": "leastconn"},
    "cookie": {"haproxy_persistence": "cookie"},
    "tls": TLS,
    "everything": TLS
    | {
        "haproxy_persistence": "cookie",
        "haproxy_hsts_max_age": 63072000,
        "haproxy_hsts_include_subdomains": True,
        "haproxy_http_port": 8000,
        "haproxy_https_port": 8443,
        "haproxy_bind_addresses": ["192.0.2.80", "::"],
        "haproxy_private_paths": ["/-/", "/it's/"],
        "haproxy_served_by_header": True,
        "haproxy_log_requests": "errors",
        "haproxy_log_static": True,
        "haproxy_static_maxconn": 500,
        "haproxy_slowstart": "0s",
        "haproxy_stats_password": "a 'quoted' $HOME \"p\\w\" #1",
        "haproxy_maintenance_page": "<!DOCTYPE html><title>Closed</title>",
    },
    "acme": ACME,
    "rate limit": {"haproxy_rate_limit": 100},
    "rate limit and more": ACME
    | {
        "haproxy_rate_limit": 1,
        "haproxy_rate_limit_exempt": ["192.0.2.0/24", "2001:db8::/32"],
        "haproxy_static_servers": [],
    },
    "a limit": {"haproxy_django_maxconn": 5},
    "django by tls": {"haproxy_django_tls_ca": "authority"},
    "no cache": {"haproxy_static_cache_mb": 0},
}


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=shop.example.org", "-days", "2", "-keyout", "key.pem", "-out", "crt.pem"),
        ],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    return (directory / "crt.pem").read_text() + (directory / "key.pem").read_text()


def configuration(variables: dict[str, Any] | None = None, topology: str = "three") -> str:
    return render("haproxy", "haproxy.cfg.j2", variables, topology=topology)


def section(text: str, name: str) -> list[str]:
    """The lines of one section, without comments and indentation."""
    lines = text.splitlines()
    start = lines.index(name)
    found = []
    for line in lines[start + 1 :]:
        if line and not line[0].isspace() and line[0] != "#":
            break
        if line.strip() and not line.strip().startswith("#"):
            found.append(line.strip())
    return found


def check(tmp_path: Path, text: str, variables: dict[str, Any], pem: str) -> subprocess.CompletedProcess[str]:
    """What `haproxy -c` says when all files are below tmp_path."""
    haproxy = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    assert haproxy, "these tests need Debian's haproxy package"
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "site.pem").write_text(pem)
    (tmp_path / "certs" / "acme.pem").write_text(pem)
    (tmp_path / "certs.list").write_text(f"{tmp_path}/certs/site.pem\n")
    page = variables.get("haproxy_maintenance_page") or render("haproxy", "unavailable.html.j2", variables)
    (tmp_path / "unavailable.html").write_text(page)
    authority = x509.load_pem_x509_certificate(pem.encode())  # HAProxy wants a real one
    (tmp_path / "django-ca.pem").write_text(authority.public_bytes(Encoding.PEM).decode())
    (tmp_path / "users.cfg").write_text(render("haproxy", "users.cfg.j2", variables))
    (tmp_path / "haproxy.cfg").write_text(
        text.replace("/etc/haproxy", str(tmp_path)).replace("/run/haproxy-state", str(tmp_path))
    )
    # A state file as a reload finds it; without one HAProxy notes that there is none.
    (tmp_path / "servers").write_text("1\n# be_id be_name srv_id srv_name\n")
    return subprocess.run(
        [haproxy, "-c", "-f", str(tmp_path / "users.cfg"), "-f", str(tmp_path / "haproxy.cfg")],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("topology", ["single", "plain", "three"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_haproxy_accepts_it(tmp_path: Path, pem: str, variant: str, topology: str) -> None:
    variables = VARIANTS[variant]
    result = check(tmp_path, configuration(variables, topology), variables, pem)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stdout + result.stderr
    assert "ALERT" not in result.stdout + result.stderr


@pytest.mark.parametrize("topology", ["single", "plain", "three"])
def test_each_django_server_has_to_prove_its_own_name(topology: str) -> None:
    text = configuration({"haproxy_django_tls_ca": "authority"}, topology)
    backend = text.split("\nbackend django\n", 1)[1].split("\nbackend ", 1)[0]
    assert "default-server ssl verify required ca-file /etc/haproxy/django-ca.pem" in backend
    names = [item["name"] for item in evaluate("haproxy", "haproxy_django_servers", topology=topology)]
    for name in names:
        assert re.search(
            rf"server {name} .* sni str\({name}\) check-sni {name} verifyhost {name}$", backend, re.MULTILINE
        )
    assert " ssl" not in configuration({}, topology)


def test_haproxy_refuses_a_broken_one(tmp_path: Path, pem: str) -> None:
    """The check above can fail at all, and the role's own validation relies on it."""
    result = check(tmp_path, configuration({"haproxy_balance": "fairest"}), {}, pem)
    assert result.returncode != 0
    assert "balance only supports" in result.stderr


def test_haproxy_refuses_a_key_of_another_certificate(tmp_path: Path, pem: str) -> None:
    other = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    broken = pem.split("-----BEGIN PRIVATE KEY-----", maxsplit=1)[0] + other
    result = check(tmp_path, configuration(TLS), TLS, broken)
    assert result.returncode != 0
    assert "inconsistencies" in result.stderr


def test_servers_are_named_like_the_inventory_and_carry_their_weight() -> None:
    servers = [
        {"name": "app1", "address": "192.0.2.1"},
        {"name": "app2", "address": "192.0.2.2", "weight": 3, "threads": 8, "site": "north"},
    ]
    lines = section(configuration({"haproxy_django_servers": servers}), "backend django")
    assert [line for line in lines if line.startswith("server ")] == [
        "server app1 192.0.2.1:8000 weight 1 maxconn 64",
        "server app2 192.0.2.2:8000 weight 3 maxconn 8",
    ]
    limited = section(configuration({"haproxy_django_servers": servers, "haproxy_django_maxconn": 5}), "backend django")
    assert [line.split()[-1] for line in limited if line.startswith("server ")] == ["5", "5"]


@pytest.mark.parametrize("topology", ["single", "plain", "three"])
def test_every_host_of_the_tiers_is_a_server(topology: str) -> None:
    text = configuration(topology=topology)
    for backend, variable in (("django", "haproxy_django_servers"), ("nginx_static", "haproxy_static_servers")):
        names = [item["name"] for item in evaluate("haproxy", variable, topology=topology)]
        found = [line.split()[1] for line in section(text, f"backend {backend}") if line.startswith("server ")]
        assert found == names
        assert found


def test_balance() -> None:
    assert "balance roundrobin" in section(configuration(), "backend django")
    assert "balance leastconn" in section(configuration({"haproxy_balance": "leastconn"}), "backend django")


def test_persistence_by_cookie() -> None:
    assert "cookie" not in "\n".join(section(configuration(), "backend django"))
    lines = section(configuration({"haproxy_persistence": "cookie"}), "backend django")
    assert "cookie node insert indirect nocache httponly attr SameSite=Lax" in lines
    for line in lines:
        if line.startswith("server "):
            assert line.endswith(f" cookie {line.split()[1]}")
    secure = section(configuration(TLS | {"haproxy_persistence": "cookie"}), "backend django")
    assert "cookie node insert indirect nocache httponly secure attr SameSite=Lax" in secure


def test_without_tls_the_site_is_on_http() -> None:
    text = configuration()
    lines = section(text, "frontend http")
    assert "bind *:80" in lines
    assert "http-request set-header X-Forwarded-Proto http" in lines
    assert "default_backend django" in lines
    assert "frontend https" not in text
    assert "ssl" not in text


def test_with_tls_http_only_redirects() -> None:
    text = configuration(TLS)
    assert section(text, "frontend http") == [
        "bind *:80",
        "http-after-response set-header Connection close if { var(proc.closing) -m bool }",
        "http-request redirect code 308 prefix https://%[req.hdr(Host),host_only]",
    ]
    lines = section(text, "frontend https")
    assert "bind *:443 ssl crt-list /etc/haproxy/certs.list alpn h2,http/1.1" in lines
    assert "http-request set-header X-Forwarded-Proto https" in lines
    assert "http-request set-header X-Forwarded-Port 443" in lines
    assert "Strict-Transport-Security" not in text


def test_strict_transport_security_is_a_choice_and_for_https_alone() -> None:
    wanted = 'http-after-response set-header Strict-Transport-Security "max-age=60"'
    assert wanted in section(configuration(TLS | {"haproxy_hsts_max_age": 60}), "frontend https")
    assert "Strict-Transport-Security" not in configuration({"haproxy_hsts_max_age": 60})


def test_what_clients_claim_is_deleted_before_it_is_set() -> None:
    lines = section(configuration(), "frontend http")
    deleted = lines.index("http-request del-header X-Forwarded -m beg")
    for header in ("For %[src]", "Proto http", "Host %[req.hdr(Host)]", "Port 80"):
        assert lines.index(f"http-request set-header X-Forwarded-{header}") > deleted
    assert "option http-restrict-req-hdr-names delete" in lines
    assert "http-request del-header Forwarded" in lines


def test_private_paths_are_refused_first() -> None:
    rules = [line for line in section(configuration(), "frontend http") if line.startswith("http-request")]
    assert rules[0] == "http-request deny deny_status 404 if { path,url_dec -m beg '/-/' }"


def test_static_path() -> None:
    lines = section(configuration({"cluster_static_path": "/assets/"}), "frontend http")
    assert "use_backend nginx_static if { path_beg '/assets/' }" in lines
    bare = configuration({"haproxy_static_servers": []})
    assert "nginx_static" not in bare


def test_challenges_of_acme_go_to_the_balancer_that_knows_the_answer() -> None:
    lines = section(configuration(ACME), "frontend http")
    assert "use_backend acme if acme" in lines
    assert any(line.startswith("http-request redirect") and line.endswith("unless acme") for line in lines)
    backend = section(configuration(ACME), "backend acme")
    assert [line.split()[1:] for line in backend if line.startswith("server ")] == [
        ["acme-lb1", "192.0.2.11:8406"],
        ["acme-lb2", "192.0.2.12:8406"],
        ["acme-lb3", "192.0.2.13:8406"],
    ]
    assert "acme" not in configuration(TLS)


def test_a_client_is_counted_by_all_balancers_together() -> None:
    text = configuration({"haproxy_rate_limit": 100, "haproxy_rate_limit_period": 20})
    assert "localpeer lb1" in section(text, "global")
    assert section(text, "peers balancers") == [f"peer lb{number} 192.0.2.1{number}:8407" for number in (1, 2, 3)]
    assert section(text, "backend clients") == [
        "stick-table type ipv6 size 100k expire 40s store http_req_rate(20s) peers balancers"
    ]
    lines = section(text, "frontend http")
    assert "http-request track-sc0 src,ipmask(32,64) table clients if !static" in lines
    assert any(line.endswith("if { sc_http_req_rate(0) gt 100 }") and " 429 " in line for line in lines)
    exempt = section(configuration({"haproxy_rate_limit": 1, "haproxy_rate_limit_exempt": ["::1"]}), "frontend http")
    assert "acl exempt src ::1" in exempt
    assert "http-request track-sc0 src,ipmask(32,64) table clients if !exempt !static" in exempt
    assert "clients" not in configuration().split("frontend http", maxsplit=1)[0].replace("clients at", "")


def test_settings_of_acme() -> None:
    settings = json.loads(
        render("haproxy", "acme.json.j2", ACME | {"cluster_virtual_addresses": ["192.0.2.9"]}, host="lb2")
    )
    assert settings["address"] == "192.0.2.12"
    assert settings["names"] == ["shop.example.org"]
    assert settings["doors"] == [["192.0.2.9", 80]]
    assert settings["ca_file"] == ""
    assert json.loads(render("haproxy", "acme.json.j2", ACME, topology="alone"))["doors"] == []


def test_statistics_and_metrics_are_on_the_private_address_alone() -> None:
    text = configuration({"cluster_host_address": "192.0.2.7", "haproxy_stats_password": "hunter2"})
    assert "bind 192.0.2.7:8404" in section(text, "frontend stats")
    assert "http-request auth realm HAProxy unless { http_auth(stats) }" in section(text, "frontend stats")
    assert "bind 192.0.2.7:8405" in section(text, "frontend prometheus")
    assert "hunter2" not in text
    assert text.count("stats enable") == 1


def test_application_sessions_survive_maintenance() -> None:
    """on-marked-down shutdown-sessions would cut requests when an operator puts a server into maintenance."""
    assert "shutdown-sessions" not in configuration()


def test_only_safe_requests_are_repeated() -> None:
    assert "retry-on conn-failure empty-response" in section(configuration(), "defaults site")
    assert "http-request disable-l7-retry unless METH_GET" in section(configuration(), "backend django")


def test_health_check_passes_allowed_hosts_and_ssl_redirect() -> None:
    lines = section(configuration(), "backend django")
    wanted = "uri /-/health ver HTTP/1.1 hdr Host shop.example.org hdr X-Forwarded-Proto https"
    assert f"http-check send meth GET {wanted}" in lines


def test_the_page_needs_nothing_else() -> None:
    page = render("haproxy", "unavailable.html.j2")
    assert not re.search(r"""(src|href)=["'][^"']""", page), "it would load something, while nothing answers"
    assert "prefers-color-scheme: dark" in page
    assert len(page) < 8192, "HAProxy answers with it from one buffer"


def test_unit_keeps_the_state_before_it_reloads() -> None:
    reloads = re.findall(r"^ExecReload=(.*)$", render("haproxy", "flotilla.conf.j2"), flags=re.MULTILINE)
    assert reloads[0] == "", "Debian's own commands would run first"
    assert [command.split()[0].lstrip("-") for command in reloads[1:]] == [
        "/usr/sbin/haproxy",
        "/usr/local/lib/flotilla/haproxy-save-state",
        "/bin/kill",
    ]


def test_the_cache_for_static_files_can_be_left_out() -> None:
    assert "total-max-size 64" in section(configuration(), "cache nginx_static")
    assert "cache" not in configuration({"haproxy_static_cache_mb": 0}).replace("no-cache", "").replace("nocache", "")
