# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory means and what is wrong with it, by tables; certificates are real ones."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.filter import cluster as filters
from ansible_collections.flotilla.django.plugins.module_utils import _cluster_plan as cluster
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

GROUPS = {
    "haproxy": ["lb1"],
    "django": ["app1", "app2"],
    "redis": ["cache1"],
    "postgresql": ["db1", "db2"],
    "nginx_static": ["static1"],
}
SECRETS = {name: f"{name}-0123456789" for name in cluster.SECRETS}
COMMON: dict[str, Any] = {**SECRETS, "cluster_domain": "www.example.com", "django_project": "https://x/y.git"}
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def hosts(groups: Mapping[str, list[str]], **by_host: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Hosts with distinct addresses and everything that is needed; `everywhere` and names change that."""
    everywhere = by_host.pop("everywhere", {})
    found = {}
    for number, name in enumerate(cluster.members(groups)):
        variables = {**COMMON, "ansible_host": f"192.0.2.{number + 1}", **everywhere, **by_host.get(name, {})}
        found[name] = {key: value for key, value in variables.items() if value is not None}
    return found


def problems(groups: Mapping[str, list[str]] = GROUPS, **by_host: dict[str, Any]) -> list[str]:
    known = {"haproxy_balance", "haproxy_persistence", "django_project", "django_workers", "haproxy_tls_certificate"}
    known |= {"haproxy_tls_key", "postgresql_synchronous_standbys", "haproxy_static_cache_mb"}
    return cluster.problems(groups, hosts(groups, **by_host), known, filters.read_certificate, NOW)


def make(days: int = 3000, start: int = 0) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "www.example.com")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW + timedelta(days=start - 1))
        .not_valid_after(NOW + timedelta(days=start + days))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return certificate.public_bytes(Encoding.PEM).decode(), private


CERTIFICATE, KEY = make()
OTHER_CERTIFICATE, OTHER_KEY = make()
EXPIRED, EXPIRED_KEY = make(days=5, start=-10)


def tls(certificate: str, key: str) -> dict[str, Any]:
    return {"lb1": {"haproxy_tls_certificate": certificate, "haproxy_tls_key": key}}


def test_nothing_is_wrong_with_a_good_inventory() -> None:
    assert problems() == []
    assert problems(**tls(CERTIFICATE, KEY)) == []
    assert problems(**tls(CERTIFICATE + OTHER_CERTIFICATE, KEY)) == []
    one = {tier: ["all1"] for tier in cluster.REQUIRED_TIERS}
    assert problems(one) == []
    assert problems(all1={"ansible_host": None, "cluster_host_address": "10.0.0.1"}, groups=one) == []


@pytest.mark.parametrize(
    ("by_host", "expected"),
    [
        ({"everywhere": {"django_secret_key": None}}, "django_secret_key on app1, app2: is not set"),
        ({"everywhere": {"redis_admin_password": ""}}, "redis_admin_password on cache1: is empty"),
        ({"everywhere": {"haproxy_stats_password": "short-0123"}}, "haproxy_stats_password on lb1: has 10 characters"),
        ({"everywhere": {"redis_admin_password": "CHANGE ME"}}, "redis_admin_password on cache1: is still the placeh"),
        (
            {"everywhere": {"redis_admin_password": SECRETS["cluster_redis_password"]}},
            "redis_admin_password on cache1: is the same as cluster_redis_password",
        ),
        (
            {"db1": {"cluster_database_password": "another-0123456789"}},
            "cluster_database_password: differs between",
        ),
        ({"lb1": {"haproxy_balance": "random"}}, "haproxy_balance on lb1: got 'random', wants roundrobin or leastconn"),
        ({"lb1": {"haproxy_persistence": "ip"}}, "haproxy_persistence on lb1: got 'ip', wants none or cookie"),
        ({"app2": {"ansible_host": "192.0.2.1"}}, "ansible_host on app2: got 192.0.2.1, which is the address of lb1"),
        ({"app2": {"ansible_host": "db.example.com"}}, "ansible_host on app2: got 'db.example.com', wants an IP addr"),
        ({"app2": {"cluster_host_address": "x"}}, "cluster_host_address on app2: got 'x', wants an IP address"),
        ({"app1": {"haproxy_weight": 0}}, "haproxy_weight on app1: got 0, wants a whole number from 1 to 256"),
        (
            {"lb1": {"haproxy_static_cache_mb": 4096}},
            "haproxy_static_cache_mb on lb1: got 4096, wants a whole number of MiB from 0 to 4095",
        ),
        ({"app1": {"haproxy_weight": 300}}, "haproxy_weight on app1: got 300, wants"),
        ({"app1": {"haproxy_weight": "many"}}, "haproxy_weight on app1: got 'many', wants"),
        ({"app1": {"haproxy_weight": True}}, "haproxy_weight on app1: got True, wants"),
        ({"lb1": {"cluster_domain": None}}, "cluster_domain on lb1: is not set"),
        ({"lb1": {"cluster_domain": "https://x.org/"}}, "cluster_domain on lb1: got 'https://x.org/', wants the name"),
        ({"everywhere": {"django_project": None}}, "django_project on app1, app2: is not set"),
        (
            {"db1": {"postgresql_synchronous_standbys": 2}},
            "postgresql_synchronous_standbys on db1: got 2, wants",
        ),
        ({"db1": {"postgresql_synchronous_standbys": -1}}, "postgresql_synchronous_standbys on db1: got -1, wants"),
        (
            {"lb1": {"haproxy_balanse": "x"}},
            "haproxy_balanse on lb1: no role knows this variable; did you mean",
        ),
        (
            {"app1": {"django_x_y_z": 1}},
            "django_x_y_z on app1: no role knows this variable; variables of",
        ),
        (
            {"app1": {"django_workers": cluster.Broken("no such file")}},
            "django_workers on app1: cannot be evaluated",
        ),
        (tls(CERTIFICATE, ""), "haproxy_tls_key on lb1: is not set although haproxy_tls_certificate is"),
        (tls("", KEY), "haproxy_tls_certificate on lb1: is not set although haproxy_tls_key is"),
        (tls(CERTIFICATE, OTHER_KEY), "haproxy_tls_key on lb1: does not belong to haproxy_tls_certificate"),
        (tls("nonsense", KEY), "haproxy_tls_certificate on lb1: cannot be read"),
        (tls(CERTIFICATE, "nonsense"), "haproxy_tls_key on lb1: cannot be read"),
        (tls(EXPIRED, EXPIRED_KEY), "haproxy_tls_certificate on lb1: expired on 2029-12-27"),
    ],
)
def test_one_mistake_is_one_message(by_host: dict[str, Any], expected: str) -> None:
    found = problems(**by_host)
    assert len(found) == 1, found
    assert found[0].startswith(expected)
    for value in SECRETS.values():
        assert value not in found[0]


@pytest.mark.parametrize("tier", cluster.REQUIRED_TIERS)
def test_a_tier_without_hosts(tier: str) -> None:
    for empty in ({**GROUPS, tier: []}, {name: group for name, group in GROUPS.items() if name != tier}):
        assert f"group {tier}: has no host, needs at least one" in problems(empty)


def test_all_mistakes_are_told_at_once() -> None:
    found = problems(lb1={"haproxy_balance": "x", "haproxy_persistence": "y"}, app1={"haproxy_weight": 0})
    assert len(found) == 3


def test_topology() -> None:
    groups = {**GROUPS, "django": ["app2", "app1"]}
    by_host = hosts(groups, app1={"haproxy_weight": "7"}, db1={"cluster_host_address": "10.0.0.9"})
    found = cluster.topology(groups, by_host)
    assert list(found) == list(cluster.TIERS)
    assert found["django"] == [
        {"name": "app2", "address": "192.0.2.2", "weight": 100},
        {"name": "app1", "address": "192.0.2.3", "weight": 7},
    ]
    assert found["postgresql"][0] == {"name": "db1", "address": "10.0.0.9"}
    assert found["prometheus"] == []
    assert cluster.topology({"redis": ["10.1.1.1"]}, {"10.1.1.1": {}})["redis"][0]["address"] == "10.1.1.1"


@pytest.mark.parametrize(
    ("by_host", "expected"),
    [
        ({}, False),
        (tls(CERTIFICATE, KEY), True),
        ({"everywhere": {"cluster_tls": True}}, True),
        ({"everywhere": {"cluster_tls": "false"}, **tls(CERTIFICATE, KEY)}, False),
    ],
)
def test_tls(by_host: dict[str, Any], expected: bool) -> None:
    assert cluster.uses_tls(GROUPS, hosts(GROUPS, **by_host)) is expected


def test_the_filter_refuses_what_a_role_refuses() -> None:
    by_host = hosts(GROUPS, app1={"django_workers": "many"}, app2={"django_workers": "many"})
    (message,) = filters.cluster_problems(GROUPS, by_host)
    assert message.startswith("django_workers on app1, app2: ")
    assert filters.cluster_problems(GROUPS, hosts(GROUPS, everywhere={"django_workers": "4"})) == []


def test_every_variable_of_the_roles_is_known() -> None:
    """Otherwise a documented variable would be refused."""
    names = {name: 1 for tier in cluster.REQUIRED_TIERS for name in filters._role_options(tier)}
    assert len(names) > 50
    by_host = hosts(GROUPS, app1={name: names[name] for name in names if name not in COMMON})
    found = filters.cluster_problems(GROUPS, by_host)
    assert [message for message in found if "no role knows" in message] == []
