# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Redis role writes, read the way Redis and the modules read it."""

from __future__ import annotations

import hashlib

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as plan
from render import evaluate, render

SECRETS = {
    "redis_app_password": "app'secret",
    "redis_admin_password": "x1",
    "redis_replication_password": "x2",
    "redis_sentinel_password": "sentinel-secret",
}


@pytest.mark.parametrize(("given", "bytes_wanted"), [(0, 1024 * 2**20), (64, 64 * 2**20)])
def test_memory_is_a_quarter_of_the_host_unless_given(given: int, bytes_wanted: int) -> None:
    text = render("redis", "live.conf.j2", {"redis_maxmemory_mb": given, "__redis_info": {"memory_mb": 4096}})
    settings = plan.parse_settings(text)
    assert settings["maxmemory"] == str(bytes_wanted)
    assert (settings["maxmemory-policy"], settings["appendonly"], settings["save"]) == ("noeviction", "yes", "")


def test_extra_settings_win() -> None:
    extra = {"hz": 20, "appendfsync": "always", "save": ""}
    settings = plan.parse_settings(render("redis", "live.conf.j2", {"redis_extra_settings": extra}))
    assert (settings["hz"], settings["appendfsync"], settings["save"]) == ("20", "always", "")


@pytest.mark.parametrize("password", ["simple", 'a"b', "back\\slash", "with space", "#hash", "'", "ü"])
def test_a_password_comes_out_as_it_went_in(password: str) -> None:
    text = render("redis", "masterauth.conf.j2", {"redis_replication_password": password})
    assert plan.parse_settings(text) == {"masteruser": "replication", "masterauth": password}


def test_users_have_hashes_only_and_the_default_user_is_off() -> None:
    extra = [{"name": "exporter", "password": "x3", "rules": "+info +ping"}]
    text = render("redis", "users.acl.j2", {**SECRETS, "redis_extra_users": extra})
    users = plan.parse_users(text)
    assert set(users) == {"default", "admin", "replication", "sentinel", "django", "monitoring", "exporter"}
    assert users["default"] == ["off", "resetchannels", "-@all"]
    assert not any(secret in text for secret in SECRETS.values() if len(secret) > 2)
    assert f"#{hashlib.sha256(SECRETS['redis_app_password'].encode()).hexdigest()}" in users["django"]
    rules = users["django"]
    assert rules.index("-@all") < rules.index("+@write") < rules.index("-@dangerous") < rules.index("+info")
    # A monitor sees no key, no setting (the passwords are among them) and no argument of a command.
    assert not any(
        "~" in rule or "config" in rule or rule in ("+@all", "+slowlog", "+slowlog|get") for rule in users["monitoring"]
    )
    without = plan.parse_users(render("redis", "users.acl.j2", {**SECRETS, "redis_monitoring_password": ""}))
    assert "monitoring" not in without


@pytest.mark.parametrize("topology", ["single", "plain", "three"])
def test_listens_at_its_own_address_and_loopback(topology: str) -> None:
    bind = plan.parse_settings(render("redis", "start.conf.j2", topology=topology))["bind"].split()
    assert len(bind) == 2
    assert bind[1] == "127.0.0.1"
    assert bind[0] != "0.0.0.0"


CERTIFICATE = {f"redis_tls_{part}": part for part in ("certificate", "key", "ca")}


def test_redis_changes_to_tls_at_the_same_port_and_back() -> None:
    """While it runs: what is set last must find the port free."""
    secure = plan.parse_settings(render("redis", "live.conf.j2", CERTIFICATE))
    assert (secure["port"], secure["tls-port"], secure["tls-replication"]) == ("0", "6379", "yes")
    assert secure["tls-ca-cert-file"] == "/etc/redis/flotilla-ca.pem"
    assert secure["tls-auth-clients"] == "no"
    names = list(secure)
    assert names.index("tls-ca-cert-file") < names.index("port") < names.index("tls-port")
    plain = plan.parse_settings(render("redis", "live.conf.j2"))
    assert (plain["port"], plain["tls-port"], plain["tls-replication"]) == ("6379", "0", "no")
    assert list(plain).index("tls-port") < list(plain).index("port")
    # A change of this file restarts Redis.
    assert render("redis", "start.conf.j2", CERTIFICATE) == render("redis", "start.conf.j2")


def test_a_sentinel_speaks_tls_and_nothing_else() -> None:
    secure = plan.parse_settings(render("redis", "sentinel_start.conf.j2", CERTIFICATE))
    assert (secure["port"], secure["tls-port"], secure["tls-replication"]) == ("0", "26379", "yes")
    plain = plan.parse_settings(render("redis", "sentinel_start.conf.j2"))
    assert (plain["port"], plain["tls-port"], plain["tls-replication"]) == ("26379", "0", "no")


@pytest.mark.parametrize(
    ("told", "found", "wanted"),
    [
        ({}, None, True),  # no file, no TLS; or one that is being turned off
        (CERTIFICATE, None, False),  # a planned move: nobody looked
        (CERTIFICATE, False, True),
        (CERTIFICATE, True, False),
    ],
)
def test_nobody_is_believed_without_tls_once_all_connections_use_it(
    told: dict[str, str], found: bool | None, wanted: bool
) -> None:
    registered = {} if found is None else {"__redis_tls_only_found": {"stat": {"exists": found}}}
    assert evaluate("redis", "__redis_plain_too", {**told, **registered}) is wanted


def test_a_sentinel_has_hashes_only_and_the_default_user_is_off() -> None:
    text = render("redis", "sentinel.acl.j2", SECRETS)
    users = plan.parse_users(text)
    assert set(users) == {"default", "admin", "sentinel", "django", "monitoring"}
    assert users["default"] == ["off", "resetchannels", "-@all"]
    assert not any(secret in text for secret in SECRETS.values() if len(secret) > 2)


@pytest.mark.parametrize(("topology", "wanted"), [("single", "0"), ("plain", "0"), ("three", "1")])
def test_a_replica_is_needed_where_another_master_may_be_chosen(topology: str, wanted: str) -> None:
    settings = plan.parse_settings(render("redis", "live.conf.j2", topology=topology))
    assert settings["min-replicas-to-write"] == wanted
    assert evaluate("redis", "redis_sentinel", topology=topology) is (wanted == "1")
    assert ("user sentinel " in render("redis", "users.acl.j2", topology=topology)) is (wanted == "1")
