# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Redis role writes, read the way Redis and the modules read it."""

from __future__ import annotations

import hashlib

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as plan
from render import render

SECRETS = {"redis_app_password": "app'secret", "redis_admin_password": "x1", "redis_replication_password": "x2"}


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
    assert set(users) == {"default", "admin", "replication", "django", "exporter"}
    assert users["default"] == ["off", "resetchannels", "-@all"]
    assert not any(secret in text for secret in SECRETS.values() if len(secret) > 2)
    assert f"#{hashlib.sha256(SECRETS['redis_app_password'].encode()).hexdigest()}" in users["django"]
    rules = users["django"]
    assert rules.index("-@all") < rules.index("+@write") < rules.index("-@dangerous") < rules.index("+info")


@pytest.mark.parametrize("topology", ["single", "plain", "three"])
def test_listens_at_its_own_address_and_loopback(topology: str) -> None:
    bind = plan.parse_settings(render("redis", "start.conf.j2", topology=topology))["bind"].split()
    assert len(bind) == 2
    assert bind[1] == "127.0.0.1"
    assert bind[0] != "0.0.0.0"
