# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""The cluster as the inventory describes it, and what is wrong with that. Pure: no I/O, no Ansible."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _firewall_plan as firewall

TIERS = ("haproxy", "django", "redis", "postgresql", "nginx_static", "prometheus")
REQUIRED_TIERS = ("haproxy", "django", "postgresql", "redis", "nginx_static")
PREFIXES = ("cluster_", "exporters_", "firewall_", "keepalived_", *(f"{tier}_" for tier in TIERS))
SECRET_LENGTH = 16
# Each secret with the tiers whose hosts need it.
SECRETS: dict[str, tuple[str, ...]] = {
    "cluster_database_password": ("django", "postgresql"),
    "cluster_redis_password": ("django", "redis"),
    "django_secret_key": ("django",),
    "postgresql_replication_password": ("postgresql",),
    "redis_replication_password": ("redis",),
    "redis_admin_password": ("redis",),
    "redis_sentinel_password": ("redis",),
    "haproxy_stats_password": ("haproxy",),
    "cluster_redis_monitoring_password": ("redis",),
    "prometheus_password": ("prometheus",),
}
# What nobody needs to set who has no monitor.
MONITORING_SECRETS = frozenset({"cluster_redis_monitoring_password", "prometheus_password"})
# Variables that no role's specification names: they are read by the playbooks.
OWN_VARIABLES = frozenset(
    {
        *SECRETS,
        "cluster_address",
        "cluster_addresses",
        "cluster_build_address",
        "cluster_ca_directory",
        "cluster_ca_name",
        "cluster_ca_names",
        "cluster_ca_passphrase",
        "cluster_database_name",
        "cluster_database_user",
        "cluster_django_port",
        "cluster_domain",
        "cluster_firewall_openings",
        "cluster_haproxy_metrics_port",
        "cluster_health_path",
        "cluster_host_address",
        "cluster_internal_tls",
        "cluster_nginx_exporter_port",
        "cluster_node_exporter_port",
        "cluster_postgresql_exporter_port",
        "cluster_redis_exporter_port",
        "cluster_postgresql_port",
        "cluster_redis_port",
        "cluster_redis_sentinel_port",
        "cluster_redis_user",
        "cluster_static_internal_port",
        "cluster_static_path",
        "cluster_static_port",
        "cluster_tls",
        "cluster_topology",
        "cluster_virtual_addresses",
        "haproxy_virtual_address",
        "haproxy_weight",
    }
)
DOMAIN = re.compile(
    r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE
)
PLACEHOLDER = re.compile(r"(?i)^(change|replace)[ _-]?(me|this)")

Hosts = Mapping[str, Mapping[str, Any]]


class Broken:
    """The value of a variable that cannot be evaluated."""

    def __init__(self, why: str) -> None:
        self.why = why


@dataclass(frozen=True)
class Certificate:
    """What was read from the two PEM texts."""

    names: tuple[str, ...]
    begins: datetime
    ends: datetime
    # Which of the certificates the key belongs to; None when to none of them.
    key_of: int | None
    # The first one (from 1) that is not followed by the one that signed it; None when each is.
    unsigned: int | None = None


def members(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """All hosts of all tiers, each once, in inventory order."""
    return list(dict.fromkeys(name for tier in TIERS for name in groups.get(tier, ())))


def host_address(name: str, variables: Mapping[str, Any]) -> str:
    """At which address the other hosts reach this one, and where the inventory says so."""
    return str(variables.get("cluster_host_address") or variables.get("ansible_host") or name)


def topology(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> dict[str, list[dict[str, Any]]]:
    """The hosts of each tier with what other tiers must know of them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for tier in TIERS:
        found[tier] = []
        for name in groups.get(tier, ()):
            item: dict[str, Any] = {"name": name, "address": host_address(name, hosts[name])}
            if tier == "django":
                item["weight"] = _integer(hosts[name].get("haproxy_weight"), 100)
                # Left open where the node itself decides, by its processors and memory.
                workers = _integer(hosts[name].get("django_workers"), 0)
                if workers > 0:
                    item["threads"] = workers * (_integer(hosts[name].get("django_threads"), 0) or 4)
            found[tier].append(item)
    return found


def uses_tls(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> bool:
    """Whether clients speak TLS: what the inventory says, or else whether a balancer has a certificate."""
    for name in members(groups):
        said = hosts[name].get("cluster_tls")
        if said is not None:
            return _is_true(said)
    sources = ("haproxy_tls_certificate", "haproxy_acme_directory_url")
    return any(hosts[name].get(source) for name in groups.get("haproxy", ()) for source in sources)


def virtual_addresses(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> list[str]:
    """The addresses that the balancers share, as haproxy_virtual_address says: one, a list, or none."""
    for name in groups.get("haproxy", ()):
        if found := _listed(hosts[name].get("haproxy_virtual_address")):
            return [str(item) for item in found]
    return []


def _listed(value: object) -> list[Any]:
    if value is None or value == "" or isinstance(value, Broken):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _integer(value: object, default: Any = None) -> Any:
    if isinstance(value, bool) or value is None:
        return default
    return int(str(value)) if re.fullmatch(r"-?\d+", str(value)) else default


def problems(
    groups: Mapping[str, Sequence[str]],
    hosts: Hosts,
    known_names: Iterable[str],
    read_certificate: Callable[[str, str], Certificate],
    now: datetime,
) -> list[str]:
    """Everything that is wrong with the inventory, each with the variable, the host, what it got and what it wants."""
    found: list[str] = []
    found += _group_problems(groups)
    found += _broken_values(groups, hosts)
    found += _address_problems(groups, hosts)
    found += _virtual_address_problems(groups, hosts)
    found += _secret_problems(groups, hosts)
    found += _value_problems(groups, hosts)
    found += _certificate_problems(groups, hosts, read_certificate, now)
    found += _internal_tls_problems(groups, hosts)
    found += _internal_certificate_problems(groups, hosts, read_certificate, now)
    found += _firewall_problems(groups, hosts)
    found += _acme_problems(groups, hosts)
    found += _name_problems(groups, hosts, known_names)
    return found


def _group_problems(groups: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"group {tier}: has no host, needs at least one" for tier in REQUIRED_TIERS if not groups.get(tier)]


def _on(names: Iterable[str]) -> str:
    return "on " + ", ".join(names)


def _values(names: Iterable[str], hosts: Hosts, variable: str) -> list[tuple[Any, list[str]]]:
    """The distinct values of a variable, each with the hosts that have it."""
    found: list[tuple[Any, list[str]]] = []
    for name in names:
        value = hosts[name].get(variable)
        for known, where in found:
            if known == value and type(known) is type(value):
                where.append(name)
                break
        else:
            found.append((value, [name]))
    return found


def _broken_values(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for name in members(groups):
        for variable, value in hosts[name].items():
            if isinstance(value, Broken):
                found.setdefault((variable, value.why), []).append(name)
    return [f"{variable} {_on(names)}: cannot be evaluated: {why}" for (variable, why), names in found.items()]


def _address_problems(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> list[str]:
    found: list[str] = []
    seen: dict[str, str] = {}
    for name in members(groups):
        variables = hosts[name]
        variable = "cluster_host_address" if variables.get("cluster_host_address") else "ansible_host"
        if isinstance(variables.get(variable), Broken):
            continue
        address = host_address(name, variables)
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError:
            found.append(f"{variable} on {name}: got '{address}', wants an IP address (set cluster_host_address)")
            continue
        if address in seen:
            found.append(f"{variable} on {name}: got {address}, which is the address of {seen[address]}; wants its own")
        else:
            seen[address] = name
    return found


def _virtual_address_problems(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> list[str]:
    """What is wrong with the shared addresses, and with what the balancers must agree on to share them."""
    variable = "haproxy_virtual_address"
    balancers = groups.get("haproxy", ())
    found: list[str] = []
    for name in ("haproxy_virtual_address", "keepalived_router_id", "keepalived_interval"):
        values = [value for value, _ in _values(balancers, hosts, name)]
        if len(values) > 1 and not any(isinstance(value, Broken) for value in values):
            found.append(f"{name}: differs between the balancers, wants one value for all of the group haproxy")
    for value, where in _values(balancers, hosts, variable):
        found += [
            f"{variable} {_on(where)}: {problem}" for problem in _shared_problems(_listed(value), groups, hosts, where)
        ]
    if not virtual_addresses(groups, hosts):
        return found
    for value, where in _values(balancers, hosts, "keepalived_router_id"):
        if not (value is None or isinstance(value, Broken) or 1 <= _integer(value, 0) <= 255):
            found.append(f"keepalived_router_id {_on(where)}: got {value!r}, wants a whole number from 1 to 255")
    for value, where in _values(balancers, hosts, "keepalived_interval"):
        if not (value is None or isinstance(value, Broken) or _is_interval(value)):
            found.append(f"keepalived_interval {_on(where)}: got {value!r}, wants seconds from 0.1 to 40")
    return found


def _shared_problems(
    values: Sequence[Any], groups: Mapping[str, Sequence[str]], hosts: Hosts, balancers: Sequence[str]
) -> list[str]:
    owners = {_address(host_address(name, hosts[name])): name for name in members(groups)}
    found: list[str] = []
    seen: set[object] = set()
    families: set[int] = set()
    for value in values:
        address = _address(value)
        if address is None or address.is_unspecified or address.is_loopback or address.is_multicast:
            found.append(f"got {value!r}, wants an IP address without a prefix length, or a list of them")
            continue
        if address in owners:
            found.append(f"got {address}, which is the address of {owners[address]}; wants one that no host has")
        if address in seen:
            found.append(f"got {address} twice, wants each once")
        seen.add(address)
        families.add(address.version)
    own = {address.version for name in balancers if (address := _address(host_address(name, hosts[name])))}
    if families and own and not families & own:
        found.append(
            f"got only IPv{families.pop()}, wants one of IPv{own.pop()}, which the balancers speak, among them"
        )
    for version, everything in ((4, ("*", "0.0.0.0")), (6, ("::",))):
        bound = [_listed(hosts[name].get("haproxy_bind_addresses")) or ["*"] for name in balancers]
        if version in families and not all(set(everything) & set(map(str, items)) for items in bound):
            # HAProxy must listen before the address comes, and cannot at an address that its host does not have.
            found.append(
                f"got an IPv{version} address, wants '{everything[0]}' in haproxy_bind_addresses: nobody would answer"
            )
    return found


def _address(value: object) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _is_interval(value: object) -> bool:
    # VRRP version 3 counts hundredths of a second in twelve bits.
    try:
        return not isinstance(value, bool) and 0.1 <= float(str(value)) <= 40
    except ValueError:
        return False


def _secret_problems(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> list[str]:
    found: list[str] = []
    owners: dict[str, str] = {}
    for secret, tiers in SECRETS.items():
        if secret in MONITORING_SECRETS and not groups.get("prometheus"):
            continue
        names = list(dict.fromkeys(name for tier in tiers for name in groups.get(tier, ())))
        values = [(value, where) for value, where in _values(names, hosts, secret) if not isinstance(value, Broken)]
        for value, where in values:
            problem = _secret_problem(secret, value, owners)
            if problem:
                found.append(f"{secret} {_on(where)}: {problem}")
        if len(values) > 1 and all(value for value, _ in values):
            first, second = values[0][1][0], values[1][1][0]
            found.append(f"{secret}: differs between {first} and {second}, wants one value for all")
    return found


def _secret_problem(secret: str, value: object, owners: dict[str, str]) -> str | None:
    """What is wrong with a secret, without its value."""
    if value is None or str(value).strip() == "":
        state = "is not set" if value is None else "is empty"
        return f"{state}, wants at least {SECRET_LENGTH} characters (keep it in a vault file)"
    text = str(value)
    if PLACEHOLDER.match(text):
        return "is still the placeholder of the example, wants a secret of your own"
    if len(text) < SECRET_LENGTH:
        return f"has {len(text)} characters, wants at least {SECRET_LENGTH}"
    if secret == "redis_sentinel_password" and not re.fullmatch(r"[!-~]+", re.sub(r"[\"'\\]", " ", text)):
        return "holds a space, a quote, a backslash or a letter that is not ASCII, wants none: Sentinel cannot store it"
    if owners.setdefault(text, secret) != secret:
        return f"is the same as {owners[text]}, wants a value of its own"
    return None


def _value_problems(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> list[str]:
    found: list[str] = []

    def check(tier: str, variable: str, accepts: Callable[[Any], bool], wants: str, required: bool = False) -> None:
        for value, where in _values(groups.get(tier, ()), hosts, variable):
            if isinstance(value, Broken) or (value is None and not required):
                continue
            if value is None:
                found.append(f"{variable} {_on(where)}: is not set, wants {wants}")
            elif not accepts(value):
                found.append(f"{variable} {_on(where)}: got {value!r}, wants {wants}")

    standbys = max(0, len(groups.get("postgresql", ())) - 1)
    check("haproxy", "haproxy_balance", ("roundrobin", "leastconn").__contains__, "roundrobin or leastconn")
    check("haproxy", "haproxy_persistence", ("none", "cookie").__contains__, "none or cookie")
    check(
        "haproxy",
        "haproxy_static_cache_mb",
        lambda value: 0 <= _integer(value, -1) <= 4095,
        "a whole number of MiB from 0 to 4095",
    )
    check("django", "haproxy_weight", lambda value: 1 <= _integer(value, 0) <= 256, "a whole number from 1 to 256")
    check("django", "django_project", bool, "a git URL or a local directory", required=True)
    check(
        "postgresql",
        "postgresql_synchronous_standbys",
        lambda value: 0 <= _integer(value, -1) <= standbys,
        f"a whole number from 0 to {standbys} (the members of the group postgresql without the primary)",
    )
    check(
        "redis",
        "redis_sentinel_down_after_ms",
        lambda value: 500 <= _integer(value, 0) <= 600_000,
        "a whole number of milliseconds from 500 to 600000",
    )
    for tier in ("haproxy", "django"):
        check(
            tier,
            "cluster_domain",
            lambda value: isinstance(value, str) and bool(DOMAIN.fullmatch(value)),
            "the name of the site, such as www.example.com",
            required=True,
        )
    return list(dict.fromkeys(found))


def _certificate_problems(
    groups: Mapping[str, Sequence[str]],
    hosts: Hosts,
    read_certificate: Callable[[str, str], Certificate],
    now: datetime,
) -> list[str]:
    found: dict[str, list[str]] = {}
    known: dict[tuple[str, str, str], str | None] = {}
    for name in groups.get("haproxy", ()):
        pem, key = (hosts[name].get(f"haproxy_tls_{part}") or "" for part in ("certificate", "key"))
        if isinstance(pem, Broken) or isinstance(key, Broken) or not (pem or key):
            continue
        problem: str | None
        if not key:
            problem = "haproxy_tls_key {on}: is not set although haproxy_tls_certificate is, wants its private key"
        elif not pem:
            problem = "haproxy_tls_certificate {on}: is not set although haproxy_tls_key is, wants its certificate"
        else:
            domain = hosts[name].get("haproxy_domain") or hosts[name].get("cluster_domain")
            case = (str(pem), str(key), domain if isinstance(domain, str) else "")
            if case not in known:
                known[case] = _certificate_problem(*case, read_certificate, now)
            problem = known[case]
        if problem:
            found.setdefault(problem, []).append(name)
    return [problem.replace("{on}", _on(names)) for problem, names in found.items()]


def _certificate_problem(
    pem: str, key: str, domain: str, read_certificate: Callable[[str, str], Certificate], now: datetime
) -> str | None:
    try:
        certificate = read_certificate(pem, key)
    except ValueError as error:
        return f"{error}"
    variable = "haproxy_tls_certificate {on}"
    if certificate.key_of is None:
        return "haproxy_tls_key {on}: does not belong to haproxy_tls_certificate, wants the key of that certificate"
    if certificate.key_of > 0:
        return f"{variable}: begins with another certificate than the key's own, wants that first, then its chain"
    if certificate.unsigned is not None:
        number = certificate.unsigned
        return (
            f"{variable}: certificate {number} is not signed by certificate {number + 1}, "
            "wants each one followed by the one that signed it"
        )
    if certificate.ends <= now:
        return f"{variable}: expired on {certificate.ends:%Y-%m-%d}, wants one that is valid"
    if certificate.begins > now:
        return f"{variable}: is valid from {certificate.begins:%Y-%m-%d} only, wants one that is valid now"
    if domain and not covers(certificate.names, domain):
        names = ", ".join(certificate.names) or "no name (subjectAltName)"
        return f"{variable}: is for {names}, wants one for {domain}"
    return None


def internal_certificates(tiers: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The certificates that the hosts need for the traffic between the tiers, each host's once."""
    addresses = {str(item["name"]): str(item["address"]) for items in tiers.values() for item in items}
    return [{"file": f"host-{name}", "names": [f"DNS:{name}", f"IP:{address}"]} for name, address in addresses.items()]


def _is_true(value: object) -> bool:
    return str(value).lower() in ("true", "yes", "on", "1")


def _internal_tls_problems(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> list[str]:
    """What is wrong with cluster_internal_tls and with what it needs."""
    variable = "cluster_internal_tls"
    values = _values(members(groups), hosts, variable)
    if any(isinstance(value, Broken) for value, _ in values):
        return []
    found = [
        f"{variable} {_on(where)}: got {value!r}, wants true or false"
        for value, where in values
        if value is not None and str(value).lower() not in ("true", "yes", "on", "1", "false", "no", "off", "0")
    ]
    if found:
        return found
    if len({_is_true(value) for value, _ in values}) > 1:
        return [f"{variable}: differs between {values[0][1][0]} and {values[1][1][0]}, wants one value for all"]
    if not any(_is_true(value) for value, _ in values):
        return []
    phrases = _values(members(groups), hosts, "cluster_ca_passphrase")
    for phrase, where in phrases:
        if not isinstance(phrase, Broken) and len(str(phrase or "")) < SECRET_LENGTH:
            state = "is too short" if phrase else "is not set"
            found.append(
                f"cluster_ca_passphrase {_on(where)}: {state}, wants at least {SECRET_LENGTH} characters, with which "
                "the key of the authority that cluster_internal_tls uses is encrypted (keep it in a vault file)"
            )
    for value, where in _values(groups.get("postgresql", ()), hosts, "postgresql_tls"):
        if value is not None and not isinstance(value, Broken) and not _is_true(value):
            found.append(f"postgresql_tls {_on(where)}: got {value!r} although {variable} is true, wants true")
    return found


def _internal_certificate_problems(
    groups: Mapping[str, Sequence[str]],
    hosts: Hosts,
    read_certificate: Callable[[str, str], Certificate],
    now: datetime,
) -> list[str]:
    """What is wrong with certificates for the traffic between tiers that the inventory itself gives."""
    found: list[str] = []
    for prefix in ("django_tls", "postgresql_tls", "redis_tls"):
        for name in groups.get(prefix.removesuffix("_tls"), ()):
            parts = {part: hosts[name].get(f"{prefix}_{part}") or "" for part in ("certificate", "key", "ca")}
            if any(isinstance(part, Broken) for part in parts.values()) or not any(parts.values()):
                continue
            missing = [f"{prefix}_{part}" for part, value in parts.items() if not value]
            if missing:
                there = next(f"{prefix}_{part}" for part, value in parts.items() if value)
                found.append(f"{missing[0]} on {name}: is not set although {there} is, wants all three or none")
                continue
            address = host_address(name, hosts[name])
            texts = {part: str(value) for part, value in parts.items()}
            if problem := _internal_certificate_problem(prefix, name, address, texts, read_certificate, now):
                found.append(problem)
    # A member speaks TLS with all others or with none of them.
    given = {name: bool(hosts[name].get("redis_tls_ca")) for name in groups.get("redis", ())}
    if len(set(given.values())) > 1:
        without, having = (next(name for name in given if given[name] is has) for has in (False, True))
        found.append(
            f"redis_tls_ca on {without}: is not set although it is on {having}, wants it on all members or none"
        )
    return found


def _internal_certificate_problem(
    prefix: str,
    name: str,
    address: str,
    texts: Mapping[str, str],
    read_certificate: Callable[[str, str], Certificate],
    now: datetime,
) -> str | None:
    variable = f"{prefix}_certificate on {name}"
    try:
        certificate = read_certificate(texts["certificate"], texts["key"])
    except ValueError as error:
        return str(error).replace("haproxy_tls", prefix).replace("{on}", f"on {name}")
    if certificate.key_of != 0:
        return f"{prefix}_key on {name}: does not belong to {prefix}_certificate, wants the key of that certificate"
    try:
        read_certificate(texts["ca"], texts["key"])
        # The authority behind the chain: each has to be signed by the next.
        signed = read_certificate(texts["certificate"].rstrip() + "\n" + texts["ca"], texts["key"]).unsigned is None
    except ValueError:
        return f"{prefix}_ca on {name}: cannot be read, wants the authority's certificate as PEM text"
    if not signed:
        return f"{prefix}_ca on {name}: did not sign {prefix}_certificate, wants the authority that did"
    if certificate.ends <= now:
        return f"{variable}: expired on {certificate.ends:%Y-%m-%d}, wants one that is valid"
    if certificate.begins > now:
        return f"{variable}: is valid from {certificate.begins:%Y-%m-%d} only, wants one that is valid now"
    # By the name the balancers verify, by the address libpq and everybody else.
    wanted = [name] * (prefix == "django_tls") + [address]
    if absent := [item for item in wanted if not covers(certificate.names, item)]:
        names = ", ".join(certificate.names) or "no name (subjectAltName)"
        return f"{variable}: is for {names}, wants one for {' and '.join(absent)}"
    return None


def _firewall_problems(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> list[str]:
    found: dict[str, list[str]] = {}
    for name in members(groups):
        values = {
            key: hosts[name].get(f"firewall_{key}") for key in ("enabled", "admin_networks", "ssh_ports", "extra_rules")
        }
        if any(isinstance(value, Broken) for value in values.values()):
            continue
        for problem in firewall.problems(**values, tiers=TIERS):
            found.setdefault(problem, []).append(name)
    return [problem.replace("{on}", _on(where)) for problem, where in found.items()]


def covers(names: Iterable[str], domain: str) -> bool:
    """Whether a certificate for these names is good for the domain. An asterisk stands for one label."""
    wanted = domain.lower().rstrip(".")
    rest = wanted.partition(".")[2]
    return any(name.lower() in (wanted, f"*.{rest}" if rest else wanted) for name in names)


def _acme_problems(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> list[str]:
    found: dict[str, list[str]] = {}
    for name in groups.get("haproxy", ()):
        values = hosts[name]
        if isinstance(values.get("haproxy_acme_directory_url"), Broken) or not values.get("haproxy_acme_directory_url"):
            continue
        for problem in _acme_host_problems(values):
            found.setdefault(problem, []).append(name)
    return [problem.replace("{on}", _on(names)) for problem, names in found.items()]


def _acme_host_problems(values: Mapping[str, Any]) -> Iterable[str]:
    url = values["haproxy_acme_directory_url"]
    if not (isinstance(url, str) and re.fullmatch(r"https://[^\s/]+/\S*", url)):
        yield f"haproxy_acme_directory_url {{on}}: got {url!r}, wants the https URL of an ACME server's directory"
    if values.get("haproxy_tls_certificate"):
        yield "haproxy_acme_directory_url {on}: is set as well as haproxy_tls_certificate, wants one of them"
    if not _is_true(values.get("haproxy_acme_terms_agreed", False)):
        yield "haproxy_acme_terms_agreed {on}: is not true, wants your agreement to the terms of the ACME server"
    email = values.get("haproxy_acme_email") or ""
    if not isinstance(email, Broken) and email and not re.fullmatch(r"[^\s@]+@[^\s@]+", str(email)):
        yield f"haproxy_acme_email {{on}}: got {email!r}, wants an address such as ops@example.com"
    domains = _listed(values.get("haproxy_acme_domains"))
    served = values.get("haproxy_domain") or values.get("cluster_domain")
    if domains and isinstance(served, str) and served not in domains:
        yield f"haproxy_acme_domains {{on}}: got {', '.join(map(str, domains))}, wants {served} among them"
    for domain in domains:
        if not isinstance(domain, str) or not DOMAIN.fullmatch(domain):
            hint = " (a wildcard needs dns-01, which is not offered)" if str(domain).startswith("*") else ""
            yield f"haproxy_acme_domains {{on}}: got {domain!r}, wants names such as www.example.com{hint}"


def _name_problems(groups: Mapping[str, Sequence[str]], hosts: Hosts, known_names: Iterable[str]) -> list[str]:
    known = {*known_names, *OWN_VARIABLES}
    unknown: dict[str, list[str]] = {}
    for name in members(groups):
        for variable in hosts[name]:
            if variable.startswith(PREFIXES) and variable not in known:
                unknown.setdefault(variable, []).append(name)
    found: list[str] = []
    for variable, names in unknown.items():
        close = difflib.get_close_matches(variable, sorted(known), n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "variables of your own need another prefix"
        found.append(f"{variable} {_on(names)}: no role knows this variable; {hint}")
    return found
