# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may be promoted, who may be put out of action and back, and what the end of the WAL proves."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_promote_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_wal_plan as wal


def node(**more: Any) -> dict[str, Any]:
    """A standby that streams and has all there is."""
    return {
        "data": "present",
        "data_directory": "/var/lib/postgresql/17/main",
        "running": True,
        "accepting": True,
        "error": None,
        "role": "standby",
        "start": "auto",
        "database_cluster_state": "in archive recovery",
        "system_identifier": "7",
        "timeline": 3,
        "lsn": "0/5000100",
        "receive_lsn": "0/5000100",
        "replay_paused": False,
        "apply_delay_seconds": 0,
        "upstream": {"status": "streaming"},
        "other_managers": [],
        **more,
    }


def answer(state: str = "standby", **more: Any) -> dict[str, Any]:
    known = {"system_identifier": "7", "timeline": 3} if state in ("primary", "standby") else {"error": "no answer"}
    return {"state": state, **known, **more}


FENCED = plan.Request(fenced=("db1",), after_lsn="0/50000A0")
PEERS = {"db1": answer("unreachable"), "db3": answer()}


def request(**more: Any) -> plan.Request:
    return dataclasses.replace(FENCED, **more)


@pytest.mark.parametrize(
    ("state", "peers", "asked", "expected"),
    [
        pytest.param(node(), PEERS, FENCED, ("promote", 0, 0), id="fenced-and-complete"),
        pytest.param(node(), {"db3": answer()}, FENCED, ("promote", 0, 0), id="the-fenced-one-need-not-be-asked"),
        pytest.param(
            node(lsn="0/4000000"), PEERS, FENCED, ("promote", 0, 0), id="received-but-not-yet-replayed-counts"
        ),
        pytest.param(
            node(receive_lsn=None), PEERS, FENCED, ("promote", 0, 0), id="receive-is-null-after-a-restart"
        ),
        pytest.param(
            node(receive_lsn="0/5000000"), PEERS, FENCED, ("promote", 0, 0), id="receive-can-be-behind-replay"
        ),
        pytest.param(node(role="primary"), {"db3": answer()}, FENCED, ("none", 0, 0), id="already-primary"),
        pytest.param(node(accepting=False), PEERS, FENCED, ("wait", None, None), id="starting-up"),
        pytest.param(
            node(),
            {"db1": answer("primary")},
            plan.Request(handover_from="db1"),
            ("promote", None, 0),
            id="hand-over-by-a-live-primary",
        ),
        pytest.param(
            node(upstream=None),
            PEERS,
            plan.Request(fenced=("db1",), upstream_lsn="0/5000200", max_lag_bytes=256),
            ("promote", 256, 256),
            id="a-lag-that-is-allowed",
        ),
        pytest.param(
            node(),
            PEERS,
            plan.Request(fenced=("db1",), upstream_lsn="0/5000201", max_lag_bytes=256, accept=("data_loss",)),
            ("promote", 257, 257),
            id="a-lag-that-is-accepted",
        ),
        pytest.param(
            node(), PEERS, plan.Request(fenced=("db1",), accept=("data_loss",)), ("promote", None, None),
            id="unknown-loss-is-accepted",
        ),
        pytest.param(
            node(replay_paused=True), PEERS, request(accept=("paused_replay",)), ("promote", 0, 0),
            id="paused-is-accepted",
        ),
        pytest.param(
            node(), PEERS, request(fenced=(), accept=("split_brain",)), ("promote", 0, 0), id="unproven-is-accepted"
        ),
    ],
)  # fmt: skip
def test_may_be_promoted(
    state: dict[str, Any], peers: dict[str, Any], asked: plan.Request, expected: tuple[str, int | None, int | None]
) -> None:
    decision = plan.decide(state, peers, asked)
    assert (decision.action, decision.lag_bytes, decision.data_loss_bytes) == expected
    assert bool(decision.warnings) == bool(asked.accept)


@pytest.mark.parametrize(
    ("state", "peers", "asked", "reason"),
    [
        (node(data="absent"), PEERS, FENCED, "there is no cluster"),
        (node(other_managers=["Patroni"]), PEERS, FENCED, "Patroni manages PostgreSQL"),
        (node(other_managers=["repmgr"], role="primary"), PEERS, FENCED, "repmgr manages"),
        (node(running=False, accepting=False), PEERS, FENCED, "the server is stopped"),
        (node(role="primary"), {"db3": answer("primary")}, FENCED, "db3 are primaries at the same time"),
        (node(), {"db1": answer("primary")}, FENCED, "db1 answers as a primary although it is fenced"),
        (node(), {"db1": answer("unreachable"), "db3": answer("primary")}, FENCED, "db3 answers as a primary"),
        (node(), PEERS, request(fenced=()), r"cannot be proven that there is no other primary: db1 \(unreachable"),
        (node(), {"db3": answer("rejected")}, FENCED, r"db3 \(rejected: no answer\)"),
        (node(), {"db3": answer("starting")}, FENCED, r"db3 \(starting"),
        (node(), {}, plan.Request(after_lsn="0/50000A0"), "no peers were named"),
        (node(), {"db3": answer(system_identifier="8")}, FENCED, "db3 holds another cluster"),
        (node(), {"db3": answer(timeline=4)}, FENCED, "db3 is on the newer timeline 4"),
        (node(start="disabled"), PEERS, FENCED, "this member is fenced"),
        (node(replay_paused=True), PEERS, FENCED, "replay is paused"),
        (node(apply_delay_seconds=3600), PEERS, FENCED, "replay is delayed on this standby by 3600 s"),
        # Exactly at the start of the shutdown record: the record itself is not there.
        (node(lsn="0/50000A0", receive_lsn="0/50000A0"), PEERS, FENCED, "has the WAL up to 0/50000A0"),
        (node(lsn="0/5000000", receive_lsn=None), PEERS, FENCED, "the former primary ended after 0/50000A0"),
        (node(), PEERS, plan.Request(fenced=("db1",)), "how much WAL it lacks is not known"),
        (node(), PEERS, plan.Request(fenced=("db1",), upstream_lsn="1/0"), "it lacks 4211080960 bytes"),
        (
            node(upstream={"status": "waiting"}), {"db1": answer("primary")}, plan.Request(handover_from="db1"),
            "does not stream",
        ),
        (node(upstream=None), {"db1": answer("primary")}, plan.Request(handover_from="db1"), "does not stream"),
        (node(), {"db1": answer()}, plan.Request(handover_from="db1"), "db1, which is to hand over, is no primary"),
        (
            node(), {"db1": answer("primary"), "db3": answer("primary")}, plan.Request(handover_from="db1"),
            "db3 answers as a primary",
        ),
        # Everything that is wrong is told at once.
        (node(replay_paused=True), {"db3": answer("unreachable")}, request(fenced=()), "db3.*replay is paused"),
    ],
)  # fmt: skip
def test_is_refused(state: dict[str, Any], peers: dict[str, Any], asked: plan.Request, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plan.decide(state, peers, asked)


CONFIGURED = 'ANY 1 ("db1", "db3")'


@pytest.mark.parametrize(
    ("configured", "current", "standbys", "value", "warns"),
    [
        (CONFIGURED, CONFIGURED, ["db3"], CONFIGURED, False),
        (CONFIGURED, CONFIGURED, [], "", True),
        (CONFIGURED, "", [], "", False),
        (CONFIGURED, "", ["db1"], CONFIGURED, False),  # taken back
        ('ANY 2 ("db1", "db3")', 'ANY 2 ("db1", "db3")', ["db3"], 'ANY 1 ("db3")', True),
        ('any 1 (db1, "d""b")', "", ['d"b'], 'any 1 (db1, "d""b")', False),
        ("", "", [], "", False),
        ("FIRST 1 (db1)", "FIRST 1 (db1)", [], None, True),
        ("*", "*", ["db1"], None, True),
    ],
)
def test_commits_return_after_a_promotion(
    configured: str, current: str, standbys: list[str], value: str | None, warns: bool
) -> None:
    found, warnings = plan.synchronous(configured, current, standbys)
    assert found == value
    assert bool(warnings) == warns


PRIMARY = node(role="primary", upstream=None, database_cluster_state="in production")
CRASHED = node(role="primary", running=False, accepting=False, database_cluster_state="in production")


@pytest.mark.parametrize(
    ("state", "locked", "planned", "action"),
    [
        (PRIMARY, False, True, "stop_and_lock"),
        (PRIMARY, True, True, "stop_and_lock"),  # an earlier run was killed between the locks and the stop
        (node(role="primary", accepting=False, error="starting"), False, False, "stop_and_lock"),
        (CRASHED, False, False, "lock"),
        (CRASHED, True, False, "none"),
        (node(data="absent", running=False, accepting=False), False, False, "none"),
    ],
)
def test_is_put_out_of_action(state: dict[str, Any], locked: bool, planned: bool, action: str) -> None:
    assert plan.decide_fence(state, locked, planned).action == action


@pytest.mark.parametrize(
    ("state", "planned", "reason"),
    [
        (node(), False, "the server is a standby"),
        (CRASHED, True, "cannot hand over"),
        (node(role="primary", accepting=False, error="hangs"), True, "does not answer.*hangs"),
        (node(other_managers=["Patroni"]), False, "Patroni"),
        (node(data="foreign"), False, "no complete cluster"),
    ],
)
def test_is_not_put_out_of_action(state: dict[str, Any], planned: bool, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plan.decide_fence(state, False, planned)


STOPPED = node(role="standby", running=False, accepting=False, start="disabled", database_cluster_state="shut down")


@pytest.mark.parametrize(
    ("state", "locked", "peers", "accept", "action"),
    [
        (STOPPED, True, {"db2": answer()}, (), "unlock"),
        (STOPPED, False, {"db2": answer()}, (), "none"),
        (STOPPED, True, {"db2": answer(), "db3": answer("unreachable")}, ("split_brain",), "unlock"),
        (node(**{**STOPPED, "running": True}), True, {"db2": answer()}, (), "stop_and_unlock"),
        (PRIMARY, True, {"db2": answer("unreachable")}, (), "unlock"),
        (PRIMARY, False, {}, (), "none"),
    ],
)
def test_serves_again(
    state: dict[str, Any], locked: bool, peers: dict[str, Any], accept: tuple[str, ...], action: str
) -> None:
    assert plan.decide_release(state, locked, peers, accept).action == action


@pytest.mark.parametrize(
    ("state", "peers", "reason"),
    [
        (STOPPED, {"db2": answer("primary")}, "db2 is the primary"),
        (STOPPED, {"db2": answer(timeline=4)}, "newer timeline 4"),
        (STOPPED, {"db2": answer("unreachable")}, "cannot be proven that nobody was promoted"),
        (STOPPED, {"db2": answer("rejected")}, "cannot be proven"),
        (node(), {"db2": answer()}, "runs as a standby"),
        (node(**{**STOPPED, "database_cluster_state": "shut down in recovery"}), {"db2": answer()}, "last a standby"),
        (node(**{**STOPPED, "other_managers": ["Patroni"]}), {}, "Patroni"),
    ],
)
def test_does_not_serve_again(state: dict[str, Any], peers: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plan.decide_release(state, True, peers, ())


def test_what_another_run_has_put_out_of_action_is_left_to_it() -> None:
    with pytest.raises(ValueError, match="another run has put it out of action"):
        plan.decide_release(STOPPED, True, {"db2": answer()}, (), True)


# What pg_waldump of PostgreSQL 17 prints.
MESSAGE = (
    "rmgr: LogicalMessage len (rec/tot):     75/    75, tx:          0, lsn: 0/03000F48, prev 0/03000F10, desc: MESSAGE"
    ' non-transactional, prefix "flotilla_handover"; payload (9 bytes): 74 6F 6B 65 6E 2D 6F 6E 65'
)
COMMIT = (
    "rmgr: Transaction len (rec/tot):     34/    34, tx:        741, lsn: 0/03000F98, prev 0/03000F48, desc: COMMIT"
    " 2026-11-24 19:00:00.000000 UTC"
)
SHUTDOWN = (
    "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/03000FC0, prev 0/03000F98, desc:"
    " CHECKPOINT_SHUTDOWN redo 0/3000FC0; tli 1; prev tli 1; fpw true; xid 0:742; oid 13567; shutdown"
)
ONLINE = SHUTDOWN.replace("CHECKPOINT_SHUTDOWN", "CHECKPOINT_ONLINE")


@pytest.mark.parametrize(
    ("lines", "token", "expected"),
    [
        ([MESSAGE, COMMIT, SHUTDOWN], "token-one", "0/03000FC0"),
        ([MESSAGE, SHUTDOWN], "token-one", "0/03000FC0"),
        ([MESSAGE, COMMIT], "token-one", None),
        ([MESSAGE], "token-one", None),
        ([MESSAGE, MESSAGE.replace("6F 6E 65", "74 77 6F"), SHUTDOWN], "token-one", None),  # handed over to another
        ([MESSAGE, SHUTDOWN, COMMIT], "token-one", None),  # it was started again: there is more to come
        ([MESSAGE, COMMIT, ONLINE], "token-one", None),
        ([MESSAGE, COMMIT, SHUTDOWN], "token-two", None),
        ([COMMIT, SHUTDOWN], "token-one", None),
        ([MESSAGE.replace("flotilla_handover", "other"), SHUTDOWN], "token-one", None),
        ([], "token-one", None),
    ],
)
def test_the_end_of_the_wal_proves_the_hand_over(lines: list[str], token: str, expected: str | None) -> None:
    assert wal.ends_with_shutdown(wal.records(lines), token) == expected


def test_the_message_is_found_among_others() -> None:
    assert wal.message_at(wal.records([COMMIT, MESSAGE, SHUTDOWN]), "token-one") == "0/03000F48"
    assert wal.message_at(wal.records([COMMIT, SHUTDOWN]), "token-one") is None


@pytest.mark.parametrize("token", ["", "short", "a" * 65, "with space", "quote'quote", "newline\nnewline"])
def test_tokens_that_could_be_confused_are_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        wal.check_token(token)


@pytest.mark.parametrize(
    ("error", "position"),
    [
        (
            "pg_waldump: error: error in WAL record at 0/1529F60: invalid record length at 0/1529F98: wanted 24, got 0",
            "0/1529F98",
        ),
        ("pg_waldump: error: could not find a valid record after 0/2000028", "0/2000028"),
        ("pg_waldump: error: could not locate WAL file", None),
        ("", None),
    ],
)
def test_where_the_wal_ends(error: str, position: str | None) -> None:
    assert wal.end_of_wal(error) == position


SEGMENT = 16 * 1024 * 1024
FILES = ["000000020000000000000001", "000000030000000000000002", "000000030000000000000001", "00000003.history"]


@pytest.mark.parametrize(
    ("timeline", "start", "end", "expected"),
    [
        (3, "0/1000028", None, (FILES[2], FILES[1])),
        (3, "0/1000028", "0/1FFFFF8", (FILES[2], FILES[2])),
        (3, "0/1000028", "0/2000000", (FILES[2], FILES[2])),  # ends with the segment
        (3, "0/1000028", "0/2000028", (FILES[2], FILES[1])),
        (2, "0/1000028", None, (FILES[0], FILES[0])),
        (3, "0/3000028", None, None),
    ],
)
def test_the_wal_files_are_named(timeline: int, start: str, end: str | None, expected: tuple[str, str] | None) -> None:
    stop = wal.lsn(end) if end else None
    assert wal.segments(FILES, timeline, wal.lsn(start), stop, SEGMENT) == expected


@pytest.mark.parametrize(
    ("position", "timeline"), [("0/1000028", 3), ("0/2000000", 3), ("0/2000028", 3), ("0/4000028", 0)]
)
def test_the_timeline_that_is_replayed_is_in_the_name_of_the_file(position: str, timeline: int) -> None:
    assert wal.replay_timeline(FILES, wal.lsn(position), SEGMENT) == timeline
    assert wal.replay_timeline(FILES[:1], wal.lsn("0/1000028"), SEGMENT) == 2


def test_positions() -> None:
    assert wal.lsn("1/0") == 1 << 32
    assert wal.lsn(None) == 0
    assert wal.lsn_text(wal.lsn("A/BC000010")) == "A/BC000010"
    assert wal.latest(None, "0/FFFFFFFF", "1/0") == "1/0"
    assert wal.latest(None, None) is None
    with pytest.raises(ValueError, match="no position"):
        wal.lsn("nonsense")
