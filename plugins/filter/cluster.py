# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""What the playbooks ask of the inventory. Thin: the decisions are in _cluster_plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.flotilla.django.plugins.module_utils import _cluster_plan as cluster

# Beside this file both in a checkout and in an installed collection.
ROLES = Path(__file__).resolve().parents[2] / "roles"
# What an argument specification says for the documentation only.
DOCUMENTATION_KEYS = ("description", "version_added")
NEEDED_BY_TOPOLOGY = ("cluster_host_address", "ansible_host", "haproxy_weight", "django_workers", "django_threads")
NEEDED_BY_SHARING = ("haproxy_virtual_address",)
NEEDED_BY_TLS = ("cluster_tls", "haproxy_tls_certificate", "haproxy_acme_directory_url")


def _value(variables: Any, name: str) -> Any:
    """One variable of one host; one that cannot be evaluated becomes a value that says so."""
    try:
        return plain(variables.get(name))
    except Exception as error:  # whatever a lookup plugin raises
        return cluster.Broken(_first_line(error))


def plain(value: Any) -> Any:
    """The value without Ansible's lazy containers: a validator copies them, and with them all variables of the host."""
    if type(value).__name__.endswith("Marker"):
        raise ValueError(getattr(value, "_undefined_message", None) or "undefined")
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _first_line(error: object) -> str:
    text = str(error).strip().split("\n", 1)[0]
    return text.removeprefix("A captured exception marker was tripped: ")


def _tiers(groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {tier: [str(name) for name in groups.get(tier, ())] for tier in cluster.TIERS}


def _read(groups: Mapping[str, Sequence[str]], hostvars: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for host in cluster.members(groups):
        variables = hostvars[host]
        found[host] = {name: _value(variables, name) for name in names}
    return found


def cluster_topology(groups: Mapping[str, Sequence[str]], hostvars: Any) -> dict[str, list[dict[str, Any]]]:
    """The hosts of every tier."""
    tiers = _tiers(groups)
    return cluster.topology(tiers, _read(tiers, hostvars, NEEDED_BY_TOPOLOGY))


def cluster_host_address(variables: Any, name: str) -> str:
    """The address of one host."""
    return cluster.host_address(name, {key: _value(variables, key) for key in NEEDED_BY_TOPOLOGY})


def cluster_tls(groups: Mapping[str, Sequence[str]], hostvars: Any) -> bool:
    """Whether the site is reached by https."""
    tiers = _tiers(groups)
    return cluster.uses_tls(tiers, _read(tiers, hostvars, NEEDED_BY_TLS))


def cluster_virtual_addresses(groups: Mapping[str, Sequence[str]], hostvars: Any) -> list[str]:
    """The addresses that the balancers share."""
    tiers = _tiers(groups)
    return cluster.virtual_addresses(tiers, _read(tiers, hostvars, NEEDED_BY_SHARING))


def internal_certificates(topology: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The certificates of the hosts for the traffic between the tiers."""
    return cluster.internal_certificates(topology)


def cluster_problems(groups: Mapping[str, Sequence[str]], hostvars: Any) -> list[str]:
    """Everything that is wrong with the inventory."""
    tiers = _tiers(groups)
    specs = {tier: _role_options(tier) for tier in tiers}
    specs["haproxy"] = {**specs["haproxy"], **_role_options("keepalived")}
    everywhere = {**_role_options("firewall"), **_role_options("exporters")}
    specs = {tier: {**options, **everywhere} for tier, options in specs.items()}
    known = {name for options in specs.values() for name in options} | _names_of_roles()
    hosts: dict[str, dict[str, Any]] = {}
    for host in cluster.members(tiers):
        variables = hostvars[host]
        wanted = {str(name) for name in variables if str(name).startswith(cluster.PREFIXES)} | {"ansible_host"}
        hosts[host] = {name: _value(variables, name) for name in sorted(wanted)}
    try:
        found = cluster.problems(tiers, hosts, known, read_certificate, datetime.now(UTC))
    except ImportError as error:
        raise AnsibleFilterError(f"the certificate cannot be checked: {error}") from error
    told = {message.split(" ", 1)[0] for message in found}
    return found + [message for message in _spec_problems(tiers, hosts, specs) if message.split(" ", 1)[0] not in told]


def _spec_problems(
    tiers: Mapping[str, Sequence[str]], hosts: Mapping[str, Mapping[str, Any]], specs: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What the roles' argument specifications refuse, one variable after the other."""
    found: dict[str, list[str]] = {}
    for tier, options in specs.items():
        validators = {name: ArgumentSpecValidator({name: option}) for name, option in options.items()}
        for host in tiers.get(tier, ()):
            for name, validator in validators.items():
                value = hosts[host].get(name)
                if value is None or isinstance(value, cluster.Broken):
                    continue
                for message in validator.validate({name: value}).error_messages:
                    if options[name].get("no_log"):
                        message = "its value has the wrong type"
                    where = found.setdefault(f"{name} {{on}}: {_first_line(message)}", [])
                    if host not in where:
                        where.append(host)
    return [message.replace("{on}", "on " + ", ".join(names)) for message, names in found.items()]


@cache
def _role_options(role: str) -> dict[str, Any]:
    """The options of all entry points of a role, as a validator wants them; none is required here by itself."""
    path = ROLES / role / "meta" / "argument_specs.yml"
    if not path.is_file():
        return {}
    specs = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("argument_specs") or {}
    options: dict[str, Any] = {}
    for entry in specs.values():
        for name, option in (entry.get("options") or {}).items():
            options[name] = {**_without_documentation(option), "required": False}
            options[name].pop("default", None)
    return options


def _without_documentation(option: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in option.items() if key not in DOCUMENTATION_KEYS}
    if kept.get("options"):
        kept["options"] = {name: _without_documentation(value) for name, value in kept["options"].items()}
    return kept


@cache
def _names_of_roles() -> frozenset[str]:
    """The variables that roles and playbooks have defaults for, and the cluster's values that these read."""
    names: set[str] = set()
    for path in ROLES.glob("*/defaults/main.yml"):
        text = path.read_text(encoding="utf-8")
        names.update(yaml.safe_load(text) or {})
        names.update(re.findall(r"\bcluster_[a-z_]+\b", text))
    for path in (ROLES.parent / "playbooks" / "vars").glob("*.yml"):
        names.update(re.findall(r"\{\{ \(*([a-z]\w*) \| default\(", path.read_text(encoding="utf-8")))
    return frozenset(names)


def read_certificate(pem: str, key: str) -> cluster.Certificate:
    """What the texts hold; ValueError, without the texts, when they cannot be read."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        chain = x509.load_pem_x509_certificates(pem.encode())
        certificate = chain[0]
    except (ValueError, IndexError):
        raise ValueError("haproxy_tls_certificate {on}: cannot be read, wants a certificate as PEM text") from None
    try:
        private = load_pem_private_key(key.encode(), password=None)
    except (ValueError, TypeError):
        raise ValueError(
            "haproxy_tls_key {on}: cannot be read, wants a private key as PEM text without a passphrase"
        ) from None
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = alternatives.get_values_for_type(x509.IPAddress)
        names = (*alternatives.get_values_for_type(x509.DNSName), *map(str, addresses))
    except (x509.ExtensionNotFound, ValueError):
        names = ()

    def public(holder: Any) -> bytes:
        found: bytes = holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return found

    return cluster.Certificate(
        names,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        next((number for number, item in enumerate(chain) if public(item) == public(private)), None),
        next((number for number in range(1, len(chain)) if not _signed(chain[number - 1], chain[number])), None),
    )


def _signed(certificate: Any, issuer: Any) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Any]:
        return {
            "cluster_host_address": cluster_host_address,
            "cluster_problems": cluster_problems,
            "cluster_tls": cluster_tls,
            "cluster_topology": cluster_topology,
            "cluster_virtual_addresses": cluster_virtual_addresses,
            "internal_certificates": internal_certificates,
        }
