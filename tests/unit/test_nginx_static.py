# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration that nginx_static writes, held against the real Nginx."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from render import ROOT, TOPOLOGIES, evaluate, hosts, render

ROLE = "nginx_static"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
# As playbooks/vars/topology.yml computes it, for static2 of three.
CLUSTER = {
    "cluster_host_address": "192.0.2.52",
    "cluster_topology": {
        group: [{"name": f"{group}{n}", "address": f"192.0.2.{start + n}"} for n in (1, 2, 3)]
        for group, start in (("haproxy", 10), ("django", 20), ("nginx_static", 50))
    },
}
PARTS = ("headers.conf", "listen_public.conf", "listen_internal.conf")


def write(directory: Path, variables: dict[str, Any] | None = None, **where: Any) -> Path:
    """The files as the role writes them, with the paths that need root moved below a directory."""
    values = {**CLUSTER, "nginx_static_bind_address": "127.0.0.1", **(variables or {})}
    for name in (*PARTS, "nginx.conf"):
        text = render(ROLE, f"{name}.j2", values, **where)
        text = text.replace("/etc/nginx/flotilla", str(directory)).replace("/srv/static", str(directory / "srv"))
        text = text.replace("/var/log/nginx", str(directory)).replace("/run/nginx.pid", str(directory / "pid"))
        (directory / name).write_text(text, encoding="utf-8")
    (directory / "srv").mkdir(exist_ok=True)
    return directory / "nginx.conf"


def check(config: Path) -> subprocess.CompletedProcess[str]:
    assert NGINX, "this test needs Debian's nginx and libnginx-mod-http-brotli-static"
    return subprocess.run([NGINX, "-t", "-c", str(config)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"nginx_static_bind_address": "::1", "nginx_static_build_address": "2001:db8::21"},
        {"nginx_static_bind_address": "*", "nginx_static_url_path": "/"},
        {"nginx_static_brotli": False, "nginx_static_access_log": False},
        {"nginx_static_build_address": "", "nginx_static_django_addresses": [], "nginx_static_peer_addresses": []},
        {"nginx_static_balancer_addresses": [], "nginx_static_short_max_age": 0},
        {"nginx_static_hashed_patterns": [r"-[A-Za-z0-9_-]{8}\.(js|css)$", r"""["'$;{}]+$"""]},
        {
            "nginx_static_extra_headers": {
                "Timing-Allow-Origin": "*",
                "X-Odd": 'a "quoted" \\ value',
                "Referrer-Policy": "",
            }
        },
    ],
    ids=lambda value: ",".join(value) or "defaults",
)
def test_nginx_accepts_it(tmp_path: Path, variables: dict[str, Any], topology: str) -> None:
    for host in hosts(ROLE, topology)[:1]:
        result = check(write(tmp_path, variables, topology=topology, host=host))
        assert result.returncode == 0, result.stderr
        assert "[warn]" not in result.stderr.replace('"user" directive makes sense only', "[root]"), result.stderr


def test_nginx_refuses_a_broken_one(tmp_path: Path) -> None:
    assert check(write(tmp_path, {"nginx_static_hashed_patterns": ["(unclosed"]})).returncode != 0


def test_only_the_two_ports_listen() -> None:
    text = "".join(render(ROLE, f"{name}.j2", CLUSTER) for name in ("nginx.conf", *PARTS))
    listening = ["192.0.2.52:8080 default_server", "192.0.2.52:8081 default_server"]
    assert re.findall(r"^\s*listen (.*);", text, re.M) == listening


def test_headers_are_added_in_one_place_only() -> None:
    templates = ROOT / "roles" / ROLE / "templates"
    assert [path.name for path in templates.iterdir() if re.search(r"^\s*add_header ", path.read_text(), re.M)] == [
        "headers.conf.j2"
    ]
    text = render(ROLE, "nginx.conf.j2")
    assert text.count("include /etc/nginx/flotilla/headers.conf;") == text.count("\n    server {") == 2
    headers = [line for line in render(ROLE, "headers.conf.j2").splitlines() if line.startswith("add_header")]
    assert len(headers) == 5
    assert all(line.endswith(" always;") for line in headers)


def test_no_open_file_cache() -> None:
    assert "open_file_cache" not in re.sub("#.*", "", render(ROLE, "nginx.conf.j2"))


def access(text: str) -> tuple[list[str], list[str]]:
    """Who may use the internal server, and who may put."""
    internal = text[text.index("listen_internal.conf") :]
    readers = re.findall(r"^        (?:allow|deny) (.*);", internal, re.M)
    put = internal[internal.index("dav_methods") :]
    return readers, re.findall(r"^                (?:allow|deny) (.*);", put, re.M)


def test_access_to_packs_comes_from_the_topology() -> None:
    readers, writers = access(render(ROLE, "nginx.conf.j2", CLUSTER))
    assert readers == ["192.0.2.21", "192.0.2.22", "192.0.2.23", "192.0.2.51", "192.0.2.53", "all"]
    assert writers == ["192.0.2.21", "all"]


def test_nobody_may_put_without_a_build_host() -> None:
    assert access(render(ROLE, "nginx.conf.j2", {**CLUSTER, "nginx_static_build_address": ""}))[1] == ["all"]


def test_clients_named_by_the_balancer_do_not_count_for_packs() -> None:
    text = render(ROLE, "nginx.conf.j2", CLUSTER)
    assert text.index("real_ip_header") > text.index("listen_public.conf")
    assert "real_ip" not in text[text.index("listen_internal.conf") :]
    assert re.findall(r"set_real_ip_from (.*);", text) == ["192.0.2.11", "192.0.2.12", "192.0.2.13"]


@pytest.mark.parametrize("path", ["/assets", "assets/", "/assets/", "assets"])
def test_a_path_without_its_slashes_opens_no_other_directory(path: str) -> None:
    text = render(ROLE, "nginx.conf.j2", {"nginx_static_url_path": path})
    assert "location ^~ /assets/ {" in text
    assert '"~^1:/assets/"' in text


def test_health_is_where_the_balancers_look() -> None:
    assert "location = /-/health {" in render(ROLE, "nginx.conf.j2")
    assert "location = /up {" in render(ROLE, "nginx.conf.j2", {"cluster_health_path": "/up"})


def test_brotli_can_be_left_out() -> None:
    assert "brotli" not in re.sub("#.*", "", render(ROLE, "nginx.conf.j2", {"nginx_static_brotli": False}))


@pytest.mark.parametrize(
    ("addresses", "urls"),
    [
        ([], []),
        (["192.0.2.52", "2001:db8::52"], ["http://192.0.2.52:8081", "http://[2001:db8::52]:8081"]),
    ],
)
def test_peers_become_urls(addresses: list[str], urls: list[str]) -> None:
    assert evaluate(ROLE, "__nginx_static_peers", {"nginx_static_peer_addresses": addresses}) == urls


def test_a_server_is_not_its_own_peer() -> None:
    assert evaluate(ROLE, "nginx_static_peer_addresses", CLUSTER) == ["192.0.2.51", "192.0.2.53"]


def test_role_stands_alone() -> None:
    assert evaluate(ROLE, "nginx_static_peer_addresses", {"cluster_topology": {}}) == []
    assert evaluate(ROLE, "nginx_static_build_address", {"cluster_topology": {}}) == ""
