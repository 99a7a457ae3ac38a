# SPDX-License-Identifier: GPL-3.0-or-later
"""Who does what: every row is a state of a cluster and what each of its members must do in it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_topology_plan as topology

MEMBERS = ["db1", "db2", "db3"]
ID = "7400000000000000001"


def node(data: str = "absent", role: str | None = None, running: bool = False, **more: Any) -> dict[str, Any]:
    """What postgresql_replication_info returns as `node`, as far as the decision reads it."""
    present = data == "present"
    return {
        "data": data,
        "role": role,
        "running": running,
        "timeline": 1 if present else None,
        "system_identifier": ID if present else None,
        "upstream": None,
        "other_managers": [],
        "other_versions": [],
        **more,
    }


def primary(**more: Any) -> dict[str, Any]:
    return node("present", "primary", True, **more)


def standby(**more: Any) -> dict[str, Any]:
    return node("present", "standby", True, **{"upstream": {"status": "streaming"}, **more})


def lonely(**more: Any) -> dict[str, Any]:
    return standby(upstream=None, **more)


def stopped(role: str, **more: Any) -> dict[str, Any]:
    return node("present", role, False, **more)


def answer(state: str, **more: Any) -> dict[str, Any]:
    told = {"system_identifier": ID, "timeline": 1} if state in ("primary", "standby") else {"error": "why"}
    return {"state": state, **told, **more}


def decide(
    nodes: dict[str, dict[str, Any]], peers: dict[str, dict[str, Any]] | None = None, initial: str = "db1"
) -> dict[str, topology.Decision]:
    """The decision of every inspected member; all of them heard the same from the peers."""
    inspected = {name: {"node": found, "peers": peers or {}} for name, found in nodes.items()}
    return {name: topology.plan(MEMBERS, name, initial, inspected) for name in nodes}


EMPTY = node()
TABLE: list[tuple[str, dict[str, Any], dict[str, Any] | None, dict[str, str]]] = [
    ("fresh", {"db1": EMPTY, "db2": EMPTY, "db3": EMPTY}, None, {"db1": "initialise", "db2": "clone", "db3": "clone"}),
    (
        "converged",
        {"db1": primary(), "db2": standby(), "db3": standby()},
        None,
        {"db1": "run", "db2": "run", "db3": "run"},
    ),
    (
        "put out of action by a move of the primary",
        {"db1": stopped("standby", start="disabled"), "db2": primary(timeline=2), "db3": standby(timeline=2)},
        None,
        {"db1": "leave_stopped", "db2": "run", "db3": "run"},
    ),
    (
        "a move was interrupted before the promotion",
        {"db1": stopped("standby", start="disabled"), "db2": lonely(), "db3": lonely()},
        None,
        {"db1": "refuse", "db2": "refuse", "db3": "refuse"},
    ),
    (
        "a move was interrupted before the stop",
        {"db1": primary(start="disabled"), "db2": standby(), "db3": standby()},
        None,
        {"db1": "run", "db2": "run", "db3": "run"},
    ),
    (
        "promoted by hand, the old primary is stopped",
        {"db1": stopped("primary"), "db2": primary(timeline=2), "db3": standby(timeline=2)},
        None,
        {"db1": "leave_stopped", "db2": "run", "db3": "run"},
    ),
    (
        "the first member is wiped and another is the primary",
        {"db1": EMPTY, "db2": primary(timeline=2), "db3": standby(timeline=2)},
        None,
        {"db1": "clone", "db2": "run", "db3": "run"},
    ),
    (
        "two live primaries",
        {"db1": primary(), "db2": primary(timeline=2), "db3": standby()},
        None,
        {"db1": "refuse", "db2": "refuse", "db3": "refuse"},
    ),
    (
        "the second live primary is only seen over the network",
        {"db1": primary(), "db3": standby()},
        {"db2": answer("primary", timeline=2)},
        {"db1": "refuse", "db3": "refuse"},
    ),
    (
        "no primary, only standbys",
        {"db1": EMPTY, "db2": lonely(), "db3": lonely()},
        None,
        {"db1": "refuse", "db2": "refuse", "db3": "refuse"},
    ),
    (
        "the primary's host cannot be reached",
        {"db2": lonely(), "db3": lonely()},
        {"db1": answer("unreachable")},
        {"db2": "refuse", "db3": "refuse"},
    ),
    (
        "--limit on a wiped member, the primary answers",
        {"db2": EMPTY},
        {"db1": answer("primary"), "db3": answer("standby")},
        {"db2": "clone"},
    ),
    (
        "--limit on an empty member, nobody answers",
        {"db2": EMPTY},
        {"db1": answer("unreachable"), "db3": answer("unreachable")},
        {"db2": "refuse"},
    ),
    (
        "--limit on the initial primary of a cluster that seems fresh",
        {"db1": EMPTY},
        {"db2": answer("unreachable"), "db3": answer("unreachable")},
        {"db1": "refuse"},
    ),
    (
        "a new member is not let in yet",
        {"db3": EMPTY},
        {"db1": answer("rejected"), "db2": answer("rejected")},
        {"db3": "refuse"},
    ),
    (
        "--limit on a standby after the password was changed in the inventory",
        {"db2": standby()},
        {"db1": answer("rejected"), "db3": answer("rejected")},
        {"db2": "run"},
    ),
    (
        "power cut: the only primary is stopped",
        {"db1": stopped("primary"), "db2": stopped("standby"), "db3": stopped("standby")},
        None,
        {"db1": "run", "db2": "run", "db3": "run"},
    ),
    (
        "the primary was stopped, its standbys run",
        {"db1": stopped("primary"), "db2": lonely(), "db3": lonely()},
        None,
        {"db1": "run", "db2": "run", "db3": "run"},
    ),
    (
        "power cut after a promotion: the newest timeline is the truth",
        {"db1": stopped("primary"), "db2": stopped("primary", timeline=2), "db3": stopped("standby", timeline=2)},
        None,
        {"db1": "leave_stopped", "db2": "run", "db3": "run"},
    ),
    (
        "power cut, and one member was wiped",
        {"db1": stopped("primary"), "db2": EMPTY, "db3": stopped("standby")},
        None,
        {"db1": "run", "db2": "clone", "db3": "run"},
    ),
    (
        "two stopped primaries on one timeline",
        {"db1": stopped("primary"), "db2": stopped("primary"), "db3": EMPTY},
        None,
        {"db1": "refuse", "db2": "refuse", "db3": "refuse"},
    ),
    (
        "a standby has seen a newer timeline than the stopped primary",
        {"db1": stopped("primary"), "db2": EMPTY, "db3": lonely(timeline=2)},
        None,
        {"db1": "refuse", "db2": "refuse", "db3": "refuse"},
    ),
    (
        "a stopped primary, and a member that may have been promoted cannot be asked",
        {"db1": stopped("primary"), "db3": lonely()},
        {"db2": answer("unreachable")},
        {"db1": "refuse", "db3": "refuse"},
    ),
    (
        "a stopped primary, and a member that starts up and has not said what it is",
        {"db1": stopped("primary")},
        {"db2": answer("starting"), "db3": answer("standby")},
        {"db1": "refuse"},
    ),
    (
        "--limit on a stopped primary, all others are standbys",
        {"db1": stopped("primary")},
        {"db2": answer("standby"), "db3": answer("standby")},
        {"db1": "run"},
    ),
    (
        "--limit on a stopped former primary, another is the primary",
        {"db1": stopped("primary")},
        {"db2": answer("primary", timeline=2), "db3": answer("standby")},
        {"db1": "leave_stopped"},
    ),
    (
        "a stopped standby",
        {"db1": primary(), "db2": stopped("standby"), "db3": standby()},
        None,
        {"db1": "run", "db2": "run", "db3": "run"},
    ),
    (
        "different clusters",
        {"db1": primary(), "db2": standby(system_identifier="1"), "db3": standby()},
        None,
        {"db1": "refuse", "db2": "refuse", "db3": "refuse"},
    ),
    (
        "a data directory that is no cluster, beside a live primary",
        {"db1": primary(), "db2": node("foreign"), "db3": standby()},
        None,
        {"db1": "run", "db2": "refuse", "db3": "run"},
    ),
    (
        "a data directory that is no cluster, and all others empty",
        {"db1": EMPTY, "db2": node("foreign"), "db3": EMPTY},
        None,
        {"db1": "refuse", "db2": "refuse", "db3": "refuse"},
    ),
    (
        "another manager",
        {"db1": primary(other_managers=["Patroni"]), "db2": standby(), "db3": standby()},
        None,
        {"db1": "refuse", "db2": "run", "db3": "run"},
    ),
    (
        "a cluster of an older release",
        {"db1": node(other_versions=["15"]), "db2": EMPTY, "db3": EMPTY},
        None,
        {"db1": "refuse", "db2": "refuse", "db3": "refuse"},
    ),
]


@pytest.mark.parametrize(("nodes", "peers", "wanted"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_every_member_does_what_the_state_asks_for(
    nodes: dict[str, Any], peers: dict[str, Any] | None, wanted: dict[str, str]
) -> None:
    decisions = decide(nodes, peers)
    assert {name: decision.action for name, decision in decisions.items()} == wanted
    for decision in decisions.values():
        assert decision.reason


@pytest.mark.parametrize("nodes", [row[1] for row in TABLE], ids=[row[0] for row in TABLE])
def test_never_two_primaries(nodes: dict[str, Any]) -> None:
    """Whatever the state: at most one of them runs, or is made, as a primary."""
    decisions = decide(nodes)
    writable = [
        name
        for name, decision in decisions.items()
        if decision.action == "initialise" or (decision.action == "run" and nodes[name]["role"] == "primary")
    ]
    assert len(writable) <= 1


def test_the_initial_primary_can_be_chosen() -> None:
    decisions = decide(dict.fromkeys(MEMBERS, EMPTY), initial="db3")
    assert decisions["db3"].action == "initialise"
    assert (decisions["db1"].action, decisions["db1"].primary) == ("clone", "db3")


def test_clone_names_the_live_primary_not_the_first_member() -> None:
    assert decide({"db1": EMPTY}, {"db2": answer("primary"), "db3": answer("standby")})["db1"].primary == "db2"


def test_a_former_primary_is_warned_about() -> None:
    (warning,) = decide({"db1": stopped("primary"), "db2": primary(), "db3": standby()})["db1"].warnings
    assert "second primary" in warning and "rejoin.yml" in warning


def test_a_standby_that_does_not_stream_is_warned_about() -> None:
    decisions = decide({"db1": primary(), "db2": lonely(), "db3": standby()})
    assert "does not stream" in decisions["db2"].warnings[0]
    assert decisions["db3"].warnings == []


def test_the_most_telling_answer_counts() -> None:
    """db2 cannot reach db1, db3 can."""
    inspected = {
        "db2": {"node": EMPTY, "peers": {"db1": answer("unreachable")}},
        "db3": {"node": standby(), "peers": {"db1": answer("primary")}},
    }
    assert topology.plan(MEMBERS, "db2", "db1", inspected).action == "clone"


@pytest.mark.parametrize(("self_name", "initial"), [("db9", "db1"), ("db1", "db9")])
def test_strangers_are_refused(self_name: str, initial: str) -> None:
    with pytest.raises(ValueError, match="db9"):
        topology.plan(MEMBERS, self_name, initial, {"db1": {"node": EMPTY, "peers": {}}})
