# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall: which port is open to whom, who would be locked out, and rules that the real nftables accepts."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _firewall_plan as plan
from render import evaluate, hosts, render, role_variables

ADMIN = ["198.51.100.0/24", "2001:db8:a::/48"]
GIVEN: dict[str, Any] = {"firewall_enabled": True, "firewall_admin_networks": ADMIN}

GROUPS = {
    "haproxy": ["lb1", "lb2"],
    "django": ["app1"],
    "redis": ["cache1", "cache2"],
    "postgresql": ["db1"],
    "nginx_static": ["static1"],
    "prometheus": ["mon1", "mon2"],
}
TOPOLOGY = {
    tier: [{"name": name, "address": f"192.0.2.{ten}{number}"} for number, name in enumerate(names, start=1)]
    for ten, (tier, names) in enumerate(GROUPS.items(), start=1)
}


def opened(name: str, groups: dict[str, list[str]] = GROUPS, **variables: Any) -> dict[str, list[str]]:
    """Port -> from, of one host."""
    shared = variables.pop("shared", ["192.0.2.100"])
    return {
        item["ports"][0] if item["ports"] else item["protocol"]: item["from"]
        for item in plan.openings(name, groups, variables, shared)
    }


def rules_text(topology: str = "three", host: str | None = None, **variables: Any) -> str:
    return render("firewall", "firewall.nft.j2", GIVEN | variables, topology=topology, host=host)


def openings_of(text: str) -> list[str]:
    block = plan.BLOCK.search(text)
    assert block, text
    return [line.strip() for line in block["body"].splitlines()]


def nft(text: str, *commands: str) -> subprocess.CompletedProcess[str]:
    """nft in a network of its own: loads the text, then runs the commands."""
    program = shutil.which("nft", path="/usr/sbin:/usr/bin")
    assert program, "these tests need Debian's nftables package"
    script = " && ".join([f"{program} --file -", *(f"{program} {command}" for command in commands)])
    return subprocess.run(
        ["unshare", "--map-root-user", "--net", "sh", "-c", script],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


# The matrix, written down a second time: it must not follow a mistake in the code.
MATRIX = {
    "lb1": {
        "80": ["any"],
        "443": ["any"],
        "8404": ["admin"],
        "8405": ["prometheus"],
        "9100": ["prometheus"],
        "vrrp": ["haproxy"],
    },
    "app1": {"8000": ["haproxy", "prometheus"], "9100": ["prometheus"]},
    "cache1": {
        "6379": ["django", "redis"],
        "26379": ["django", "redis"],
        "9100": ["prometheus"],
        "9121": ["prometheus"],
    },
    "db1": {"5432": ["django", "postgresql"], "9100": ["prometheus"], "9187": ["prometheus"]},
    "static1": {
        "8080": ["haproxy"],
        "8081": ["django", "nginx_static"],
        "9100": ["prometheus"],
        "9113": ["prometheus"],
    },
    "mon1": {"9094": ["prometheus"], "9095": ["admin", "prometheus"], "9100": ["prometheus"]},
}


@pytest.mark.parametrize("name", MATRIX)
def test_each_port_is_open_to_the_tiers_that_need_it(name: str) -> None:
    assert opened(name, haproxy_tls_certificate="PEM") == MATRIX[name]


def test_what_does_not_run_is_not_open() -> None:
    assert "443" not in opened("lb1")
    assert "vrrp" not in opened("lb1", shared=[])
    alone = GROUPS | {"redis": ["cache1"]}
    assert "26379" not in opened("cache1", alone)
    assert "26379" in opened("cache1", alone, redis_sentinel=True)
    assert "26379" not in opened("cache1", redis_sentinel=False)
    assert opened("stranger") == {}


def test_what_the_balancers_tell_each_other_is_open_between_them_where_they_do() -> None:
    with_acme = opened("lb1", haproxy_acme_directory_url="https://ca.test/directory")
    assert (with_acme["443"], with_acme["8406"]) == (["any"], ["haproxy"])
    assert opened("lb1", haproxy_rate_limit=100)["8407"] == ["haproxy"]
    assert not {"8406", "8407"} & set(opened("lb1", haproxy_tls_certificate="PEM", haproxy_rate_limit=0))


def test_a_host_of_several_tiers_opens_what_each_needs() -> None:
    groups = {tier: ["all"] for tier in GROUPS}
    exporters = {"9100", "9113", "9121", "9187", "9095"}
    tiers = {"80", "8404", "8405", "vrrp", "8000", "8080", "8081", "5432", "6379"}
    assert set(opened("all", groups)) == tiers | exporters


def test_two_monitors_talk_to_each_other() -> None:
    found = [item for item in plan.openings("mon1", GROUPS, {}) if item["ports"] == ["9094"]]
    assert [(item["protocol"], item["from"]) for item in found] == [("tcp", ["prometheus"]), ("udp", ["prometheus"])]
    assert "9094" not in opened("mon1", GROUPS | {"prometheus": ["mon1"]})


def test_without_a_monitor_nothing_is_open_to_it() -> None:
    nobody = {tier: plan.resolve(plan.openings(names[0], GROUPS, {}), TOPOLOGY | {"prometheus": []}, ADMIN)
              for tier, names in GROUPS.items()}  # fmt: skip
    assert not {rule["name"] for rules in nobody.values() for rule in rules if "exporter" in rule["name"]}


def test_ports_follow_the_variables_of_the_roles() -> None:
    assert list(opened("db1", cluster_postgresql_port=5433)) == ["5433", "9100", "9187"]
    assert list(opened("db1", cluster_postgresql_port=5433, postgresql_port=5434)) == ["5434", "9100", "9187"]
    assert list(opened("db1", cluster_node_exporter_port=9101)) == ["5432", "9101", "9187"]
    assert opened("static1", cluster_build_address="192.0.2.77")["8081"] == ["django", "nginx_static", "192.0.2.77"]


def test_every_shared_port_of_the_cluster_is_in_the_matrix() -> None:
    """Whoever invents a cluster_x_port must say who needs it."""
    from ansible_collections.flotilla.django.plugins.module_utils import _cluster_plan as cluster

    ports = {name for name in cluster.OWN_VARIABLES if re.fullmatch(r"cluster_\w+_port", name)}
    assert ports <= set(plan.VARIABLES)
    for service in plan.SERVICES:
        assert {service.tier, *service.clients} <= {*cluster.TIERS, plan.ANY, plan.ADMIN}


@pytest.mark.parametrize(
    ("role", "topology"), [(role, topology) for role in GROUPS for topology in ("single", "plain", "three")]
)
def test_the_default_ports_are_those_of_the_roles(role: str, topology: str) -> None:
    for service in plan.SERVICES:
        if service.tier == role:
            owner = "exporters" if service.variables[0].startswith("exporters_") else role
            assert evaluate(owner, service.variables[0], topology=topology) == service.default, service


def test_tiers_become_the_addresses_of_their_hosts() -> None:
    found = plan.resolve(plan.openings("cache1", GROUPS, {}), TOPOLOGY, ADMIN)
    assert found[0] == {
        "name": "redis",
        "protocol": "tcp",
        "ports": ["6379"],
        "sources": ["192.0.2.21", "192.0.2.31", "192.0.2.32"],
    }


def test_an_opening_to_a_tier_without_hosts_is_no_opening() -> None:
    rules = plan.resolve(plan.openings("lb1", GROUPS, {}), TOPOLOGY | {"prometheus": []}, ADMIN)
    assert [rule["name"] for rule in rules] == ["site", "haproxy statistics"]


def test_addresses_inside_a_network_are_not_listed_beside_it() -> None:
    item = {
        "name": "x",
        "ports": [1],
        "from": ["192.0.2.7", "192.0.2.0/24", "192.0.2.7", "198.51.100.1", "2001:db8::1"],
    }
    assert plan.resolve([item], {}, [])[0]["sources"] == ["192.0.2.0/24", "198.51.100.1", "2001:db8::1"]


@pytest.mark.parametrize(
    ("sources", "ports", "expected"),
    [
        (["0.0.0.0/0", "::/0"], ["80"], ["tcp dport 80"]),
        (
            ["0.0.0.0/0", "2001:db8::1"],
            ["80"],
            ["meta nfproto ipv4 tcp dport 80", "ip6 saddr 2001:db8::1 tcp dport 80"],
        ),
        (["::/0"], ["80"], ["meta nfproto ipv6 tcp dport 80"]),
        (["192.0.2.1", "192.0.2.2"], ["80", "90-99"], ["ip saddr { 192.0.2.1, 192.0.2.2 } tcp dport { 80, 90-99 }"]),
    ],
)
def test_statements(sources: list[str], ports: list[str], expected: list[str]) -> None:
    rule = {"name": "x", "protocol": "tcp", "ports": ports, "sources": sources}
    assert plan.statements([rule]) == [f'{line} accept comment "x"' for line in expected]


def rule(sources: list[str], ports: list[str] | None = None, protocol: str = "tcp") -> dict[str, Any]:
    return {"name": "ssh", "protocol": protocol, "ports": ports or ["22"], "sources": sources}


@pytest.mark.parametrize(
    ("rules", "client", "port", "expected"),
    [
        ([rule(["198.51.100.0/24"])], "198.51.100.7", 22, None),
        ([rule(["198.51.100.0/24"])], "::ffff:198.51.100.7", 22, None),
        ([rule(["fe80::/10"])], "fe80::1%eth0", 22, None),
        ([rule(["0.0.0.0/0", "::/0"])], "2001:db8::9", 22, None),
        ([rule(["203.0.113.9"]), rule(["198.51.100.0/24"], ["20-29"])], "198.51.100.7", 22, None),
        (
            [rule(["198.51.100.0/24"])],
            "203.0.113.9",
            22,
            "firewall_admin_networks: got 198.51.100.0/24, wants 203.0.113.9",
        ),
        (
            [rule(["198.51.100.0/24"])],
            "2001:db8::9",
            22,
            "firewall_admin_networks: got 198.51.100.0/24, wants 2001:db8::9",
        ),
        ([rule(["198.51.100.0/24"])], "198.51.100.7", 2222, "firewall_ssh_ports: wants 2222 among them"),
        ([rule(["198.51.100.0/24"], protocol="udp")], "198.51.100.7", 22, "firewall_ssh_ports: wants 22 among them"),
        ([], "198.51.100.7", 22, "firewall_ssh_ports: wants 22 among them"),
    ],
)
def test_who_is_connected_is_not_locked_out(
    rules: list[dict[str, Any]], client: str, port: int, expected: str | None
) -> None:
    problem = plan.lockout(rules, plan.Connection(client, 50000, port))
    assert (problem is None) if expected is None else (problem or "").startswith(expected)


def test_reading_the_connection() -> None:
    assert plan.connection("192.0.2.1 51234 192.0.2.11 22") == plan.Connection("192.0.2.1", 51234, 22)
    assert plan.connection("") is None
    assert plan.connection("192.0.2.1 x 192.0.2.11 22") is None


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"name": 'a "quote"', "ports": [1], "from": ["any"]}, "got the name"),
        ({"ports": [1], "from": ["any"]}, "got the name None"),
        ({"name": "x", "port": 1, "from": ["any"]}, "x: got port, wants name, protocol, ports, from"),
        ({"name": "x", "protocol": "icmp", "ports": [1], "from": ["any"]}, "x: got the protocol 'icmp'"),
        ({"name": "x", "from": ["any"]}, "x: has no ports"),
        ({"name": "x", "ports": [0], "from": ["any"]}, "x: got the port 0"),
        ({"name": "x", "ports": ["9-8"], "from": ["any"]}, "x: got the port '9-8'"),
        ({"name": "x", "ports": ["1; flush ruleset"], "from": ["any"]}, "x: got the port"),
        ({"name": "x", "ports": [65536], "from": ["any"]}, "x: got the port 65536"),
        ({"name": "x", "ports": [1]}, "x: has no from"),
        ({"name": "x", "ports": [1], "from": ["djnago"]}, "x: got from 'djnago', wants an IP address"),
        ({"name": "x", "ports": [1], "from": ["192.0.2.1/24"]}, "x: got from '192.0.2.1/24'"),
        ({"name": "x", "protocol": "esp", "ports": [1], "from": ["any"]}, "x: got ports, wants none"),
        ({"name": "x", "ports": [1, "8000-8010"], "from": ["django", "admin", "any", "2001:db8::/32"]}, None),
        ({"name": "x", "protocol": "esp", "from": ["192.0.2.1"]}, None),
        ({"name": "x", "ports": 1, "from": "any"}, None),
    ],
)
def test_openings_of_the_operator_are_checked(item: dict[str, Any], expected: str | None) -> None:
    problem = plan.opening_problem(item, ["django"])
    assert problem is None if expected is None else (problem or "").startswith(expected), problem
    if expected:
        with pytest.raises(ValueError, match=re.escape(expected)):
            plan.resolve([item], {"django": []}, [])


def test_a_firewall_without_admin_networks_is_refused() -> None:
    assert "firewall_admin_networks {on}: is not set" in plan.problems(True, None, None, None, [])[0]
    assert plan.problems(False, None, None, None, []) == []
    assert "got '192.0.2.1/24'" in plan.problems(True, ["192.0.2.1/24"], None, None, [])[0]
    assert "firewall_ssh_ports {on}: got 'ssh'" in plan.problems(True, ADMIN, ["ssh"], None, [])[0]
    assert "firewall_extra_rules {on}: got 'x'" in plan.problems(True, ADMIN, 22, ["x"], [])[0]


@pytest.mark.parametrize("topology", ["alone", "single", "plain", "three"])
def test_nftables_accepts_the_rules_of_every_host(topology: str) -> None:
    for host in hosts("firewall", topology):
        text = rules_text(topology, host)
        done = nft(text)
        assert done.returncode == 0, f"{host}: {done.stderr}\n{text}"


def test_nftables_accepts_everything_that_an_operator_may_say() -> None:
    extra = [
        {"name": "VPN (udp)", "protocol": "udp", "ports": [51820], "from": ["any"]},
        {"name": "tunnel", "protocol": "gre", "from": ["203.0.113.0/24", "203.0.113.7", "2001:db8::/32"]},
        {"name": "agent", "ports": ["9100-9200", 22], "from": ["prometheus", "admin", "::/0"]},
    ]
    text = rules_text(firewall_extra_rules=extra, firewall_ssh_ports=[22, 2222])
    assert nft(text).returncode == 0, nft(text).stderr
    assert "meta l4proto 47" in text


def test_nftables_refuses_broken_rules() -> None:
    """The check above can fail at all."""
    assert nft(rules_text().replace("policy drop", "policy dorp")).returncode != 0


def test_loading_twice_gives_one_table_and_leaves_the_others() -> None:
    text = rules_text()
    other = "table inet mine { chain input { type filter hook input priority 0; tcp dport 9 drop; }; }\n"
    done = nft(other + text + text, "list tables", "list table inet flotilla_firewall", "list table inet mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("table inet mine\ntable inet flotilla_firewall\n")
    assert done.stdout.count('comment "ssh"') == 2  # IPv4 and IPv6
    assert "tcp dport 9 drop" in done.stdout
    assert "flush ruleset" not in "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def test_what_is_not_let_in_is_dropped() -> None:
    text = rules_text(host="db1")
    assert "policy drop;" in text
    assert openings_of(text) == [
        'ip saddr 198.51.100.0/24 tcp dport 22 accept comment "ssh"',
        'ip6 saddr 2001:db8:a::/48 tcp dport 22 accept comment "ssh"',
        "ip saddr { 192.0.2.21, 192.0.2.22, 192.0.2.23, 192.0.2.41, 192.0.2.42, 192.0.2.43 } tcp dport 5432 accept "
        'comment "postgresql"',
        'ip saddr { 192.0.2.61, 192.0.2.62 } tcp dport 9100 accept comment "node exporter"',
        'ip saddr { 192.0.2.61, 192.0.2.62 } tcp dport 9187 accept comment "postgresql exporter"',
    ]
    # Nothing else lets a connection in: what stands outside of the openings lets in answers, and what is no connection.
    chain = text[text.index("chain input") :]
    assert all("established" in line or "icmp" in line or "iif lo" in line or "!= syn" in line or "dport 546" in line
               for line in chain.splitlines() if line.endswith("accept"))  # fmt: skip


def test_what_comes_by_a_connection_for_each_request_is_not_followed() -> None:
    text = rules_text(host="app1", firewall_untracked_ports=[8000, 8443])
    assert [line.strip() for line in text.splitlines() if line.endswith("notrack")] == [
        f"{family} {end}addr @members{version} tcp {port} {{ 8000, 8443 }} notrack"
        for end in ("s", "d")
        for family, version in (("ip", 4), ("ip6", 6))
        for port in ("sport", "dport")
    ]
    assert nft(text).returncode == 0, nft(text).stderr
    assert rules_text(host="app1").count(" tcp dport { 8000 } notrack") == 4
    assert "notrack" not in rules_text(host="app1", firewall_untracked_ports=[])


def test_the_union_opens_the_new_and_keeps_the_former() -> None:
    before, after = rules_text("three", "db1"), rules_text("plain", "db1")
    assert openings_of(before) != openings_of(after)
    both = plan.union(before, after)
    assert set(openings_of(both)) == {*openings_of(before), *openings_of(after)}
    assert nft(both).returncode == 0
    # Again nothing more, and without the former ones it is what is wanted.
    assert plan.union(both, after) == both
    assert plan.union(after, after) == after
    assert plan.union("what somebody else wrote", after) == after


def test_the_role_is_off_unless_it_is_chosen() -> None:
    assert evaluate("firewall", "firewall_enabled") is False


def test_the_topology_hands_the_openings_over() -> None:
    found = evaluate("firewall", "firewall_openings", host="db1")
    assert found[0] == {"name": "postgresql", "protocol": "tcp", "ports": ["5432"], "from": ["django", "postgresql"]}
    assert [item["name"] for item in found] == ["postgresql", "node exporter", "postgresql exporter"]
    assert role_variables("firewall", "three", "db1")["firewall_enabled"] is False
