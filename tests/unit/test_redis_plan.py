# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is the Redis master: tables of what the members answer and what has to come of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils._redis_plan import Node

ADDRESS = {f"cache{number}": f"192.0.2.4{number}" for number in (1, 2, 3)}


def down(name: str, state: str = plan.REFUSED) -> Node:
    return Node(name, ADDRESS[name], state)


def master(name: str, keys: int = 5, replicas: int = 2, **fields: Any) -> Node:
    return Node(name, ADDRESS[name], plan.UP, plan.MASTER, keys=keys, replicas=replicas, history="h", **fields)


def replica(name: str, of: str, link_up: bool = True, keys: int = 5, **fields: Any) -> Node:
    address = ADDRESS.get(of, plan.NOBODY[0])
    node = Node(name, ADDRESS[name], plan.UP, plan.REPLICA, address, 6379, link_up, keys=keys, history="h")
    return replace(node, **fields)


NEW = [replica(name, "nobody", link_up=False, keys=0, history=name) for name in ADDRESS]
LOST = [replica("cache2", "cache1", False, offset=90), replica("cache3", "cache1", False, offset=100)]

# title: nodes, then the action and the master of cache1, cache2 and cache3
CASES: dict[str, tuple[list[Node], list[tuple[str, str]]]] = {
    "a tier in order: nothing is done": (
        [master("cache1"), replica("cache2", "cache1"), replica("cache3", "cache1")],
        [("stay", "cache1"), ("stay", "cache1"), ("stay", "cache1")],
    ),
    "a master moved by hand is followed": (
        [replica("cache1", "cache2"), master("cache2"), replica("cache3", "cache2")],
        [("stay", "cache2"), ("stay", "cache2"), ("stay", "cache2")],
    ),
    "a replica of a replica is left alone while its link is up": (
        [replica("cache1", "cache2"), master("cache2", replicas=1), replica("cache3", "cache1")],
        [("stay", "cache2"), ("stay", "cache2"), ("stay", "cache2")],
    ),
    "a replica of a dead member follows the live master": (
        [down("cache1", plan.UNREACHABLE), master("cache2", replicas=0), replica("cache3", "cache1", False)],
        [("follow", "cache2"), ("stay", "cache2"), ("follow", "cache2")],
    ),
    "a replica whose link to the live master is down stays": (
        [master("cache1", replicas=1), replica("cache2", "cache1", False), replica("cache3", "cache1")],
        [("stay", "cache1"), ("stay", "cache1"), ("stay", "cache1")],
    ),
    "nothing runs yet: nobody is a master before all are asked": (
        [down("cache1"), down("cache2"), down("cache3")],
        [("wait", ""), ("wait", ""), ("wait", "")],
    ),
    "all are new: the initial master becomes it": (
        NEW,
        [("promote", "cache1"), ("wait", "cache1"), ("wait", "cache1")],
    ),
    "all are new, the initial master already is it": (
        [master("cache1", keys=0, replicas=0), *NEW[1:]],
        [("stay", "cache1"), ("follow", "cache1"), ("follow", "cache1")],
    ),
    "all are new and one cannot be asked: wait": (
        [NEW[0], NEW[1], down("cache3", plan.UNREACHABLE)],
        [("wait", ""), ("wait", ""), ("wait", "")],
    ),
    "a wiped replica joins the live master": (
        [master("cache1", replicas=1), down("cache2"), replica("cache3", "cache1")],
        [("stay", "cache1"), ("follow", "cache1"), ("stay", "cache1")],
    ),
    "a wiped former master joins the live master": (
        [down("cache1"), master("cache2", replicas=1), replica("cache3", "cache2")],
        [("follow", "cache2"), ("stay", "cache2"), ("stay", "cache2")],
    ),
    "the master is away: the replicas keep their data and wait": (
        [down("cache1"), *LOST],
        [("wait", ""), ("stay", ""), ("stay", "")],
    ),
    "the master is away without a word: the same": (
        [down("cache1", plan.UNREACHABLE), *LOST],
        [("wait", ""), ("stay", ""), ("stay", "")],
    ),
    "the master still reads its data: nobody takes its place": (
        [down("cache1", plan.LOADING), *LOST],
        [("wait", ""), ("stay", ""), ("stay", "")],
    ),
    "the master was wiped and is back, empty: who has the most takes its place": (
        [NEW[0], *LOST],
        [("wait", "cache3"), ("wait", "cache3"), ("promote", "cache3")],
    ),
    "the same with equal data: the first in the inventory": (
        [NEW[0], *(replace(node, offset=100) for node in LOST)],
        [("wait", "cache2"), ("promote", "cache2"), ("wait", "cache2")],
    ),
    "the master was wiped, one of the holders cannot be asked: wait": (
        [NEW[0], LOST[0], down("cache3", plan.UNREACHABLE)],
        [("wait", ""), ("wait", ""), ("wait", "")],
    ),
    "an empty master may not wipe those that hold data": (
        [master("cache1", keys=0, replicas=0), *LOST],
        [("follow", "cache3"), ("wait", "cache3"), ("promote", "cache3")],
    ),
    "data of different histories cannot be compared": (
        [NEW[0], LOST[0], replace(LOST[1], history="other")],
        [("refuse", ""), ("refuse", ""), ("refuse", "")],
    ),
    "two masters with data are refused": (
        [master("cache1"), master("cache2", replicas=0), replica("cache3", "cache1")],
        [("refuse", ""), ("refuse", ""), ("refuse", "")],
    ),
    "two masters, one of them empty but followed, are refused": (
        [master("cache1", keys=0, replicas=1), master("cache2"), replica("cache3", "cache1")],
        [("refuse", ""), ("refuse", ""), ("refuse", "")],
    ),
    "an empty lone master joins the one with data": (
        [master("cache1", keys=0, replicas=0), master("cache2", replicas=1), replica("cache3", "cache2")],
        [("follow", "cache2"), ("stay", "cache2"), ("stay", "cache2")],
    ),
    "two empty lone masters: the initial one remains": (
        [master("cache1", keys=0, replicas=0), master("cache2", keys=0, replicas=0), down("cache3")],
        [("stay", "cache1"), ("follow", "cache1"), ("follow", "cache1")],
    ),
}


@pytest.mark.parametrize(("nodes", "wanted"), CASES.values(), ids=CASES)
def test_decide(nodes: list[Node], wanted: list[tuple[str, str]]) -> None:
    decisions = [plan.decide(nodes, name, "cache1") for name in ADDRESS]
    assert [(decision.action, decision.master) for decision in decisions] == wanted


@pytest.mark.parametrize(("nodes", "_wanted"), CASES.values(), ids=CASES)
def test_no_decision_loses_data(nodes: list[Node], _wanted: list[tuple[str, str]]) -> None:
    """Whatever was answered: a master with data is never told anything, and at most one node is promoted."""
    decisions = {name: plan.decide(nodes, name, "cache1") for name in ADDRESS}
    for node in nodes:
        if node.is_master and not node.is_blank:
            assert decisions[node.name].action in (plan.STAY, plan.REFUSE)
    promoted = [name for name, decision in decisions.items() if decision.action == plan.PROMOTE]
    assert len(promoted) <= 1
    if promoted:
        assert all(node.state == plan.UP for node in nodes)
        holders = [node.name for node in nodes if node.keys]
        assert not holders or promoted[0] in holders


# What the Sentinels have chosen, and what comes of it
BACK = [master("cache1", replicas=0), master("cache2"), replica("cache3", "cache2")]
WATCHED_CASES: dict[str, tuple[list[Node], str, list[tuple[str, str]]]] = {
    "a former master is back and does not know it yet": (
        BACK,
        "cache2",
        [("wait", "cache2"), ("stay", "cache2"), ("stay", "cache2")],
    ),
    "the same, and no majority of Sentinels": (BACK, "", [("refuse", "")] * 3),
    "what they chose is no master: two are still refused": (BACK, "cache3", [("refuse", "")] * 3),
    "the wiped master is back before they noticed: they choose, nobody else": (
        [NEW[0], *LOST],
        "cache1",
        [("wait", "")] * 3,
    ),
    "a live master that they do not name yet stays": (
        [replica("cache1", "cache2"), master("cache2"), replica("cache3", "cache2")],
        "cache1",
        [("stay", "cache2")] * 3,
    ),
    "an empty lone master joins the one they chose": (
        [master("cache1", keys=0, replicas=0), master("cache2", replicas=1), replica("cache3", "cache2")],
        "cache2",
        [("follow", "cache2"), ("stay", "cache2"), ("stay", "cache2")],
    ),
}


@pytest.mark.parametrize(("nodes", "chosen", "wanted"), WATCHED_CASES.values(), ids=WATCHED_CASES)
def test_decide_with_sentinels(nodes: list[Node], chosen: str, wanted: list[tuple[str, str]]) -> None:
    decisions = [plan.decide(nodes, name, "cache1", ADDRESS.get(chosen, "")) for name in ADDRESS]
    assert [(decision.action, decision.master) for decision in decisions] == wanted


def test_another_initial_master() -> None:
    assert plan.decide(NEW, "cache2", "cache2").action == plan.PROMOTE
    assert plan.decide(NEW, "cache1", "cache2") == plan.Decision(
        plan.WAIT, "cache2", "all members answered, none is the master: cache2 has to become it"
    )


def test_one_host_alone() -> None:
    assert plan.decide([NEW[0]], "cache1", "cache1").action == plan.PROMOTE
    assert plan.decide([master("cache1", keys=0, replicas=0)], "cache1", "cache1").action == plan.STAY


@pytest.mark.parametrize(
    ("nodes", "name", "wanted"),
    [
        ([down("cache1"), down("cache2")], "cache1", "replicaof 127.0.0.1 1"),
        ([down("cache1"), down("cache2")], "cache2", "replicaof 127.0.0.1 1"),
        ([master("cache1"), down("cache2")], "cache2", "replicaof 192.0.2.41 6379"),
        ([down("cache1"), master("cache2")], "cache1", "replicaof 192.0.2.42 6379"),
        ([down("cache1"), LOST[0], LOST[1]], "cache1", "replicaof 127.0.0.1 1"),
        ([master("cache1"), down("cache2")], "cache1", ""),
        ([master("cache1"), replica("cache2", "cache1")], "cache2", "replicaof 192.0.2.41 6379"),
        ([master("cache1"), master("cache2"), down("cache3")], "cache3", "replicaof 127.0.0.1 1"),
    ],
)
def test_a_new_node_never_begins_as_a_master(nodes: list[Node], name: str, wanted: str) -> None:
    assert plan.topology_seed(nodes, name, 6379, "cache1") == wanted


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="'cache9' is not one of the members: cache1, cache2, cache3"):
        plan.decide(NEW, "cache9", "cache1")
    with pytest.raises(ValueError, match="initial_master is 'cache9', wanted one of the members"):
        plan.decide(NEW, "cache1", "cache9")


MASTER_INFO = """# Server\r
loading:0\r
# Replication\r
role:master\r
connected_slaves:2\r
slave0:ip=192.0.2.42,port=6379,state=online,offset=70,lag=0\r
master_replid:abc\r
master_repl_offset:70\r
# Keyspace\r
db0:keys=3,expires=1,avg_ttl=0,subexpiry=0\r
db2:keys=4,expires=0,avg_ttl=0\r
"""
REPLICA_INFO = """role:slave\r
master_host:192.0.2.41\r
master_port:6379\r
master_link_status:down\r
slave_repl_offset:60\r
connected_slaves:0\r
master_replid:abc\r
master_repl_offset:0\r
loading:1\r
"""


def test_node_from_info() -> None:
    node = plan.node_from_info("cache1", "192.0.2.41", plan.parse_info(MASTER_INFO))
    assert node == Node("cache1", "192.0.2.41", plan.UP, plan.MASTER, replicas=2, keys=7, offset=70, history="abc")
    node = plan.node_from_info("cache2", "192.0.2.42", plan.parse_info(REPLICA_INFO))
    wanted = Node("cache2", "192.0.2.42", plan.LOADING, plan.REPLICA, "192.0.2.41", 6379, offset=60, history="abc")
    assert node == wanted
    with pytest.raises(ValueError, match="no field 'role'"):
        plan.node_from_info("cache2", "192.0.2.42", {})


def test_parse_settings() -> None:
    text = '# comment\n\nsave ""\nMaxmemory 64mb\nmasterauth "a\\"b \\\\c"\nbind 192.0.2.1 127.0.0.1\nmaxmemory 1gb\n'
    assert plan.parse_settings(text) == {
        "save": "",
        "maxmemory": "1gb",
        "masterauth": 'a"b \\c',
        "bind": "192.0.2.1 127.0.0.1",
    }
    with pytest.raises(ValueError, match="line 2") as error:
        plan.parse_settings('hz 10\nmasterauth "secret')
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("wanted", "running", "differs"),
    [
        ("64mb", "67108864", False),
        ("1gb", "1073741824", False),
        ("64m", "67108864", True),
        ("", "", False),
        ("", "3600 1", True),
        ("yes", "no", True),
        ("normal 0 0 0 replica 256mb 64mb 60", "normal 0 0 0 replica 268435456 67108864 60", False),
    ],
)
def test_settings_to_set(wanted: str, running: str, differs: bool) -> None:
    assert plan.settings_to_set({"x": wanted}, {"x": running}) == ({"x": wanted} if differs else {})


def test_unknown_setting() -> None:
    with pytest.raises(ValueError, match="does not know the settings maxmemori"):
        plan.settings_to_set({"maxmemori": "1"}, {"maxmemory": "1"})


def test_parse_users() -> None:
    assert plan.parse_users("user default off\n\nuser app on #ab ~* +get\n") == {
        "default": ["off"],
        "app": ["on", "#ab", "~*", "+get"],
    }
    with pytest.raises(ValueError, match="line 2 of the ACL file"):
        plan.parse_users("user default off\n# hello there\n")
