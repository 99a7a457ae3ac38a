# SPDX-License-Identifier: GPL-3.0-or-later
"""Which servers keep their state over a reload of the balancer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from render import ROOT, render

# As HAProxy 2.6 and 3.0 print it.
HEADER = (
    "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state "
    "bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr "
    "srv_agent_addr srv_agent_port"
)
SERVERS = [
    {"name": "app1", "address": "192.0.2.1"},
    {"name": "app2", "address": "192.0.2.2"},
]


def line(backend: str, server: str, address: str, port: int) -> str:
    return f"3 {backend} 1 {server} {address} 2 8 1 1 100 6 3 4 6 0 0 0 - {port} - 0 0 - - 0"


def by_configuration(text: str) -> str:
    """The same with the word on TLS left to the configuration: a 0 would win over it."""
    return text.replace(" - 0 0 - - 0", " - 1 0 - - 0")


def state(*lines: str) -> str:
    return "\n".join(["1", HEADER, *lines]) + "\n\n"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("save", ROOT / "roles/haproxy/files/haproxy_save_state.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def configuration() -> str:
    return render("haproxy", "haproxy.cfg.j2", {"haproxy_django_servers": SERVERS, "haproxy_persistence": "cookie"})


def test_reads_the_role_s_own_configuration(script: ModuleType, configuration: str) -> None:
    servers = script.configured_servers(configuration)
    assert servers["django", "app1"] == ("192.0.2.1", "8000")
    assert servers["django", "app2"] == ("192.0.2.2", "8000")
    assert ("nginx_static", "static1") in servers


def test_reads_an_ipv6_address(script: ModuleType) -> None:
    text = "backend django\n    server app1 [2001:db8::1]:8000 weight 1\n"
    assert script.configured_servers(text) == {("django", "app1"): ("2001:db8::1", "8000")}


def test_unchanged_servers_are_kept_as_they_are(script: ModuleType, configuration: str) -> None:
    text = state(line("django", "app1", "192.0.2.1", 8000), line("django", "app2", "192.0.2.2", 8000))
    assert (
        script.kept_state(text, script.configured_servers(configuration)) == by_configuration(text).rstrip("\n") + "\n"
    )


@pytest.mark.parametrize(
    "changed",
    [
        line("django", "app1", "192.0.2.99", 8000),
        line("django", "app1", "192.0.2.1", 8001),
        line("django", "gone", "192.0.2.1", 8000),
        line("gone", "app1", "192.0.2.1", 8000),
        line("nginx_static", "app1", "192.0.2.1", 8000),
    ],
    ids=["address", "port", "server removed", "backend removed", "same name in another backend"],
)
def test_changed_servers_are_dropped(script: ModuleType, configuration: str, changed: str) -> None:
    same = line("django", "app2", "192.0.2.2", 8000)
    kept = script.kept_state(state(changed, same), script.configured_servers(configuration))
    assert kept == f"1\n{HEADER}\n{by_configuration(same)}\n"


@pytest.mark.parametrize("text", ["", "2\n" + HEADER + "\n", "1\n# be_id srv_id\n", "Permission denied\n"])
def test_an_unknown_format_is_refused(script: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match="unknown format"):
        script.kept_state(text, {})


def test_without_an_answer_an_old_state_does_not_survive(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "haproxy.cfg").write_text("")
    (tmp_path / "servers").write_text("old")
    assert script.main(str(tmp_path / "no.sock"), str(tmp_path / "haproxy.cfg"), str(tmp_path / "servers")) == 1
    assert not (tmp_path / "servers").exists()
