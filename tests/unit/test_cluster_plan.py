# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory means and what is wrong with it, by tables; certificates are real ones."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
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
    known |= {"haproxy_bind_addresses", "keepalived_addresses", "keepalived_interval", "keepalived_router_id"}
    known |= {"redis_sentinel_down_after_ms", "haproxy_domain", "postgresql_tls"}
    known |= {
        f"{tier}_tls_{part}" for tier in ("django", "postgresql", "redis") for part in ("certificate", "key", "ca")
    }
    known |= {f"haproxy_acme_{name}" for name in ("directory_url", "terms_agreed", "email", "domains")}
    return cluster.problems(groups, hosts(groups, **by_host), known, filters.read_certificate, NOW)


Issuer = tuple[x509.Name, ec.EllipticCurvePrivateKey]


def make(
    days: int = 3000, start: int = 0, names: tuple[str, ...] = ("www.example.com",), issuer: Issuer | None = None
) -> tuple[str, str]:
    """A certificate and its key; signed by itself unless an issuer is given."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "www.example.com")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0] if issuer else name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW + timedelta(days=start - 1))
        .not_valid_after(NOW + timedelta(days=start + days))
    )
    if names:
        addresses = [x509.IPAddress(ipaddress.ip_address(item)) for item in names if item[0].isdigit()]
        found = [x509.DNSName(item) for item in names if not item[0].isdigit()]
        alternatives = x509.SubjectAlternativeName([*found, *addresses])
        builder = builder.add_extension(alternatives, critical=False)
    certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return certificate.public_bytes(Encoding.PEM).decode(), private


def authority(name: str, start: int = 0) -> tuple[str, Issuer]:
    """A certificate authority: what it is called and signs with."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(2)
        .not_valid_before(NOW + timedelta(days=start - 1))
        .not_valid_after(NOW + timedelta(days=3000))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM).decode(), (subject, key)


CERTIFICATE, KEY = make()
OTHER_CERTIFICATE, OTHER_KEY = make()
EXPIRED, EXPIRED_KEY = make(days=5, start=-10)
AUTHORITY, ISSUER = authority("Authority")
# Of the same name, and yet another one.
STRANGER, _ = authority("Authority")
SIGNED, SIGNED_KEY = make(issuer=ISSUER)


def tls(certificate: str, key: str) -> dict[str, Any]:
    return {"lb1": {"haproxy_tls_certificate": certificate, "haproxy_tls_key": key}}


APP_ADDRESS = "192.0.2.77"
APP, APP_KEY = make(names=("app1", APP_ADDRESS), issuer=ISSUER)
NAMELESS, NAMELESS_KEY = make(names=("app1",), issuer=ISSUER)
OLD_APP, OLD_APP_KEY = make(days=5, start=-10, names=("app1", APP_ADDRESS), issuer=ISSUER)
INTERNAL = {"cluster_internal_tls": True, "cluster_ca_passphrase": "a passphrase of many letters"}


def internal(
    certificate: str | None = APP, key: str | None = APP_KEY, ca: str | None = AUTHORITY, tier: str = "django"
) -> dict[str, Any]:
    """A certificate of its own for the first host of a tier."""
    parts = {"certificate": certificate, "key": key, "ca": ca}
    given = {f"{tier}_tls_{part}": value for part, value in parts.items() if value is not None}
    return {{"django": "app1", "postgresql": "db1", "redis": "cache1"}[tier]: {"ansible_host": APP_ADDRESS, **given}}


def acme(**changed: Any) -> dict[str, Any]:
    wanted = {"haproxy_acme_directory_url": "https://acme.example.com/directory", "haproxy_acme_terms_agreed": True}
    return {"lb1": {**wanted, **changed}}


def test_nothing_is_wrong_with_a_good_inventory() -> None:
    assert problems() == []
    assert problems(**acme()) == []
    assert problems(**acme(haproxy_acme_email="ops@example.com")) == []
    assert problems(**acme(haproxy_acme_domains=["b.example", "www.example.com"])) == []
    assert problems(**tls(CERTIFICATE, KEY)) == []
    assert problems(**tls(SIGNED, SIGNED_KEY)) == []
    assert problems(**tls(SIGNED + AUTHORITY, SIGNED_KEY)) == []
    assert problems(**internal()) == []
    assert problems(**internal(APP + AUTHORITY)) == []
    assert problems(**internal(tier="postgresql")) == []
    assert problems(**internal(tier="redis")) == []
    assert problems(everywhere=INTERNAL) == []
    assert problems(everywhere={"cluster_internal_tls": "false"}) == []
    assert problems(**tls(*make(names=("example.com", "*.example.com")))) == []
    assert problems(**tls(*make(names=("WWW.Example.com",)))) == []
    one = {tier: ["all1"] for tier in cluster.REQUIRED_TIERS}
    assert problems(one) == []
    assert problems(all1={"ansible_host": None, "cluster_host_address": "10.0.0.1"}, groups=one) == []


@pytest.mark.parametrize(
    ("by_host", "expected"),
    [
        ({"everywhere": {"django_secret_key": None}}, "django_secret_key on app1, app2: is not set"),
        ({"everywhere": {"redis_admin_password": ""}}, "redis_admin_password on cache1: is empty"),
        ({"everywhere": {"haproxy_stats_password": "short-0123"}}, "haproxy_stats_password on lb1: has 10 characters"),
        (
            {"everywhere": {"redis_sentinel_password": "with a space 0123456"}},
            "redis_sentinel_password on cache1: holds a space",
        ),
        (
            {"everywhere": {"redis_sentinel_down_after_ms": 5}},
            "redis_sentinel_down_after_ms on cache1: got 5, wants a whole number of milliseconds from 500 to 600000",
        ),
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
        (
            {"lb1": {"haproxy_virtual_address": "lb.example.com"}},
            "haproxy_virtual_address on lb1: got 'lb.example.com', wants",
        ),
        (
            {"lb1": {"haproxy_virtual_address": "192.0.2.99/24"}},
            "haproxy_virtual_address on lb1: got '192.0.2.99/24', wants",
        ),
        ({"lb1": {"haproxy_virtual_address": 10}}, "haproxy_virtual_address on lb1: got 10, wants an IP address"),
        ({"lb1": {"haproxy_virtual_address": "127.0.0.1"}}, "haproxy_virtual_address on lb1: got '127.0.0.1', wants"),
        (
            {"lb1": {"haproxy_virtual_address": "192.0.2.2"}},
            "haproxy_virtual_address on lb1: got 192.0.2.2, which is the address of app1; wants one that no host has",
        ),
        (
            {"lb1": {"haproxy_virtual_address": ["192.0.2.99", "192.0.2.99"]}},
            "haproxy_virtual_address on lb1: got 192.0.2.99 twice, wants each once",
        ),
        (
            {"lb1": {"haproxy_virtual_address": "2001:db8::1", "haproxy_bind_addresses": ["::"]}},
            "haproxy_virtual_address on lb1: got only IPv6, wants one of IPv4",
        ),
        (
            {"lb1": {"haproxy_virtual_address": ["192.0.2.99", "2001:db8::1"]}},
            "haproxy_virtual_address on lb1: got an IPv6 address, wants '::' in haproxy_bind_addresses",
        ),
        (
            {"lb1": {"haproxy_virtual_address": "192.0.2.99", "haproxy_bind_addresses": ["192.0.2.99"]}},
            "haproxy_virtual_address on lb1: got an IPv4 address, wants '*' in haproxy_bind_addresses",
        ),
        (
            {"lb1": {"haproxy_virtual_address": "192.0.2.99", "keepalived_router_id": 256}},
            "keepalived_router_id on lb1: got 256, wants a whole number from 1 to 255",
        ),
        (
            {"lb1": {"haproxy_virtual_address": "192.0.2.99", "keepalived_router_id": 0}},
            "keepalived_router_id on lb1: got 0, wants a whole number from 1 to 255",
        ),
        (
            {"lb1": {"haproxy_virtual_address": "192.0.2.99", "keepalived_interval": 0.01}},
            "keepalived_interval on lb1: got 0.01, wants seconds from 0.1 to 40",
        ),
        ({"lb1": {"keepalived_adresses": []}}, "keepalived_adresses on lb1: no role knows this variable; did you mean"),
        (tls(CERTIFICATE, ""), "haproxy_tls_key on lb1: is not set although haproxy_tls_certificate is"),
        (tls("", KEY), "haproxy_tls_certificate on lb1: is not set although haproxy_tls_key is"),
        (tls(CERTIFICATE, OTHER_KEY), "haproxy_tls_key on lb1: does not belong to haproxy_tls_certificate"),
        (tls("nonsense", KEY), "haproxy_tls_certificate on lb1: cannot be read"),
        (tls(CERTIFICATE, "nonsense"), "haproxy_tls_key on lb1: cannot be read"),
        (tls(EXPIRED, EXPIRED_KEY), "haproxy_tls_certificate on lb1: expired on 2029-12-27"),
        (tls(*make(start=10)), "haproxy_tls_certificate on lb1: is valid from 2030-01-10 only"),
        (tls(AUTHORITY + SIGNED, SIGNED_KEY), "haproxy_tls_certificate on lb1: begins with another certificate"),
        (tls(SIGNED + STRANGER, SIGNED_KEY), "haproxy_tls_certificate on lb1: certificate 1 is not signed by"),
        (
            tls(SIGNED + AUTHORITY + CERTIFICATE, SIGNED_KEY),
            "haproxy_tls_certificate on lb1: certificate 2 is not signed by certificate 3",
        ),
        (
            tls(*make(names=("example.com", "*.shop.example.com"))),
            "haproxy_tls_certificate on lb1: is for example.com, *.shop.example.com, wants one for www.example.com",
        ),
        (tls(*make(names=())), "haproxy_tls_certificate on lb1: is for no name (subjectAltName), wants one for www.ex"),
        (
            {"lb1": {**tls(CERTIFICATE, KEY)["lb1"], "haproxy_domain": "other.example.com"}},
            "haproxy_tls_certificate on lb1: is for www.example.com, wants one for other.example.com",
        ),
        (acme(haproxy_acme_directory_url="acme.example.com"), "haproxy_acme_directory_url on lb1: got 'acme.example"),
        (
            acme(haproxy_acme_directory_url="http://acme.example.com/d"),
            "haproxy_acme_directory_url on lb1: got 'http://",
        ),
        (acme(haproxy_acme_terms_agreed=False), "haproxy_acme_terms_agreed on lb1: is not true, wants your agreement"),
        (acme(haproxy_acme_terms_agreed=None), "haproxy_acme_terms_agreed on lb1: is not true, wants your agreement"),
        (acme(haproxy_acme_email="ops"), "haproxy_acme_email on lb1: got 'ops', wants an address such as"),
        (
            acme(haproxy_acme_domains=["www.example.com", "*.example.com"]),
            "haproxy_acme_domains on lb1: got '*.example.com', wants names such as www.example.com (a wildcard",
        ),
        (acme(haproxy_acme_domains=["a.example"]), "haproxy_acme_domains on lb1: got a.example, wants www."),
        (
            acme(**tls(CERTIFICATE, KEY)["lb1"]),
            "haproxy_acme_directory_url on lb1: is set as well as haproxy_tls_certificate, wants one of them",
        ),
        (internal(key=None), "django_tls_key on app1: is not set although django_tls_certificate is, wants all three"),
        (internal(ca=None), "django_tls_ca on app1: is not set although django_tls_certificate is, wants all three"),
        (internal(certificate=None, tier="postgresql"), "postgresql_tls_certificate on db1: is not set although"),
        (internal(key=OTHER_KEY), "django_tls_key on app1: does not belong to django_tls_certificate"),
        (internal(ca=STRANGER, tier="postgresql"), "postgresql_tls_ca on db1: did not sign postgresql_tls_certificate"),
        (internal(ca="nonsense"), "django_tls_ca on app1: "),
        (internal(key=None, tier="redis"), "redis_tls_key on cache1: is not set although redis_tls_certificate is"),
        (internal(NAMELESS, NAMELESS_KEY, tier="redis"), "redis_tls_certificate on cache1: is for app1, wants one"),
        (internal(certificate="nonsense"), "django_tls_certificate on app1: cannot be read, wants a certificate"),
        (internal(NAMELESS, NAMELESS_KEY), f"django_tls_certificate on app1: is for app1, wants one for {APP_ADDRESS}"),
        (internal(OLD_APP, OLD_APP_KEY), "django_tls_certificate on app1: expired on 2029-12-27"),
        ({"everywhere": {"cluster_internal_tls": True}}, "cluster_ca_passphrase on lb1, "),
        ({"everywhere": {**INTERNAL, "cluster_ca_passphrase": "short"}}, "cluster_ca_passphrase on lb1, "),
        ({"everywhere": {**INTERNAL, "cluster_internal_tls": "maybe"}}, "cluster_internal_tls on lb1, "),
        ({"app1": INTERNAL}, "cluster_internal_tls: differs between lb1 and app1, wants one value for all"),
        (
            {"everywhere": INTERNAL, "db1": {"postgresql_tls": False}},
            "postgresql_tls on db1: got False although cluster_internal_tls is true, wants true",
        ),
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


def test_members_of_redis_speak_tls_with_all_others_or_with_none() -> None:
    found = problems({**GROUPS, "redis": ["cache1", "cache2"]}, **internal(tier="redis"))
    assert found == ["redis_tls_ca on cache2: is not set although it is on cache1, wants it on all members or none"]


def test_each_host_gets_one_certificate_for_its_name_and_its_address() -> None:
    tiers = {
        "haproxy": [{"name": "all1", "address": "192.0.2.1"}],
        "django": [{"name": "all1", "address": "192.0.2.1"}, {"name": "app2", "address": "2001:db8::2"}],
    }
    assert cluster.internal_certificates(tiers) == [
        {"file": "host-all1", "names": ["DNS:all1", "IP:192.0.2.1"]},
        {"file": "host-app2", "names": ["DNS:app2", "IP:2001:db8::2"]},
    ]


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, None),
        ({"django_workers": 0, "django_threads": 8}, None),
        ({"django_workers": 2}, 8),
        ({"django_workers": "3", "django_threads": "2"}, 6),
        ({"django_workers": "many"}, None),
    ],
)
def test_topology_knows_the_threads_of_a_node_where_the_inventory_decides_them(
    variables: dict[str, Any], threads: int | None
) -> None:
    by_host = hosts(GROUPS, app1=variables)
    (found,) = (item for item in cluster.topology(GROUPS, by_host)["django"] if item["name"] == "app1")
    assert found.get("threads") == threads


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
        (acme(), True),
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


ROLE_TIERS = {tier: [tier] for tier in cluster.TIERS} | {
    "keepalived": ["haproxy"],
    "firewall": list(cluster.TIERS),
    "exporters": list(cluster.TIERS),
}


@pytest.mark.parametrize(
    "role", sorted(path.parent.parent.name for path in filters.ROLES.glob("*/meta/argument_specs.yml"))
)
def test_the_first_play_refuses_what_any_role_refuses(role: str) -> None:
    """site.yml runs the roles without their own look at it (rolespec_validate: false)."""
    groups = {**GROUPS, "prometheus": ["mon1"]}
    options = filters._role_options(role)
    wrong = {"int": "many", "float": "many", "bool": "perhaps", "dict": "x", "list": {"a": 1}}
    values = {name: wrong[option["type"]] for name, option in options.items() if option.get("type") in wrong}
    values |= {name: "no-such-choice" for name, option in options.items() if "choices" in option}
    assert values
    for tier in ROLE_TIERS[role]:
        host = groups[tier][0]
        for name, value in values.items():
            told = filters.cluster_problems(groups, hosts(groups, **{host: {name: value}}))
            refused = [message for message in told if message.startswith(name) and "no role knows" not in message]
            assert refused, f"{name} on {host}: {told}"


def test_every_variable_of_the_roles_is_known() -> None:
    """Otherwise a documented variable would be refused."""
    names = {name: 1 for tier in cluster.REQUIRED_TIERS for name in filters._role_options(tier)}
    assert len(names) > 50
    by_host = hosts(GROUPS, app1={name: names[name] for name in names if name not in COMMON})
    found = filters.cluster_problems(GROUPS, by_host)
    assert [message for message in found if "no role knows" in message] == []


def test_balancers_share_what_they_agree_on() -> None:
    two = {**GROUPS, "haproxy": ["lb1", "lb2"]}
    good: list[Any] = ["192.0.2.99", ["192.0.2.99"], ["192.0.2.99", "192.0.2.98"], None, "", []]
    for value in good:
        assert problems(two, everywhere={"haproxy_virtual_address": value}) == []
    for variable, values in {
        "haproxy_virtual_address": ("192.0.2.99", "192.0.2.98"),
        "keepalived_router_id": (1, 2),
        "keepalived_interval": (0.4, 1),
    }.items():
        shared = {"haproxy_virtual_address": "192.0.2.99"}
        first, second = ({**shared, variable: value} for value in values)
        found = problems(two, lb1=first, lb2=second)
        assert found == [f"{variable}: differs between the balancers, wants one value for all of the group haproxy"]


def told(tasks: Any) -> Iterator[str]:
    """The names of variables that tasks leave behind: facts and registered results."""
    if isinstance(tasks, list):
        for task in tasks:
            yield from told(task)
    elif isinstance(tasks, dict):
        yield from tasks.get("ansible.builtin.set_fact", {})
        yield from filter(None, [tasks.get("register")])
        for value in tasks.values():
            yield from told(value)


def test_what_a_playbook_leaves_behind_is_no_mistake_when_site_yml_checks_again_in_the_same_run() -> None:
    playbooks = Path(__file__).resolve().parents[2] / "playbooks"
    # Those that import site.yml, itself, and the tasks that they share.
    files = [*playbooks.glob("scale_*.yml"), playbooks / "site.yml", *playbooks.glob("tasks/*.yml")]
    names = {name for path in files for name in told(yaml.safe_load(path.read_text("utf-8")))}
    assert "cluster_addresses" in names
    assert {name for name in names if name.startswith(cluster.PREFIXES)} <= cluster.OWN_VARIABLES
