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

TIERS = ("haproxy", "django", "redis", "postgresql", "nginx_static", "prometheus")
REQUIRED_TIERS = ("haproxy", "django", "postgresql", "redis", "nginx_static")
PREFIXES = ("cluster_", *(f"{tier}_" for tier in REQUIRED_TIERS))
SECRET_LENGTH = 16
# Each secret with the tiers whose hosts need it.
SECRETS: dict[str, tuple[str, ...]] = {
    "cluster_database_password": ("django", "postgresql"),
    "cluster_redis_password": ("django", "redis"),
    "django_secret_key": ("django",),
    "postgresql_replication_password": ("postgresql",),
    "redis_replication_password": ("redis",),
    "redis_admin_password": ("redis",),
    "haproxy_stats_password": ("haproxy",),
}
# Variables that no role's specification names: they are read by the playbooks.
OWN_VARIABLES = frozenset(
    {
        *SECRETS,
        "cluster_address",
        "cluster_build_address",
        "cluster_database_name",
        "cluster_database_user",
        "cluster_django_port",
        "cluster_domain",
        "cluster_health_path",
        "cluster_host_address",
        "cluster_postgresql_port",
        "cluster_redis_port",
        "cluster_redis_user",
        "cluster_static_internal_port",
        "cluster_static_path",
        "cluster_static_port",
        "cluster_tls",
        "cluster_topology",
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
    ends: datetime
    key_matches: bool


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
            found[tier].append(item)
    return found


def uses_tls(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> bool:
    """Whether clients speak TLS: what the inventory says, or else whether a balancer has a certificate."""
    for name in members(groups):
        said = hosts[name].get("cluster_tls")
        if said is not None:
            return str(said).lower() in ("true", "yes", "on", "1")
    return any(hosts[name].get("haproxy_tls_certificate") for name in groups.get("haproxy", ()))


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
    found += _secret_problems(groups, hosts)
    found += _value_problems(groups, hosts)
    found += _certificate_problems(groups, hosts, read_certificate, now)
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


def _secret_problems(groups: Mapping[str, Sequence[str]], hosts: Hosts) -> list[str]:
    found: list[str] = []
    owners: dict[str, str] = {}
    for secret, tiers in SECRETS.items():
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
            problem = _certificate_problem(str(pem), str(key), read_certificate, now)
        if problem:
            found.setdefault(problem, []).append(name)
    return [problem.replace("{on}", _on(names)) for problem, names in found.items()]


def _certificate_problem(
    pem: str, key: str, read_certificate: Callable[[str, str], Certificate], now: datetime
) -> str | None:
    try:
        certificate = read_certificate(pem, key)
    except ValueError as error:
        return f"{error}"
    if not certificate.key_matches:
        return "haproxy_tls_key {on}: does not belong to haproxy_tls_certificate, wants the key of that certificate"
    if certificate.ends <= now:
        return f"haproxy_tls_certificate {{on}}: expired on {certificate.ends:%Y-%m-%d}, wants one that is valid"
    return None


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
