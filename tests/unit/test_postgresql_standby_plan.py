# SPDX-License-Identifier: GPL-3.0-or-later
"""How a data directory becomes a standby: each trap of rejoining is a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_standby_plan as plan

ID = "7300000000000000001"
SWITCH = 0x3000148
CONTROL = {
    "Database cluster state": "shut down",
    "Database system identifier": ID,
    "Latest checkpoint's TimeLineID": "1",
    "Latest checkpoint location": "0/30000D0",
    "Minimum recovery ending location": "0/0",
    "Min recovery ending loc's timeline": "0",
    "Bytes per WAL segment": "16777216",
    "Data page checksum version": "0",
    "wal_log_hints setting": "on",
}
ON_2 = plan.Source(ID, 2, ((1, SWITCH),))
ON_1 = plan.Source(ID, 1)
ON_3 = plan.Source(ID, 3, ((1, SWITCH), (2, 0x5000000)))
# Promoted from timeline 1 to 3, because 2 was taken when it looked.
ON_3_FROM_1 = plan.Source(ID, 3, ((1, SWITCH),))

FORMER = plan.Local(state="shut down", system_identifier=ID, timeline=1, history=(), position=0x30000D0)
CRASHED = replace(FORMER, state="in production")
STANDBY = replace(FORMER, state="shut down in recovery", standby_signal=True)
BEYOND = SWITCH + 0x100
PAST = plan.Evidence(past=True)
ALL = plan.Allowed()
REPLACE = plan.Allowed(replace_damaged=True)


def decide(
    local: plan.Local,
    source: plan.Source,
    evidence: plan.Evidence | None = None,
    allowed: plan.Allowed = ALL,
) -> plan.Decision:
    relation = plan.relate(local, source)
    return plan.decide(local, source, relation, evidence or plan.Evidence(), allowed)


DECISIONS: list[tuple[str, plan.Local, plan.Source, plan.Evidence | None, dict[str, Any]]] = [
    ("handed over cleanly", FORMER, ON_2, None, {"method": "follow"}),
    ("crashed, and everything had arrived", CRASHED, ON_2, None, {"method": "follow"}),
    ("crashed with more than had arrived", CRASHED, ON_2, PAST, {"method": "rewind", "recover": True}),
    ("stopped with more than had arrived", FORMER, ON_2, PAST, {"method": "rewind", "recover": False}),
    (
        "its checkpoint is beyond, whatever pg_waldump found",
        replace(FORMER, position=BEYOND),
        ON_2,
        None,
        {"method": "rewind"},
    ),
    ("fenced with standby.signal", replace(CRASHED, standby_signal=True), ON_2, PAST, {"method": "rewind"}),
    ("a standby that is behind", STANDBY, ON_2, None, {"method": "follow", "trim": False}),
    ("a standby on the same timeline", STANDBY, ON_1, None, {"method": "follow"}),
    ("a standby that replayed more", replace(STANDBY, position=BEYOND), ON_2, PAST, {"method": "rewind"}),
    (
        "a crashed standby that replayed more",
        replace(STANDBY, state="in archive recovery", position=BEYOND),
        ON_2,
        PAST,
        {"method": "rewind", "recover": True},
    ),
    ("a standby that received more and did not replay it", STANDBY, ON_2, PAST, {"method": "follow", "trim": True}),
    (
        "a clone that was never started: its control file is the primary's",
        replace(CRASHED, backup_label=True, timeline=2, history=((1, SWITCH),)),
        ON_2,
        None,
        {"method": "follow"},
    ),
    (
        "such a clone of a primary that is gone, with WAL beyond: what it has replayed is not known",
        replace(CRASHED, backup_label=True),
        ON_2,
        PAST,
        {"method": "rewind", "recover": True},
    ),
    ("two promotions missed", FORMER, ON_3, None, {"method": "follow"}),
    (
        "promoted itself, then another was promoted past it",
        replace(FORMER, timeline=2, history=((1, SWITCH - 0x80),), position=0x4000000),
        ON_3,
        None,
        {"method": "rewind"},
    ),
    (
        "promoted itself to 2, and the primary went from 1 to 3",
        replace(FORMER, timeline=2, history=((1, SWITCH),), position=0x4000000),
        ON_3_FROM_1,
        None,
        {"method": "rewind"},
    ),
    (
        "switched timelines a moment ago and has no history file yet",
        replace(STANDBY, timeline=2, history=None, position=0x4000000),
        ON_2,
        None,
        {"method": "follow"},
    ),
]


@pytest.mark.parametrize(
    ("local", "source", "evidence", "wanted"), [row[1:] for row in DECISIONS], ids=[row[0] for row in DECISIONS]
)
def test_what_is_done(
    local: plan.Local, source: plan.Source, evidence: plan.Evidence | None, wanted: dict[str, Any]
) -> None:
    decision = decide(local, source, evidence)
    assert {name: getattr(decision, name) for name in wanted} == wanted
    assert not decision.replace


SAME_2 = replace(FORMER, timeline=2, history=((1, SWITCH),), position=0x4000000)
# What no replacement is allowed for either: the truth may be here.
ALWAYS = [
    ("another cluster", replace(FORMER, system_identifier="7"), ON_2, "never been copies"),
    ("newer than the primary", SAME_2, ON_1, "newer than the primary's 1"),
    (
        "a newer standby, too",
        replace(STANDBY, timeline=3, history=((1, SWITCH), (2, BEYOND))),
        ON_2,
        "newer than the primary's 2",
    ),
]


@pytest.mark.parametrize("allowed", [ALL, REPLACE])
@pytest.mark.parametrize(("local", "source", "message"), [row[1:] for row in ALWAYS], ids=[row[0] for row in ALWAYS])
def test_what_is_refused_whatever_is_allowed(
    local: plan.Local, source: plan.Source, message: str, allowed: plan.Allowed
) -> None:
    with pytest.raises(ValueError, match=message):
        decide(local, source, None, allowed)


ATTEMPT = plan.Attempt(ID, 2, SWITCH, "boot")
INTERRUPTED = replace(FORMER, interrupted=ATTEMPT, boot_id="boot")
DAMAGED: list[tuple[str, plan.Local, plan.Source, plan.Evidence | None, str]] = [
    ("both promoted at the same place", SAME_2, ON_2, None, "both been primaries on timeline 2"),
    ("both promoted, and it crashed", replace(SAME_2, state="in production"), ON_2, None, "both been primaries"),
    ("a second primary before any promotion", CRASHED, ON_1, None, "both been primaries on timeline 1"),
    (
        "a standby of the other timeline 2",
        replace(STANDBY, timeline=2, history=((1, SWITCH - 8),)),
        ON_2,
        None,
        "two different timelines 2",
    ),
    ("other WAL on the same timeline", STANDBY, ON_1, plan.Evidence(shared="different"), "not that of the primary"),
    ("other WAL before the switch", STANDBY, ON_2, plan.Evidence(shared="different"), "not that of the primary"),
    ("away for too long", STANDBY, ON_2, plan.Evidence(shared="removed"), "does not keep the WAL from 0/30000D0"),
    (
        "neither checksums nor hints",
        replace(CRASHED, rewindable=False),
        ON_2,
        PAST,
        "without checksums and without wal_log_hints",
    ),
    ("interrupted, then another promotion", INTERRUPTED, ON_3, None, "begun and interrupted on timeline 2"),
    ("interrupted, then a restart of the host", replace(INTERRUPTED, boot_id="x"), ON_2, None, "was restarted"),
]


@pytest.mark.parametrize(
    ("local", "source", "evidence", "message"), [row[1:] for row in DAMAGED], ids=[row[0] for row in DAMAGED]
)
def test_what_is_replaced_only_where_it_is_allowed(
    local: plan.Local, source: plan.Source, evidence: plan.Evidence | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        decide(local, source, evidence)
    assert "replace_damaged" in str(refused.value)
    decision = decide(local, source, evidence, REPLACE)
    assert (decision.method, decision.replace) == ("clone", True)
    with pytest.raises(ValueError, match=message):
        decide(local, source, evidence, plan.Allowed(("follow", "rewind"), replace_damaged=True))


def test_a_rewind_is_resumed() -> None:
    # What its half-written files say counts no more, but the same primary must be asked.
    for local in (INTERRUPTED, replace(INTERRUPTED, state="in archive recovery", timeline=2)):
        decision = decide(local, ON_2)
        assert (decision.method, decision.resume, decision.recover) == ("rewind", True, False)


@pytest.mark.parametrize(
    ("local", "evidence", "methods"),
    [
        (FORMER, None, ("rewind", "clone")),
        (CRASHED, PAST, ("follow", "clone")),
        (INTERRUPTED, None, ("follow", "clone")),
    ],
)
def test_a_method_that_is_not_allowed_is_not_used(
    local: plan.Local, evidence: plan.Evidence | None, methods: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="not among the allowed methods"):
        decide(local, ON_2, evidence, plan.Allowed(methods))


ALONE: list[tuple[str, plan.Local, str | None]] = [
    ("a running standby", replace(STANDBY, state="in archive recovery", running=True), "none"),
    ("an empty directory", plan.Local(data="absent"), "clone"),
    ("what needs the primary to be asked", FORMER, None),
]


@pytest.mark.parametrize(("local", "method"), [row[1:] for row in ALONE], ids=[row[0] for row in ALONE])
def test_what_needs_no_primary(local: plan.Local, method: str | None) -> None:
    decision = plan.decide_alone(local, ALL)
    assert (decision.method if decision else None) == method


@pytest.mark.parametrize(
    ("local", "allowed", "message"),
    [
        (replace(CRASHED, running=True), REPLACE, "runs as a primary"),
        # A fence that was set on a running primary does not make it a standby.
        (replace(CRASHED, running=True, standby_signal=True), REPLACE, "runs as a primary"),
        (plan.Local(data="absent"), plan.Allowed(("follow", "rewind")), "clone is not among"),
        (plan.Local(data="foreign"), ALL, "no complete cluster"),
        (plan.Local(problem="no control file"), ALL, "no control file"),
    ],
)
def test_what_is_refused_without_asking(local: plan.Local, allowed: plan.Allowed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.decide_alone(local, allowed)


@pytest.mark.parametrize("local", [plan.Local(data="foreign"), plan.Local(problem="no control file")])
def test_a_directory_without_sense_is_replaced_where_it_is_allowed(local: plan.Local) -> None:
    decision = plan.decide_alone(local, REPLACE)
    assert decision and (decision.method, decision.replace) == ("clone", True)


def test_the_control_file() -> None:
    local = plan.read_control(CONTROL)
    assert (local.state, local.timeline, local.position) == ("shut down", 1, 0x30000D0)
    assert local.clean and not local.following and local.rewindable
    # Crashed right after its promotion: the checkpoint is the old one.
    promoted = plan.read_control(
        CONTROL
        | {"Min recovery ending loc's timeline": "2", "Minimum recovery ending location": "1/0"}
        | {"Database cluster state": "in production", "wal_log_hints setting": "off"}
    )
    assert (promoted.timeline, promoted.position, promoted.clean, promoted.rewindable) == (2, 1 << 32, False, False)
    assert plan.read_control(CONTROL | {"wal_log_hints setting": "off", "Data page checksum version": "1"}).rewindable
    for broken in ({}, CONTROL | {"Latest checkpoint location": "nonsense"}):
        assert plan.read_control(broken).problem


def test_a_history_file() -> None:
    text = "1\t0/3000148\tno recovery target specified\n\n# a remark\n2\t1/A0\tbefore 2026-01-01 00:00:00+00\n"
    assert plan.parse_history(text) == ((1, SWITCH), (2, 0x1000000A0))
    assert plan.parse_history("") == ()


def test_names_of_wal_files() -> None:
    assert plan.segment_name(1, SWITCH, 16 << 20) == "000000010000000000000003"
    assert plan.segment_name(0x1A, (2 << 32) + (0xFF << 24), 16 << 20) == "0000001A00000002000000FF"
    assert plan.segment_name(1, (1 << 32) + 5, 1 << 30) == "000000010000000100000000"


def test_whom_another_server_followed_is_forgotten() -> None:
    content = "# comment\nwork_mem = '8MB'\nprimary_conninfo = 'host=x'\n primary_slot_name = 'db1'\n"
    content += "recovery_target_lsn = '0/1'\n"
    assert plan.auto_conf(content) == "# comment\nwork_mem = '8MB'\n"
