# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Which port of which host is open to whom, and what that is in nftables' words. Pure: no I/O, no Ansible."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANY = "any"
ADMIN = "admin"
EVERYWHERE = ("0.0.0.0/0", "::/0")
# What has no ports, by the number that stands in the IP header.
PORTLESS = {"vrrp": 112, "esp": 50, "ah": 51, "gre": 47}
PROTOCOLS = ("tcp", "udp", *PORTLESS)
KEYS = ("name", "protocol", "ports", "from")
# A comment of nftables ends at the quote, and has at most 128 bytes.
NAME = re.compile(r"[A-Za-z0-9 ._,:/()+-]{1,100}")

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Service:
    """A port that the hosts of one tier open, and the tiers that need it."""

    name: str
    # ANY: the hosts of every tier.
    tier: str
    # The first of these variables that the host has says the port; or else it is the default.
    variables: tuple[str, ...]
    default: int
    clients: tuple[str, ...]
    # The service runs only where one of these variables is set, where there are any.
    when: tuple[str, ...] = ()
    # It runs where this variable is true, or else where the tier has more than one host.
    clustered: str = ""
    # A variable with one more address to which the port is open.
    also: str = ""
    protocol: str = "tcp"


ACME = "haproxy_acme_directory_url"

# The whole matrix. What a tier talks to stands in the README; whoever adds a listening port adds it here.
SERVICES = (
    Service("site", "haproxy", ("haproxy_http_port",), 80, (ANY,)),
    Service("site by https", "haproxy", ("haproxy_https_port",), 443, (ANY,), when=("haproxy_tls_certificate", ACME)),
    Service("acme challenges", "haproxy", ("haproxy_acme_port",), 8406, ("haproxy",), when=(ACME,)),
    Service("haproxy peers", "haproxy", ("haproxy_peers_port",), 8407, ("haproxy",), when=("haproxy_rate_limit",)),
    Service("haproxy statistics", "haproxy", ("haproxy_stats_port",), 8404, (ADMIN,)),
    Service(
        "haproxy metrics",
        "haproxy",
        ("haproxy_prometheus_port", "cluster_haproxy_metrics_port"),
        8405,
        ("prometheus",),
    ),
    Service("django", "django", ("django_port", "cluster_django_port"), 8000, ("haproxy", "prometheus")),
    Service("static files", "nginx_static", ("nginx_static_port", "cluster_static_port"), 8080, ("haproxy",)),
    Service(
        "releases",
        "nginx_static",
        ("nginx_static_internal_port", "cluster_static_internal_port"),
        8081,
        ("django", "nginx_static"),
        also="cluster_build_address",
    ),
    Service("postgresql", "postgresql", ("postgresql_port", "cluster_postgresql_port"), 5432, ("django", "postgresql")),
    Service("redis", "redis", ("redis_port", "cluster_redis_port"), 6379, ("django", "redis")),
    Service(
        "redis sentinel",
        "redis",
        ("redis_sentinel_port", "cluster_redis_sentinel_port"),
        26379,
        ("django", "redis"),
        clustered="redis_sentinel",
    ),
    # What the monitor asks, and nobody else. Without a monitor they are closed.
    Service("node exporter", ANY, ("exporters_node_port", "cluster_node_exporter_port"), 9100, ("prometheus",)),
    Service(
        "postgresql exporter",
        "postgresql",
        ("exporters_postgresql_port", "cluster_postgresql_exporter_port"),
        9187,
        ("prometheus",),
    ),
    Service("redis exporter", "redis", ("exporters_redis_port", "cluster_redis_exporter_port"), 9121, ("prometheus",)),
    Service(
        "nginx exporter", "nginx_static", ("exporters_nginx_port", "cluster_nginx_exporter_port"), 9113, ("prometheus",)
    ),
    # Its pages, for people and for the other monitor. Two Alertmanagers talk to each other besides.
    Service("monitoring", "prometheus", ("prometheus_web_port",), 9095, (ADMIN, "prometheus")),
    Service(
        "alertmanager peers",
        "prometheus",
        ("prometheus_peers_port",),
        9094,
        ("prometheus",),
        clustered="prometheus_alertmanager_cluster",
    ),
    Service(
        "alertmanager peers",
        "prometheus",
        ("prometheus_peers_port",),
        9094,
        ("prometheus",),
        clustered="prometheus_alertmanager_cluster",
        protocol="udp",
    ),
)
TIERS = tuple(dict.fromkeys(service.tier for service in SERVICES if service.tier != ANY))
# What the matrix reads of a host.
VARIABLES = tuple(
    dict.fromkeys(
        name
        for service in SERVICES
        for name in (*service.variables, *service.when, service.clustered, service.also)
        if name
    )
)


def openings(
    name: str,
    groups: Mapping[str, Sequence[str]],
    variables: Mapping[str, Any],
    shared_addresses: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """What a host opens, each as {name, protocol, ports, from}; `from` names tiers, not addresses."""
    found: list[dict[str, Any]] = []
    for service in SERVICES:
        tiers = TIERS if service.tier == ANY else (service.tier,)
        hosts = [host for tier in tiers for host in groups.get(tier, ())]
        if name not in hosts:
            continue
        if service.when and not any(variables.get(key) for key in service.when):
            continue
        said = variables.get(service.clustered) if service.clustered else True
        if not (_is_true(said) if said is not None else len(hosts) > 1):
            continue
        port = next((variables[key] for key in service.variables if variables.get(key) is not None), service.default)
        clients = [*service.clients]
        if service.also and variables.get(service.also):
            clients.append(str(variables[service.also]))
        found.append({"name": service.name, "protocol": service.protocol, "ports": [str(port)], "from": clients})
    if shared_addresses and name in groups.get("haproxy", ()):
        found.append({"name": "keepalived", "protocol": "vrrp", "ports": [], "from": ["haproxy"]})
    return found


def resolve(
    items: Iterable[Mapping[str, Any]],
    topology: Mapping[str, Sequence[Mapping[str, Any]]],
    admin_networks: Sequence[str],
) -> list[dict[str, Any]]:
    """The openings with networks in the place of words, without those that are open to nobody."""
    found = []
    for item in items:
        problem = opening_problem(item, topology)
        if problem:
            raise ValueError(problem)
        networks: list[IPNetwork] = []
        for source in _listed(item["from"]):
            for text in _addresses(str(source), topology, admin_networks):
                networks.append(network(text))
        if networks:
            found.append(
                {
                    "name": str(item["name"]),
                    "protocol": str(item.get("protocol") or "tcp"),
                    "ports": [str(port) for port in _listed(item.get("ports"))],
                    "sources": collapse(networks),
                }
            )
    return found


def _addresses(
    source: str, topology: Mapping[str, Sequence[Mapping[str, Any]]], admin_networks: Sequence[str]
) -> list[str]:
    if source == ANY:
        return [*EVERYWHERE]
    if source == ADMIN:
        return [str(item) for item in admin_networks]
    if source in topology:
        return [str(member["address"]) for member in topology[source]]
    return [source]


def network(text: object) -> IPNetwork:
    """An address or a network; ValueError says what is wrong with it."""
    try:
        return ipaddress.ip_network(str(text), strict=True)
    except ValueError as error:
        raise ValueError(f"got {text!r}, wants an IP address or a network such as 192.0.2.0/24 ({error})") from None


def collapse(networks: Iterable[IPNetwork]) -> list[str]:
    """Each once, IPv4 first, without those that are inside another one; an address stands without its prefix length."""
    every = sorted(set(networks), key=lambda item: (item.version, item.network_address.packed, item.prefixlen))
    return [
        str(item.network_address) if item.prefixlen == item.max_prefixlen else str(item)
        for item in every
        if not any(item != other and _inside(item, other) for other in every)
    ]


def _inside(item: IPNetwork, other: IPNetwork) -> bool:
    return item.version == other.version and other.prefixlen <= item.prefixlen and item.network_address in other


def members(topology: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The addresses of all hosts of the cluster."""
    return collapse(network(member["address"]) for tier in topology.values() for member in tier)


def of_family(sources: Iterable[str], version: int) -> list[str]:
    """Those of one version of the Internet protocol."""
    return [item for item in sources if ipaddress.ip_network(item).version == version]


def statements(rules: Iterable[Mapping[str, Any]]) -> list[str]:
    """The rules as nftables writes them."""
    found = []
    for rule in rules:
        number = PORTLESS.get(rule["protocol"])
        what = f"meta l4proto {number}" if number else f"{rule['protocol']} dport {_set(rule['ports'])}"
        for whence in _whence(rule["sources"]):
            found.append(f'{whence}{what} accept comment "{rule["name"]}"')
    return found


def _whence(sources: Sequence[str]) -> list[str]:
    if set(EVERYWHERE) <= set(sources):
        return [""]
    found = []
    for version, word, protocol in ((4, "ip", "ipv4"), (6, "ip6", "ipv6")):
        listed = of_family(sources, version)
        if EVERYWHERE[version == 6] in listed:
            found.append(f"meta nfproto {protocol} ")
        elif listed:
            found.append(f"{word} saddr {_set(listed)} ")
    return found


def _set(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else "{ " + ", ".join(items) + " }"


# The part of the file that the template fills with statements().
BLOCK = re.compile(r"(?P<head>\n  chain openings \{\n)(?P<body>(?:    [^\n]*\n)*)(?P<tail>  \}\n)")


def union(former: str, wanted: str) -> str:
    """The wanted rules, and those openings of the former ones that are no longer wanted: nobody is shut out yet."""
    before, after = BLOCK.search(former), BLOCK.search(wanted)
    if not before or not after:
        return wanted
    body = after["body"].splitlines()
    kept = [line for line in before["body"].splitlines() if line not in body]
    text = "".join(f"{line}\n" for line in [*body, *kept])
    return wanted[: after.start("body")] + text + wanted[after.end("body") :]


@dataclass(frozen=True)
class Connection:
    """What SSH_CONNECTION says of the connection by which Ansible is on the host."""

    client: str
    client_port: int
    port: int

    @property
    def token(self) -> str:
        return f"{self.client} {self.client_port}"


def connection(text: str) -> Connection | None:
    """`192.0.2.1 51234 192.0.2.11 22`; None for anything else."""
    fields = text.split()
    if len(fields) != 4 or not fields[1].isdigit() or not fields[3].isdigit():
        return None
    return Connection(fields[0], int(fields[1]), int(fields[3]))


def address(text: str) -> IPAddress:
    """An address as SSH tells it: perhaps with a zone, perhaps an IPv4 one inside an IPv6 one."""
    found = ipaddress.ip_address(text.split("%", 1)[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def admits(rules: Iterable[Mapping[str, Any]], client: str, port: int, protocol: str = "tcp") -> bool:
    """Whether the rules let a new connection of that client to that port through."""
    wanted = address(client)
    return any(
        rule["protocol"] == protocol
        and any(_covers(str(item), port) for item in rule["ports"])
        and any(wanted in ipaddress.ip_network(source) for source in rule["sources"])
        for rule in rules
    )


def _covers(ports: str, port: int) -> bool:
    first, _, last = ports.partition("-")
    return int(first) <= port <= int(last or first)


def lockout(rules: Sequence[Mapping[str, Any]], by: Connection) -> str | None:
    """Why the rules would lock out the one who is connected; None when they don't."""
    if admits(rules, by.client, by.port):
        return None
    where = [
        rule for rule in rules if rule["protocol"] == "tcp" and any(_covers(item, by.port) for item in rule["ports"])
    ]
    who = address(by.client)
    if where:
        admitted = ", ".join(dict.fromkeys(source for rule in where for source in rule["sources"]))
        return (
            f"firewall_admin_networks: got {admitted}, wants {who} among them: that is where Ansible reaches this host "
            "from, and it would be locked out. Nothing was changed"
        )
    return (
        f"firewall_ssh_ports: wants {by.port} among them: that is the port at which Ansible, from {who}, reaches this "
        "host, and it would be locked out. Nothing was changed"
    )


def problems(
    enabled: object, admin_networks: object, ssh_ports: object, extra_rules: object, tiers: Iterable[str]
) -> list[str]:
    """What is wrong with the variables of a host, each with the variable, what it got and what it wants."""
    found: list[str] = []
    networks = _listed(admin_networks)
    if _is_true(enabled) and not networks:
        found.append(
            "firewall_admin_networks {on}: is not set although firewall_enabled is, wants the networks from which the "
            "hosts are administered by SSH"
        )
    for item in networks:
        try:
            network(item)
        except ValueError as error:
            found.append(f"firewall_admin_networks {{on}}: {error}")
    for port in _listed(ssh_ports):
        if not _is_port(str(port)):
            found.append(f"firewall_ssh_ports {{on}}: got {port!r}, wants port numbers from 1 to 65535")
    known = dict.fromkeys(tiers, ())
    for item in _listed(extra_rules):
        problem = opening_problem(item, known) if isinstance(item, Mapping) else f"got {item!r}, wants a mapping"
        if problem:
            found.append(f"firewall_extra_rules {{on}}: {problem}")
    return found


def opening_problem(item: Mapping[str, Any], tiers: Iterable[str]) -> str | None:
    """What is wrong with one opening."""
    name, protocol = item.get("name"), item.get("protocol") or "tcp"
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"got the name {name!r}, wants up to 100 letters, digits, spaces and . _ , : / ( ) + -"
    if unknown := [str(key) for key in item if key not in KEYS]:
        return f"{name}: got {', '.join(unknown)}, wants {', '.join(KEYS)}"
    if protocol not in PROTOCOLS:
        return f"{name}: got the protocol {protocol!r}, wants one of {', '.join(PROTOCOLS)}"
    ports = _listed(item.get("ports"))
    if protocol in PORTLESS and ports:
        return f"{name}: got ports, wants none: {protocol} has none"
    if protocol not in PORTLESS and not ports:
        return f"{name}: has no ports, wants a list of numbers or ranges such as 8000-8010"
    for port in ports:
        if not _is_ports(str(port)):
            return f"{name}: got the port {port!r}, wants a number from 1 to 65535 or a range such as 8000-8010"
    sources = _listed(item.get("from"))
    if not sources:
        return f"{name}: has no from, wants networks, tiers, admin or any"
    known = {ANY, ADMIN, *tiers}
    for source in sources:
        if str(source) not in known:
            try:
                network(source)
            except ValueError:
                words = ", ".join(sorted(known))
                return f"{name}: got from {source!r}, wants an IP address, a network (192.0.2.0/24), or one of {words}"
    return None


def _is_port(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 1 <= int(text) <= 65535


def _is_ports(text: str) -> bool:
    first, dash, last = text.partition("-")
    return _is_port(first) and (not dash or (_is_port(last) and int(first) < int(last)))


def _is_true(value: object) -> bool:
    return str(value).lower() in ("true", "yes", "on", "1")


def _listed(value: object) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
