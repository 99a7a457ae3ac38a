# SPDX-License-Identifier: GPL-3.0-or-later
"""The shared address: where it belongs on a host, and a configuration that the real keepalived accepts."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _keepalived_plan as plan
from render import ROOT, evaluate, hosts, render

SHARED = "192.0.2.10"


def link(name: str, *addresses: str) -> dict[str, Any]:
    split = [address.split("/") for address in addresses]
    return {"ifname": name, "addr_info": [{"local": local, "prefixlen": int(prefix)} for local, prefix in split]}


LINKS = [link("lo", "127.0.0.1/8"), link("eth0", "192.0.2.11/24", "2001:db8::11/64"), link("eth1", "10.0.0.11/24")]


def found(links: list[dict[str, Any]]) -> dict[str, Any]:
    """What the role's first task reads on the host."""
    return {"stdout_lines": [json.dumps(links), "0", "new", "0"]}


def configuration(links: list[dict[str, Any]] = LINKS, topology: str = "three", **variables: Any) -> str:
    given = {"haproxy_virtual_address": SHARED, "keepalived_addresses": [SHARED]} | variables
    given["keepalived_address"] = given.get("keepalived_address", "192.0.2.11")
    return render("keepalived", "keepalived.conf.j2", given | {"__keepalived_found": found(links)}, topology=topology)


def check(text: str, path: Path) -> subprocess.CompletedProcess[str]:
    """What keepalived says to a configuration, in a network of its own that has the interfaces."""
    keepalived = shutil.which("keepalived", path="/usr/sbin:/usr/bin")
    assert keepalived, "these tests need Debian's keepalived package"
    for name in re.findall(r"^    file (\S+)$", text, re.MULTILINE):
        (path.parent / Path(name).name).write_text("0\n")
        text = text.replace(name, str(path.parent / Path(name).name))
    path.write_text(text)
    command = f"ip link add eth0 type veth peer name eth1 && exec {keepalived} --config-test --use-file={path}"
    return subprocess.run(
        ["unshare", "--map-root-user", "--net", "sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "one": {},
    "several": {"keepalived_addresses": [SHARED, "192.0.2.9", "2001:db8::10"]},
    "inside": {"links": [link("eth0", "198.51.100.11/24"), link("eth1", "192.0.2.11/32", "192.0.2.99/24")]},
    "slow": {"keepalived_interval": 40, "keepalived_router_id": 255},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_keepalived_accepts_it(tmp_path: Path, variant: str) -> None:
    done = check(configuration(**VARIANTS[variant]), tmp_path / "keepalived.conf")
    assert done.returncode == 0, done.stdout + done.stderr


def test_keepalived_accepts_a_balancer_without_others(tmp_path: Path) -> None:
    text = configuration(topology="plain")
    assert "unicast_peer" not in text
    done = check(text, tmp_path / "keepalived.conf")
    assert done.returncode == 0, done.stdout + done.stderr


def test_keepalived_refuses_a_broken_one(tmp_path: Path) -> None:
    """The check above can fail at all, and the role's own validation relies on it."""
    assert check(configuration(keepalived_router_id=300), tmp_path / "keepalived.conf").returncode != 0


def test_the_others_are_peers_and_this_one_is_not() -> None:
    text = configuration(keepalived_address="192.0.2.12", links=[link("eth0", "192.0.2.12/24")])
    peers = re.search(r"unicast_peer \{([^}]*)\}", text)
    assert peers and peers[1].split() == ["192.0.2.11", "192.0.2.13"]
    assert "unicast_src_ip 192.0.2.12" in text
    assert f"{SHARED}/32 dev eth0" in text


def test_no_balancer_takes_the_address_back_and_each_has_a_priority_of_its_own() -> None:
    texts = [
        configuration(keepalived_address=address, links=[link("eth0", f"{address}/24")])
        for address in ("192.0.2.11", "192.0.2.12", "192.0.2.13")
    ]
    assert [re.findall(r"^    priority (\d+)$", text, re.MULTILINE) for text in texts] == [["200"], ["199"], ["198"]]
    for text in texts:
        assert "state BACKUP\n    nopreempt" in text
        # A weight other than 0 together with nopreempt keeps the address where HAProxy is dead.
        assert re.findall(r"weight (\S+)", text) == ["0", "0"]


def test_the_topology_hands_the_addresses_over() -> None:
    for value, wanted in ((SHARED, [SHARED]), ([SHARED, "192.0.2.9"], [SHARED, "192.0.2.9"])):
        groups = {"haproxy": ["lb1"]}
        from ansible_collections.flotilla.django.plugins.module_utils import _cluster_plan as cluster

        assert cluster.virtual_addresses(groups, {"lb1": {"haproxy_virtual_address": value}}) == wanted
    assert evaluate("keepalived", "keepalived_addresses") == []
    assert hosts("keepalived", "three") == ["lb1", "lb2", "lb3"]


def test_each_address_goes_to_the_interface_of_its_network() -> None:
    result = plan.network(LINKS, "10.0.0.11", ["192.0.2.10", "10.0.0.10", "203.0.113.9", "2001:db8::10"])
    assert result["interface"] == "eth1"
    assert [item["interface"] for item in result["addresses"]] == ["eth0", "eth1", "eth1", "eth0"]
    assert [item["prefix"] for item in result["addresses"]] == [32, 32, 32, 128]
    assert [item["same_family"] for item in result["addresses"]] == [True, True, True, False]


def test_the_holder_finds_the_same_interface_as_the_others() -> None:
    """While a host holds the address, the address itself says nothing about where it belongs."""
    holding = [LINKS[0], LINKS[1], link("eth1", "10.0.0.11/24", f"{SHARED}/32")]
    assert plan.network(holding, "10.0.0.11", [SHARED]) == plan.network(LINKS, "10.0.0.11", [SHARED])
    assert configuration(holding) == configuration()


def test_the_smallest_network_and_a_named_interface_win() -> None:
    links = [link("wide", "192.0.0.1/16"), link("near", "192.0.2.11/24")]
    assert plan.network(links, "192.0.2.11", [SHARED])["addresses"][0]["interface"] == "near"
    assert plan.network(links, "192.0.2.11", [SHARED], "wide")["addresses"][0]["interface"] == "wide"


@pytest.mark.parametrize(
    ("own", "interface", "expected"),
    [
        (
            "198.51.100.1",
            "",
            "keepalived_address: got 198.51.100.1, which is on no interface of this host (eth0 192.0.2.11",
        ),
        ("192.0.2.11", "eth7", "keepalived_interface: got 'eth7', wants an interface of this host (lo, eth0, eth1)"),
    ],
)
def test_what_the_host_does_not_have_is_refused(own: str, interface: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        plan.network(LINKS, own, [SHARED], interface)


def test_the_number_of_the_group_is_always_a_valid_one() -> None:
    numbers = [plan.router_id([f"192.0.2.{last}"]) for last in range(256)]
    assert min(numbers) >= 1
    assert max(numbers) <= 255
    assert len(set(numbers)) == 255
    assert 1 <= plan.router_id(["2001:db8::"]) <= 255


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shared_address", ROOT / "roles/keepalived/files/shared_address.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("value", "seconds"), [("15s", 15), ("500ms", 0.5), ("2m", 120), ("1500", 1.5)])
def test_the_time_of_idle_connections_is_read_from_the_balancer(tool: ModuleType, value: str, seconds: float) -> None:
    text = render("haproxy", "haproxy.cfg.j2", {"haproxy_timeout_http_keep_alive": value})
    assert tool.keep_alive_seconds(text) == seconds


@pytest.mark.parametrize(
    ("line", "waits"),
    [
        ("ESTAB      0 0 192.0.2.10:443 198.51.100.7:50000", True),
        ("ESTAB      0 900 192.0.2.10:443 198.51.100.7:50000 timer:(on,12sec,6)", True),
        ("CLOSE-WAIT 0 0 192.0.2.10:443 198.51.100.7:50000", True),
        ("SYN-RECV   0 0 192.0.2.10:443 198.51.100.7:50000 timer:(on,200ms,0)", True),
        ("SYN-RECV   0 0 192.0.2.10:443 198.51.100.7:50000 timer:(on,1.2sec,1)", False),
        ("FIN-WAIT-1 0 1449 [2001:db8::10]:443 [2001:db8::7]:50000 timer:(on,204ms,0)", True),
        ("FIN-WAIT-1 0 1449 192.0.2.10:443 198.51.100.7:50000 timer:(on,54sec,9)", False),
        ("LAST-ACK   0 1 192.0.2.10:443 198.51.100.7:50000 timer:(on,204ms,1)", True),
        ("FIN-WAIT-2 0 0 192.0.2.10:443 198.51.100.7:50000 timer:(timewait,54sec,0)", False),
        ("TIME-WAIT  0 0 192.0.2.10:443 198.51.100.7:50000 timer:(timewait,54sec,0)", False),
        ("LISTEN     0 4096 192.0.2.10:443 0.0.0.0:*", False),
    ],
)
def test_a_client_that_still_lacks_something_is_waited_for(tool: ModuleType, line: str, waits: bool) -> None:
    assert tool.connected(f"{line}\n") == waits


def test_only_clients_of_the_site_are_waited_for(tool: ModuleType) -> None:
    """The kernel's own tool understands the question, and answers it for both kinds of addresses."""
    config = render("haproxy", "haproxy.cfg.j2", {"haproxy_bind_addresses": ["*", "::"]})
    assert tool.clients_of(["192.0.2.10"], config).startswith("( src 192.0.2.10 ) and ( sport = :80 ")
    for address in ("127.0.0.2", "::1"):
        with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
            port = server.getsockname()[1]
            asked = tool.clients_of([address, SHARED], f"frontend http\n    bind *:{port}\n")
            assert tool.connections(asked) == 0
            with socket.create_connection((address, port)):
                assert tool.connections(asked) == 1
                assert tool.connections(tool.clients_of([address], config)) == 0, "another service"


@pytest.mark.parametrize("last", [0, 3])
def test_the_door_is_closed_while_the_address_goes(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, last: int
) -> None:
    """Also where nobody was connected at the first look: somebody may come in before the address is gone."""
    done: list[str] = []
    left = iter([last] * last + [0] * 100)
    config = tmp_path / "haproxy.cfg"
    config.write_text("timeout http-keep-alive 10ms\nfrontend http\n  bind *:80\n")
    monkeypatch.setattr(tool, "HAPROXY_CONFIG", config)
    monkeypatch.setattr(tool, "DRAINED", tmp_path / "drained")
    monkeypatch.setattr(tool, "HANDOVER", 0)
    monkeypatch.setattr(tool, "held", lambda addresses: addresses)
    monkeypatch.setattr(tool, "haproxy", lambda command: "")
    monkeypatch.setattr(tool, "haproxy_answers", lambda: True)
    monkeypatch.setattr(tool, "connections", lambda clients: next(left))
    for name in ("drop_new", "open_again", "give_up"):
        monkeypatch.setattr(tool, name, lambda *_, name=name: done.append(name))
    assert tool.drain([SHARED], timeout=5, force=False)
    assert done == ["drop_new", "give_up", "open_again"]
