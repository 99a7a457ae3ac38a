# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host may leave the cluster: everybody that can be spared, and nobody without being told what to do first."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from ansible_collections.flotilla.django.plugins.filter.status import cluster_but
from ansible_collections.flotilla.django.plugins.module_utils import _scale_plan as scale
from ansible_collections.flotilla.django.plugins.module_utils import _status_plan as plan
from render import ROOT
from status_cluster import (
    ADDRESSES,
    SHARED,
    TIERS,
    Answers,
    both,
    down,
    drained,
    healthy,
    put,
    stopped_database,
    without,
)

FOUR = {**TIERS, "redis": [*TIERS["redis"], "cache4"]}


def with_cache4(answers: Answers) -> None:
    """A fourth Redis, so that three Sentinels are left when one goes."""
    answers["cache4"] = {
        **answers["cache3"],
        "redis": {**answers["cache3"]["redis"], "name": "cache4", "address": "192.0.2.34"},
    }


def problems(
    answers: Answers,
    name: str,
    accept: tuple[str, ...] = (),
    tiers: dict[str, list[str]] | None = None,
    shared: tuple[str, ...] = (SHARED,),
) -> list[str]:
    cluster = plan.Cluster(
        domain="www.example.com", tiers=tiers or TIERS, addresses=ADDRESSES, asked=list(answers), shared=shared
    )
    return scale.scale_in_problems(cluster, answers, name, accept)


@pytest.mark.parametrize("name", ["lb1", "lb2", "app1", "app3", "db2", "db3", "static1"])
def test_a_host_that_can_be_spared_goes(name: str) -> None:
    assert problems(healthy(), name) == []


def test_a_replica_of_redis_goes_when_three_sentinels_are_left() -> None:
    answers = healthy()
    with_cache4(answers)
    assert problems(answers, "cache4", tiers=FOUR) == []


@pytest.mark.parametrize("name", ["app2", "db2", "lb2", "static2"])
def test_a_dead_host_goes_too(name: str) -> None:
    answers = healthy()
    both(down(name), stopped_database("db2") if name == "db2" else down(name))(answers)
    without(name)(answers)
    assert problems(answers, name) == []


def lock(content: dict[str, Any]) -> Callable[[Answers], None]:
    return put("app1/django/lock", content)


def fewer_standbys(answers: Answers) -> None:
    answers["db1"]["postgresql"]["synchronous_standby_names"] = "ANY 2 (db2, db3)"


CASES: dict[str, tuple[str, Callable[[Answers], None], str]] = {
    "unknown": (
        "nobody",
        lambda _answers: None,
        r"scale_in_host: got 'nobody', wants a host of the cluster: lb1, lb2",
    ),
    "primary": ("db1", lambda _answers: None, r"db1 is the database primary: playbooks/switchover\.yml .*=db2 first"),
    "primary-stopped": ("db1", stopped_database("db1"), r"db1 is the database primary"),
    "no-primary": ("db2", stopped_database("db1"), r"PostgreSQL has no primaries"),
    "replica-down": ("db2", stopped_database("db3"), r"PostgreSQL on db3 does not answer"),
    "synchronous": ("db3", fewer_standbys, r"commits wait for 2 standbys, and without db3 1 stream"),
    "master": (
        "cache1",
        lambda _answers: None,
        r"cache1 is the Redis master: .*redis_switchover\.yml .*=cache2 first",
    ),
    "two-sentinels": ("cache3", lambda _answers: None, r"with 2 Sentinels left.*scale_in_accept=no_failover"),
    "sentinel-down": (
        "cache3",
        put("cache2/redis/sentinel/state", "refused"),
        r"Sentinel of cache2 does not answer",
    ),
    "redis-down": ("cache3", put("cache2/redis/state", "refused"), r"Redis on cache2 does not answer"),
    "other-silent": ("app3", without("db3"), r"db3 did not answer, and could not be told that app3 goes"),
    "other-app-down": (
        "app3",
        both(down("app1"), down("app2")),
        r"lb1 has no other server of django",
    ),
    "other-app-drained": ("app3", both(drained("app1"), drained("app2")), r"lb1 has no other server of django"),
    "balancer-down": ("app3", put("lb2/haproxy", {"error": "refused"}), r"HAProxy on lb2 does not answer"),
    "other-balancer-down": (
        "lb1",
        put("lb2/haproxy", {"error": "refused"}),
        r"balancers \(lb2\) none can",
    ),
    "other-balancer-drained": ("lb1", put("lb2/haproxy/drained", True), r"balancers \(lb2\) none can"),
    "keepalived-down": (
        "lb1",
        put("lb2/host/units/keepalived.service", "failed"),
        r"balancers \(lb2\) none can",
    ),
    "deploy": ("app3", lock({"id": "x", "user": "anna", "host": "desk"}), r"a deploy of anna@desk goes on"),
    "deploy-left": ("app3", lock({"nodes": ["app2"]}), r"an earlier deploy left app2 out of service"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_cluster_needs_stays(name: str) -> None:
    host, change, wanted = CASES[name]
    answers = healthy()
    change(answers)
    found = problems(answers, host)
    assert any(re.search(wanted, line) for line in found), found


@pytest.mark.parametrize("tier", scale.NEEDED)
def test_the_last_of_a_tier_stays(tier: str) -> None:
    name = TIERS[tier][0]
    tiers = {**TIERS, tier: [name]}
    assert problems(healthy(), name, tiers=tiers) == [
        f"scale_in_host: {name} is the only host of the group {tier}, which needs one"
    ]


def test_what_is_accepted_goes() -> None:
    assert problems(healthy(), "cache3", ("no_failover",)) == []
    (line,) = problems(healthy(), "lb1", shared=())
    assert "take it out of the DNS" in line
    assert problems(healthy(), "lb1", ("stray_clients",), shared=()) == []
    assert problems(healthy(), "lb1", ("everything",)) == [
        "scale_in_accept: got everything, wants words of gap, no_failover, stray_clients"
    ]


@pytest.mark.parametrize("nodes", [["app1"], ["app1", "lb1"]])
def test_a_balancer_stays_whose_end_leaves_nobody_who_answers(nodes: list[str]) -> None:
    """The one node that is left starts anew, because the addresses that it trusts have changed."""
    tiers = {**TIERS, "django": nodes}
    (line,) = problems(healthy(), "lb1", tiers=tiers)
    assert line.startswith("app1 will be the only node, and starts anew when it no longer trusts lb1")
    assert line.endswith("Add a node first, or say -e scale_in_accept=gap")
    assert problems(healthy(), "lb1", ("gap",), tiers=tiers) == []
    assert problems(healthy(), "lb1", tiers={**TIERS, "django": [*nodes, "app2"]}) == []


def test_the_groups_without_a_host() -> None:
    groups = {"all": ["a", "b"], "django": ["a"], "redis": ["b"]}
    assert scale.without(groups, "a") == {"all": ["b"], "django": [], "redis": ["b"]}
    assert scale.without(groups, "") == groups


def test_the_pattern_that_leaves_a_host_out() -> None:
    assert [f"redis{cluster_but(name)}" for name in ("", "cache2")] == ["redis", "redis:!cache2"]


@pytest.mark.parametrize(
    "play", yaml.safe_load((ROOT / "playbooks/site.yml").read_text()), ids=lambda play: play["name"]
)
def test_every_play_of_site_leaves_out_the_host_that_leaves(play: dict[str, Any]) -> None:
    """The first one only looks at the inventory, on the controller."""
    assert play["hosts"] == "all" or play["hosts"].endswith("{{ cluster_but }}")
    assert "vars/topology.yml" in play["vars_files"]


SHARED_BY_SITE = ["check", "prepare", "let_go", "activate", "activate_drained", "activate_left"]


@pytest.mark.parametrize("name", SHARED_BY_SITE)
def test_the_tasks_of_site_know_the_groups_without_it(name: str) -> None:
    text = (ROOT / f"playbooks/tasks/{name}.yml").read_text()
    assert not re.findall(r"(?<![\w_])groups(?:\[| \|)", text)


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [("", 0), (None, 0), ("ANY 2 (a, b, c)", 2), ("FIRST 1 (a)", 1), ("3 (a, b, c)", 3), ("a, b", 1), ("*", 1)],
)
def test_how_many_standbys_a_commit_waits_for(setting: str | None, wanted: int) -> None:
    assert plan.synchronous(setting) == wanted
