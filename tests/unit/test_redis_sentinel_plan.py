# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Sentinel has to be told, and when a planned move is refused: tables of what all of them answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as redis
from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils import _redis_switchover_plan as switchover
from ansible_collections.flotilla.django.plugins.module_utils._redis_sentinel_plan import Peer, Sentinel, Wanted

ADDRESS = {f"cache{number}": f"192.0.2.4{number}" for number in (1, 2, 3)}
WANTED = Wanted(3, "sentinel", "secret", 5000)
STORED = {"sentinel-user": "sentinel", "sentinel-pass": "secret", "auth-user": "sentinel", "auth-pass": "secret"}


def sentinel(name: str, watches: str = "cache1", **fields: Any) -> Sentinel:
    peers = tuple(Peer(address, 26379, f"id-{other}") for other, address in ADDRESS.items() if other != name)
    replicas = tuple(Peer(address, 6379) for other, address in ADDRESS.items() if other != watches)
    found = Sentinel(name, ADDRESS[name], redis.UP, f"id-{name}", ADDRESS[watches], ("master",), WANTED.settings)
    return replace(replace(found, peers=peers, replicas=replicas), **fields)


def silent(name: str) -> Sentinel:
    return Sentinel(name, ADDRESS[name], redis.REFUSED, detail="connection refused")


def blank(name: str) -> Sentinel:
    return Sentinel(name, ADDRESS[name], redis.UP, f"id-{name}")


ALL = [sentinel(name) for name in ADDRESS]


@pytest.mark.parametrize(("members", "wanted"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_the_quorum_is_a_majority(members: int, wanted: int) -> None:
    assert Wanted(members, "u", "p", 1).settings["quorum"] == str(wanted)


@pytest.mark.parametrize(
    ("sentinels", "wanted"),
    [
        (ALL, "cache1"),
        ([ALL[0], ALL[1], silent("cache3")], "cache1"),
        ([ALL[0], silent("cache2"), silent("cache3")], ""),
        ([ALL[0], sentinel("cache2", "cache2"), silent("cache3")], ""),
        ([sentinel("cache1", "cache2"), sentinel("cache2", "cache2"), ALL[2]], "cache2"),
        ([blank(name) for name in ADDRESS], ""),
        ([ALL[0], blank("cache2"), blank("cache3")], ""),
        ([], ""),
    ],
)
def test_only_a_majority_of_all_counts(sentinels: list[Sentinel], wanted: str) -> None:
    assert plan.chosen_master(sentinels) == ADDRESS.get(wanted, "")


FILE = """# Sentinel itself rewrites this file.
sentinel announce-ip "192.0.2.42"
port 26379
sentinel myid 1a10
sentinel sentinel-user sentinel
sentinel sentinel-pass secret
sentinel monitor flotilla 192.0.2.41 6379 2
sentinel auth-user flotilla sentinel
sentinel auth-pass flotilla secret
sentinel auth-pass other another
sentinel known-sentinel flotilla 192.0.2.43 26379 8054
"""


def test_stored() -> None:
    found = plan.stored(FILE)
    assert {name: found[name] for name in STORED} == STORED
    assert (found["myid"], found["announce-ip"]) == ("1a10", "192.0.2.42")
    assert plan.stored('sentinel auth-pass flotilla "half') == {}


def test_a_file_of_another_host_is_recognised() -> None:
    assert not plan.is_foreign(FILE, "192.0.2.42")
    assert plan.is_foreign(FILE, "192.0.2.43")
    assert plan.is_foreign("port 26379", "192.0.2.43"), "a file that says nothing about itself is not ours"
    assert not plan.is_foreign("", "192.0.2.43"), "there is none"


def test_a_sentinel_in_order_is_told_nothing() -> None:
    assert plan.own_commands(WANTED, STORED) == []
    assert plan.watch_commands(ALL[0], WANTED, STORED, "", 6379) == []


def test_a_new_one_is_told_everything_about_the_live_master() -> None:
    commands = plan.watch_commands(blank("cache1"), WANTED, {}, ADDRESS["cache2"], 6379)
    assert commands[0] == ("SENTINEL", "MONITOR", "flotilla", "192.0.2.42", "6379", "2")
    assert ("SENTINEL", "SET", "flotilla", "auth-pass", "secret") in commands
    assert ("SENTINEL", "SET", "flotilla", "down-after-milliseconds", "5000") in commands
    names = plan.names_of(commands)
    assert names[0] == "monitor"
    assert "secret" not in names
    assert plan.watch_commands(blank("cache1"), WANTED, {}, "", 6379) == [], "nobody is the master yet"


def test_one_that_watches_is_never_pointed_elsewhere() -> None:
    commands = plan.watch_commands(ALL[0], WANTED, {}, ADDRESS["cache2"], 6379)
    assert plan.names_of(commands) == ["auth-user", "auth-pass"]


def test_only_what_differs_is_set() -> None:
    drifted = replace(ALL[0], settings={**WANTED.settings, "quorum": "1"})
    assert plan.watch_commands(drifted, WANTED, STORED, "", 6379) == [("SENTINEL", "SET", "flotilla", "quorum", "2")]
    assert plan.own_commands(WANTED, {**STORED, "sentinel-pass": "old"}) == [
        ("SENTINEL", "CONFIG", "SET", "sentinel-pass", "secret")
    ]


def test_strangers_and_twins() -> None:
    assert plan.strangers(ALL[0], ADDRESS.values()) == []
    gone = replace(ALL[0], peers=(*ALL[0].peers, Peer("192.0.2.99", 26379, "x")))
    assert plan.strangers(gone, ADDRESS.values()) == ["192.0.2.99"]
    assert plan.twins(ALL[0], ALL) == []
    assert plan.twins(ALL[0], [ALL[0], replace(ALL[1], run_id="id-cache1"), silent("cache3")]) == ["cache2"]


def test_unsettled() -> None:
    at = ADDRESS["cache1"]
    assert plan.unsettled(ALL[0], ALL, at) == []
    assert plan.unsettled(ALL[0], [ALL[0], ALL[1], silent("cache3")], at) == [], "a dead one is not waited for"
    assert plan.unsettled(blank("cache1"), ALL, at) == ["it watches no master"]
    assert "and the master is 192.0.2.42" in plan.unsettled(ALL[0], ALL, ADDRESS["cache2"])[0]
    alone = replace(ALL[0], peers=ALL[0].peers[:1])
    assert plan.unsettled(alone, ALL, at) == ["it has not found the Sentinel of cache3 (192.0.2.43) yet"]


def node(name: str, follows: str = "cache1", **fields: Any) -> redis.Node:
    found = redis.Node(name, ADDRESS[name], redis.UP, redis.MASTER, keys=1, replicas=2)
    if name != follows:
        found = redis.Node(name, ADDRESS[name], redis.UP, redis.REPLICA, ADDRESS[follows], 6379, True, keys=1)
    return replace(found, **fields)


NODES = [node(name) for name in ADDRESS]
TWO = [NODES[0], NODES[1], node("cache3", "cache3", replicas=0)]


@pytest.mark.parametrize(
    ("nodes", "sentinels", "new", "why"),
    [
        (NODES, ALL, "cache9", "'cache9', wanted one of the members: cache1, cache2, cache3"),
        (TWO, [silent(name) for name in ADDRESS], "cache2", "2 members say that they are the master"),
        (
            [redis.Node("cache1", "192.0.2.41", redis.REFUSED), *NODES[1:]],
            ALL,
            "cache2",
            "no member is the master",
        ),
        (NODES, [ALL[0], ALL[1], silent("cache3")], "cache2", "Sentinel on cache3 (192.0.2.43) is refused"),
        (NODES, [ALL[0], ALL[1], blank("cache3")], "cache2", "watches no master"),
        (NODES, [ALL[0], ALL[1], sentinel("cache3", "cache2")], "cache2", "takes 192.0.2.42 for the master"),
        (NODES, [replace(ALL[0], flags=("master", "s_down")), *ALL[1:]], "cache2", "sees the master as master, s_down"),
        (
            NODES,
            [replace(ALL[0], flags=("master", "failover_in_progress")), *ALL[1:]],
            "cache2",
            "failover_in_progress",
        ),
        ([NODES[0], node("cache2", link_up=False), NODES[2]], ALL, "cache2", "cache2 (192.0.2.42) is not in step"),
        ([*NODES[:2], node("cache3", link_up=False)], ALL, "cache2", "cache3 (192.0.2.43) is not in step"),
        ([*NODES[:2], redis.Node("cache3", "192.0.2.43", redis.UNREACHABLE)], ALL, "cache2", "is unreachable"),
        ([*NODES[:2], node("cache3", "cache2")], ALL, "cache2", "follows 192.0.2.42, and the master is 192.0.2.41"),
    ],
)
def test_a_move_is_refused(nodes: list[redis.Node], sentinels: list[Sentinel], new: str, why: str) -> None:
    decision = switchover.decide(nodes, sentinels, new)
    assert (decision.action, decision.old) == (switchover.REFUSE, "")
    assert why in "; ".join(decision.reasons)


def test_a_move() -> None:
    assert switchover.decide(NODES, ALL, "cache2") == switchover.Move(switchover.MOVE, (), "cache1")
    assert switchover.decide(NODES, ALL, "cache1") == switchover.Move(switchover.DONE)


def test_priorities() -> None:
    usual = dict.fromkeys(ADDRESS, 100)
    assert switchover.priorities_to_set(usual, "cache2") == {"cache2": 1}
    assert switchover.priorities_to_set({**usual, "cache2": 1}, "cache2") == {}, "the same move again"
    interrupted = {**usual, "cache3": 1}
    assert switchover.priorities_to_set(interrupted, "cache2") == {"cache2": 1, "cache3": 100}
    assert switchover.priorities_to_set({**usual, "cache3": 0}, "cache2") == {"cache2": 1}, "0 says never"
    assert switchover.priorities_to_restore(interrupted) == {"cache3": 100}
    assert switchover.priorities_to_restore(usual) == {}
