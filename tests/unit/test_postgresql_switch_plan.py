# SPDX-License-Identifier: GPL-3.0-or-later
"""How the primary moves, decided from what the members say: every state that an interrupted move leaves, too."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_switch_plan as plan

NAMES = ["db1", "db2", "db3"]
LIMITS = plan.Limits()
END = "0/5000100"


def downstream(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "state": "streaming", "lag_bytes": 0, "silent_seconds": 0, **more}


def node(role: str, **more: Any) -> dict[str, Any]:
    standby = role == "standby"
    return {
        "data": "present",
        "running": True,
        "accepting": True,
        "in_recovery": standby,
        "error": None,
        "role": role,
        "start": "auto",
        "standby_signal": standby,
        "database_cluster_state": "in archive recovery" if standby else "in production",
        "system_identifier": "7",
        "timeline": 3,
        "lsn": END,
        "receive_lsn": END if standby else None,
        "replay_paused": False if standby else None,
        "slots": {"db1": {}, "db2": {}, "db3": {}},
        "apply_delay_seconds": 0,
        "disk_free_bytes": 10**12,
        "max_wal_senders": 16,
        "settings_errors": [],
        "settings_pending_restart": [],
        "archiver": "off",
        "program_replaced": False,
        "running_backups": 0,
        "oldest_transaction_seconds": 0,
        "synchronous_standby_names": "",
        "upstream": {"status": "streaming", "timeline": 3} if standby else None,
        "downstreams": [] if standby else [downstream("db2"), downstream("db3")],
        "other_managers": [],
        **more,
    }


def stopped(state: str = "shut down", **more: Any) -> dict[str, Any]:
    """A primary that a move has put out of action."""
    return node(
        "standby", running=False, accepting=False, in_recovery=None, start="disabled", upstream=None,
        database_cluster_state=state, lsn="0/50000A0", receive_lsn=None, **more,
    )  # fmt: skip


CRASHED = node("primary", running=False, accepting=False, in_recovery=None, lsn="0/4000000")
EMPTY = node("standby", data="absent", running=False, accepting=False)
DOWN_STANDBY = node(
    "standby", running=False, accepting=False, in_recovery=None, upstream=None,
    database_cluster_state="shut down in recovery",
)  # fmt: skip


def inspected(**nodes: Any) -> dict[str, Any]:
    """Nodes by name; None cannot be reached. What the others hear from each is what it is."""

    def heard(name: str) -> dict[str, Any]:
        found = nodes[name]
        if isinstance(found, str):
            return {"state": found, "timeline": 3}
        if found is None or not found["accepting"]:
            return {"state": "unreachable", "error": "no answer"}
        return {"state": found["role"], "timeline": found["timeline"]}

    return {
        name: {"node": found, "peers": {other: heard(other) for other in nodes if other != name}}
        if isinstance(found, dict)
        else {}
        for name, found in nodes.items()
    }


def healthy(**more: Any) -> dict[str, Any]:
    return inspected(**{"db1": node("primary"), "db2": node("standby"), "db3": node("standby"), **more})


def test_a_planned_move() -> None:
    found = plan.switchover(NAMES, "db2", healthy(), LIMITS)
    assert (found.action, found.old, found.new, found.since_lsn) == ("switch", "db1", "db2", END)
    assert found.standbys == ["db3", "db1"]
    assert found.rejoin == ["db1"]
    assert plan.switchover(NAMES, "db1", healthy(), LIMITS).action == "none"


@pytest.mark.parametrize(
    ("members", "target", "reason"),
    [
        (healthy(), "db9", "got 'db9', wants one of db1, db2, db3"),
        (healthy(), "", "got '', wants"),
        (healthy(db3=node("primary")), "db2", r"split brain: db1 \(timeline 3\), db3 \(timeline 3\) are primaries"),
        (healthy(db3="primary"), "db2", "split brain"),  # Ansible does not reach it, but its peers hear it
        (healthy(db3=node("standby", other_managers=["Patroni"])), "db2", "db3 is managed by Patroni"),
        (healthy(db2=node("standby", system_identifier="8")), "db2", "different clusters"),
        (healthy(db2=None), "db2", "db2 cannot be reached"),
        (healthy(db2=DOWN_STANDBY), "db2", "db2 is no running standby"),
        (healthy(db2=stopped()), "db2", "db2 is fenced"),
        (healthy(db2=node("standby", upstream=None)), "db2", "does not stream from db1"),
        (healthy(db2=node("standby", upstream={"status": "streaming", "timeline": 2})), "db2", "does not stream"),
        (healthy(db2=node("standby", replay_paused=True)), "db2", "replay is paused on db2"),
        (healthy(db2=node("standby", slots={"db1": {}})), "db2", "db2 has no replication slots for db3"),
        (healthy(db2=node("standby", apply_delay_seconds=60)), "db2", "delayed on db2 by 60 s"),
        (healthy(db2=node("standby", disk_free_bytes=10**6)), "db2", "0 MiB free, wants 256"),
        (healthy(db2=node("standby", max_wal_senders=1)), "db2", "too few max_wal_senders"),
        (healthy(db2=node("standby", settings_errors=["x: bad"])), "db2", "refuses lines of its configuration: x: bad"),
        (healthy(db1=node("primary", archiver="failing")), "db2", "cannot archive its WAL"),
        (healthy(db1=node("primary", running_backups=1)), "db2", "1 base backup"),
        (healthy(db1=node("primary", oldest_transaction_seconds=61)), "db2", "open for 61 s"),
        (healthy(db1=node("primary", accepting=False, error="hangs")), "db2", "db1 does not answer: hangs"),
        (healthy(db1="primary"), "db2", "Ansible cannot reach it"),
        (healthy(db3=None), "db2", "db3 cannot be reached.*postgresql_accept_missing_members"),
        (healthy(db1=node("primary", downstreams=[])), "db2", "db1 does not see db2.*db3 does not stream"),
        (
            healthy(db1=node("primary", downstreams=[downstream("db2", silent_seconds=6)])),
            "db2", "db2 has not told db1 for 6 s",
        ),
        (
            healthy(db1=node("primary", downstreams=[downstream("db2", lag_bytes=2**25)])),
            "db2", "db2 lags behind by 33554432 bytes",
        ),
        (inspected(db1=CRASHED, db2=node("standby"), db3=node("standby")), "db2", "playbooks/failover.yml"),
        (inspected(db1=None, db2=node("standby"), db3=node("standby")), "db2", "db1 cannot be reached"),
        (inspected(db1=stopped(), db2=stopped(), db3=node("standby")), "db3", "no single member was one"),
    ],
)  # fmt: skip
def test_a_planned_move_is_refused(members: dict[str, Any], target: str, reason: str) -> None:
    found = plan.switchover(NAMES, target, members, LIMITS)
    assert found.action == "refuse"

    assert re.search(reason, "; ".join(found.reasons)), found.reasons


def test_members_that_are_down_can_be_accepted() -> None:
    found = plan.switchover(NAMES, "db2", healthy(db3=None), plan.Limits(accept_missing_members=True))
    assert (found.action, found.standbys) == ("switch", ["db1"])
    assert found.warnings == ["db3 cannot be reached"]


BEHIND = {"lsn": "0/5000000", "receive_lsn": "0/5000000", "upstream": None}
AFTER = {"upstream": None}


@pytest.mark.parametrize(
    ("state", "members", "target", "action", "old", "new"),
    [
        # The order of a move: locked, stopped, promoted, back as a standby. It can be killed after each of them.
        ("locked", healthy(db1=node("primary", standby_signal=True, start="disabled")), "db2", "switch", "db1", "db2"),
        (
            "locked, and the old one is wanted",
            healthy(db1=node("primary", standby_signal=True, start="disabled")), "db1", "release", "db1", "db1",
        ),
        (
            "stopped", inspected(db1=stopped(), db2=node("standby", **AFTER), db3=node("standby", **AFTER)),
            "db2", "promote", "db1", "db2",
        ),
        (
            "stopped by hand, not locked",
            inspected(db1=node("primary", running=False, accepting=False, in_recovery=None, lsn="0/50000A0",
                               database_cluster_state="shut down"),
                      db2=node("standby", **AFTER), db3=node("standby", **AFTER)),
            "db2", "promote", "db1", "db2",
        ),
        (
            "stopped, and another one is wanted",
            inspected(db1=stopped(), db2=node("standby", **AFTER), db3=node("standby", **AFTER)),
            "db3", "promote", "db1", "db3",
        ),
        (
            "stopped, and the old one is wanted",
            inspected(db1=stopped(), db2=node("standby", **AFTER), db3=node("standby", **AFTER)),
            "db1", "release", "db1", "db1",
        ),
        (
            "stopped before all had arrived",
            inspected(db1=stopped(), db2=node("standby", **BEHIND), db3=node("standby", **AFTER)),
            "db2", "release", "db1", "db1",
        ),
        (
            "promoted",
            inspected(db1=stopped(), db2=node("primary", timeline=4), db3=node("standby", timeline=4)),
            "db2", "none", None, "db2",
        ),
    ],
)  # fmt: skip
def test_an_interrupted_move_is_finished_or_undone(
    state: str, members: dict[str, Any], target: str, action: str, old: str | None, new: str
) -> None:
    found = plan.switchover(NAMES, target, members, LIMITS)
    assert (found.action, found.old, found.new) == (action, old, new), (state, found)


def test_after_the_promotion_the_former_primary_is_brought_back() -> None:
    members = inspected(db1=stopped(), db2=node("primary", timeline=4), db3=node("standby", timeline=4))
    assert plan.switchover(NAMES, "db2", members, LIMITS).rejoin == ["db1"]
    let_start = {**stopped(), "start": "auto"}
    members = inspected(db1=let_start, db2=node("primary", timeline=4), db3=node("standby", timeline=4))
    assert plan.switchover(NAMES, "db2", members, LIMITS).rejoin == ["db1"], "the run was killed before it was started"
    by_hand = {**stopped(), "start": "manual"}
    members = inspected(db1=by_hand, db2=node("primary", timeline=4), db3=node("standby", timeline=4))
    assert plan.switchover(NAMES, "db2", members, LIMITS).rejoin == [], "somebody wants to start it himself"
    crashed = stopped("in production")
    members = inspected(db1=crashed, db2=node("primary", timeline=4), db3=node("standby", timeline=4))
    assert plan.switchover(NAMES, "db2", members, LIMITS).rejoin == [], "what crashed is for rejoin.yml"


@pytest.mark.parametrize(
    ("members", "fence", "unreachable", "harmless"),
    [
        (inspected(db1=CRASHED, db2=node("standby"), db3=node("standby")), ["db1"], [], []),
        (inspected(db1=None, db2=node("standby"), db3=node("standby")), [], ["db1"], []),
        (inspected(db1=None, db2=node("standby"), db3=DOWN_STANDBY), [], ["db1"], ["db3"]),
        (inspected(db1=None, db2=node("standby"), db3=None), [], ["db1", "db3"], []),
        # It hangs: nobody gets an answer, and Ansible can stop it.
        (
            inspected(db1=node("primary", accepting=False), db2=node("standby"), db3=node("standby")),
            ["db1"], [], [],
        ),
        # An earlier run has put it out of action already: the proof is made again.
        (inspected(db1=stopped(), db2=node("standby"), db3=node("standby")), ["db1"], [], []),
        (inspected(db1=stopped("in production"), db2=node("standby"), db3=node("standby")), ["db1"], [], []),
        (inspected(db1=CRASHED, db2=node("standby"), db3=EMPTY),
         ["db1"], [], ["db3"]),
    ],
)  # fmt: skip
def test_who_is_put_out_of_action(
    members: dict[str, Any], fence: list[str], unreachable: list[str], harmless: list[str]
) -> None:
    found = plan.failover(NAMES, None, members)
    assert (found.action, found.fence, found.unreachable, found.harmless) == ("fail_over", fence, unreachable, harmless)


@pytest.mark.parametrize(
    ("members", "target", "action", "reason"),
    [
        (healthy(), None, "none", ""),
        (healthy(), "db1", "none", ""),
        (healthy(), "db2", "refuse", "switchover.yml moves it"),
        (healthy(db1="primary"), None, "none", ""),  # not reached by Ansible, but its peers hear it: it lives
        (healthy(), "db9", "refuse", "wants one of"),
        (inspected(db1=CRASHED, db2=node("standby"), db3=DOWN_STANDBY), "db3", "refuse", "db3 is no running standby"),
        (inspected(db1=CRASHED, db2=DOWN_STANDBY, db3=None), None, "refuse", "no running standby to promote"),
        (healthy(db3=node("primary")), None, "refuse", "split brain"),
    ],
)
def test_when_there_is_nothing_to_fail_over(
    members: dict[str, Any], target: str | None, action: str, reason: str
) -> None:
    found = plan.failover(NAMES, target, members)
    assert found.action == action
    assert reason in "; ".join(found.reasons)


SYNC = 'ANY 1 ("db1", "db3")'


@pytest.mark.parametrize(
    ("setting", "db3", "lossless"),
    [
        (SYNC, node("standby"), True),
        (SYNC, DOWN_STANDBY, False),  # it may be the one that has the last commit
        ('ANY 2 ("db1", "db3")', DOWN_STANDBY, True),
        ("", node("standby"), False),
    ],
)
def test_what_can_be_promised(setting: str, db3: dict[str, Any], lossless: bool) -> None:
    members = inspected(db1=CRASHED, db2=node("standby", synchronous_standby_names=setting), db3=db3)
    assert plan.failover(NAMES, None, members).lossless == lossless


@pytest.mark.parametrize(
    ("db2", "db3", "target", "new", "reason"),
    [
        ({}, {}, None, "db2", ""),
        ({}, {"receive_lsn": "0/6000000"}, None, "db3", ""),
        ({}, {"lsn": "0/6000000", "receive_lsn": None}, None, "db3", ""),  # receive is null after a restart
        ({"receive_lsn": "0/7000000"}, {"timeline": 4}, None, "db3", ""),  # the timeline counts first
        ({}, {"receive_lsn": "0/5000101"}, "db2", None, "db2 lacks 1 bytes that db3 has"),
        ({}, {}, "db3", "db3", ""),
        ({}, {"accepting": False, "running": False}, None, None, "db3 answered as a standby a moment ago"),
    ],
)
def test_the_standby_that_has_most_is_chosen(
    db2: dict[str, Any], db3: dict[str, Any], target: str | None, new: str | None, reason: str
) -> None:
    members = inspected(db2=node("standby", **db2), db3=node("standby", **db3))
    found = plan.choose(members, ["db2", "db3"], target, ["0/8000000"])
    assert found.new == new
    assert reason in "; ".join(found.reasons)
    if new:
        assert found.after_lsn == "0/8000000"


def test_nobody_is_chosen_while_another_is_about_to_be_promoted() -> None:
    members = inspected(db2=node("standby"), db3=node("standby"))
    found = plan.choose({**members, "db3": {**members["db3"], "promotion_pending": True}}, ["db2", "db3"], None, [])
    assert (found.action, found.new) == ("refuse", None)
    assert "begun to promote db3" in found.reasons[0]


def test_an_end_that_is_not_known_makes_the_loss_unknown() -> None:
    members = inspected(db2=node("standby"), db3=node("standby"))
    assert plan.choose(members, ["db2", "db3"], None, ["0/8000000", None]).after_lsn is None
    assert plan.choose(members, ["db2", "db3"], None, []).after_lsn is None


def test_a_rolling_restart_keeps_the_primary_for_last() -> None:
    pending = {"settings_pending_restart": ["max_connections"]}
    members = healthy(db1=node("primary", **pending), db3=node("standby", **pending))
    found = plan.restart(NAMES, members, everything=False)
    assert (found.action, found.candidates, found.old, found.new) == ("restart", ["db3"], "db1", "db2")
    found = plan.restart(NAMES, healthy(), everything=False)
    assert (found.action, found.candidates, found.old) == ("none", [], None)
    found = plan.restart(NAMES, healthy(), everything=True)
    assert (found.candidates, found.old) == (["db2", "db3"], "db1")
    upgraded = healthy(db3=node("standby", program_replaced=True))
    assert plan.restart(NAMES, upgraded, everything=False).candidates == ["db3"]
    assert plan.restart(NAMES, healthy(db3=None), everything=True).action == "refuse"
    assert plan.restart(["db1"], inspected(db1=node("primary")), everything=True).action == "refuse"


def test_everybody_is_described() -> None:
    members = inspected(db1=stopped(), db2=node("primary", timeline=4), db3=None)
    assert plan.table(NAMES, members) == [
        "db1: out of action, timeline 3, 0/50000A0",
        "db2: primary, timeline 4, 0/5000100",
        "db3: cannot be reached",
    ]
