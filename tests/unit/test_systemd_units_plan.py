# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions of systemd_units, by tables. Times are in seconds here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils._systemd_units_io import (
    UnitFailed,
    parse_block,
    wait_until_settled,
)
from ansible_collections.flotilla.django.plugins.module_utils._systemd_units_plan import (
    Paths,
    Unit,
    calls,
    covers,
    parse,
    plan,
    wants_daemon_reload,
)

SECOND = 1_000_000_000
RUNNING = Unit(
    "a.service",
    active_state="active",
    sub_state="running",
    file_state="enabled",
    kind="notify",
    can_reload=True,
    result="success",
    reload_result="success",
    started_at=100 * SECOND,
    active_at=101 * SECOND,
    state_changed_at=101 * SECOND,
)
RELOADED = replace(RUNNING, state_changed_at=200 * SECOND)
DEAD = replace(RUNNING, active_state="inactive", sub_state="dead")
MISSING = Unit("a.service", load_state="not-found")
MASKED = Unit("a.service", load_state="masked", file_state="masked")
ONCE = replace(DEAD, kind="oneshot")


def steps(
    item: dict[str, Any],
    unit: Unit,
    stamps: dict[str, float] | None = None,
    changed: dict[str, float | None] | None = None,
    check_mode: bool = False,
) -> list[str]:
    (wish,) = parse([{"name": "a", **item}])
    files = {path: int(when * SECOND) for path, when in (stamps or {}).items()}
    patterns = [*wish.restart_on, *wish.reload_on]
    paths = Paths(
        stamps={pattern: {path: when for path, when in files.items() if covers(pattern, path)} for pattern in patterns},
        changed=list(changed or {}),
        changed_stamps={p: None if when is None else int(when * SECOND) for p, when in (changed or {}).items()},
    )
    return [step.verb for step in plan([wish], {"a.service": unit}, paths, check_mode)]


@pytest.mark.parametrize(
    ("item", "unit", "expected"),
    [
        ({}, RUNNING, []),
        ({}, DEAD, ["start"]),
        ({}, replace(RUNNING, active_state="failed"), ["start"]),
        ({}, replace(RUNNING, active_state="activating", sub_state="auto-restart"), ["start"]),
        ({}, replace(RUNNING, active_state="reloading"), []),
        ({"state": "stopped"}, RUNNING, ["stop"]),
        ({"state": "stopped"}, replace(RUNNING, active_state="activating"), ["stop"]),
        ({"state": "stopped"}, DEAD, []),
        ({"state": "stopped"}, MISSING, []),
        ({"state": "stopped", "enabled": False}, MISSING, []),
        ({"enabled": True}, RUNNING, []),
        ({"enabled": True}, replace(RUNNING, file_state="disabled"), ["enable"]),
        ({"enabled": True}, replace(RUNNING, file_state="enabled-runtime"), ["enable"]),
        ({"enabled": True}, replace(DEAD, file_state="disabled"), ["enable", "start"]),
        ({"enabled": False}, RUNNING, ["disable"]),
        ({"enabled": False}, replace(RUNNING, file_state="static"), []),
        ({"enabled": False, "state": "stopped"}, RUNNING, ["disable", "stop"]),
        ({"masked": True}, RUNNING, ["mask", "stop"]),
        ({"masked": True}, MASKED, []),
        ({"masked": True}, MISSING, ["mask"]),
        ({"masked": False}, MASKED, ["unmask", "start"]),
        ({"masked": False, "enabled": True}, MASKED, ["unmask", "enable", "start"]),
    ],
)
def test_states(item: dict[str, Any], unit: Unit, expected: list[str]) -> None:
    assert steps(item, unit) == expected
    assert steps(item, unit, check_mode=True) == expected


@pytest.mark.parametrize(
    ("item", "unit", "stamps", "expected"),
    [
        ({"restart_on": ["/c"]}, RUNNING, {"/c": 99}, []),
        ({"restart_on": ["/c"]}, RUNNING, {"/c": 100.000001}, ["restart"]),
        # Written while the unit was starting: it may have read the old file.
        ({"restart_on": ["/c"]}, RUNNING, {"/c": 100.5}, ["restart"]),
        ({"reload_on": ["/c"]}, RUNNING, {"/c": 100.5}, ["reload"]),
        ({"restart_on": ["/c"]}, RUNNING, {}, []),
        ({"restart_on": ["/d"]}, RUNNING, {"/d": 1, "/d/x/y": 150}, ["restart"]),
        ({"restart_on": ["/d/*.conf"]}, RUNNING, {"/d/y.conf": 150}, ["restart"]),
        ({"restart_on": ["/d/*.conf"]}, RUNNING, {"/d/y.txt": 150}, []),
        ({"reload_on": ["/c"]}, RUNNING, {"/c": 150}, ["reload"]),
        ({"reload_on": ["/c"]}, RELOADED, {"/c": 150}, []),
        ({"reload_on": ["/c"]}, RELOADED, {"/c": 201}, ["reload"]),
        ({"restart_on": ["/c"]}, RELOADED, {"/c": 150}, ["restart"]),
        ({"restart_on": ["/r"], "reload_on": ["/c"]}, RUNNING, {"/c": 150, "/r": 150}, ["restart"]),
        ({"restart_on": ["/c"]}, DEAD, {"/c": 150}, ["start"]),
        ({"reload_on": ["/c"]}, replace(RUNNING, can_reload=False), {"/c": 150}, ["restart"]),
        ({"reload_on": ["/c"]}, replace(RELOADED, reload_result="exit-code"), {"/c": 150}, ["reload"]),
        ({}, replace(RELOADED, reload_result="exit-code"), {}, []),
        # A unit that was there before systemd took notes, such as a mount.
        ({"restart_on": ["/c"]}, replace(RUNNING, started_at=None), {"/c": 150}, []),
        ({}, replace(ONCE, remain_after_exit=True), {}, ["start"]),
    ],
)
def test_times(item: dict[str, Any], unit: Unit, stamps: dict[str, float], expected: list[str]) -> None:
    assert steps(item, unit, stamps) == expected


@pytest.mark.parametrize(
    ("item", "changed", "real", "predicted"),
    [
        ({"restart_on": ["/c"]}, {"/c": 150}, ["restart"], ["restart"]),
        # The unit was restarted after the change, by another task; in check mode the file was not written yet.
        ({"restart_on": ["/c"]}, {"/c": 50}, [], ["restart"]),
        # Within a tick of the kernel's clock it cannot be told.
        ({"restart_on": ["/c"]}, {"/c": 99.99}, ["restart"], ["restart"]),
        ({"restart_on": ["/c"]}, {"/c": None}, ["restart"], ["restart"]),
        ({"reload_on": ["/c"]}, {"/c": None}, ["reload"], ["reload"]),
        ({"restart_on": ["/d"]}, {"/d/new": None}, ["restart"], ["restart"]),
        ({"restart_on": ["/d/*.pem"]}, {"/d/new.pem": None}, ["restart"], ["restart"]),
        ({"restart_on": ["/d"]}, {"/dd": None}, [], []),
        ({"restart_on": ["/d/*"]}, {"/e/x": None}, [], []),
        ({}, {"/c": None}, [], []),
    ],
)
def test_changed_paths(
    item: dict[str, Any], changed: dict[str, float | None], real: list[str], predicted: list[str]
) -> None:
    assert steps(item, RUNNING, changed=changed) == real
    assert steps(item, RUNNING, changed=changed, check_mode=True) == predicted


@pytest.mark.parametrize(
    ("item", "unit", "message", "predicted"),
    [
        ({}, MISSING, "a.service: does not exist", ["start"]),
        ({"enabled": True}, MISSING, "does not exist", ["enable", "start"]),
        ({}, replace(MISSING, load_state="bad-setting", load_error="x"), "cannot be loaded: x", ["start"]),
        ({}, MASKED, "masked: false", ["start"]),
        ({}, ONCE, "RemainAfterExit=yes", ["start"]),
        ({"enabled": True}, replace(RUNNING, file_state="static"), r"no \[Install\]", ["enable"]),
    ],
)
def test_what_cannot_be_done(item: dict[str, Any], unit: Unit, message: str, predicted: list[str]) -> None:
    with pytest.raises(ValueError, match=message):
        steps(item, unit)
    assert steps(item, unit, check_mode=True) == predicted


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([{"name": "a b"}], "not a unit name"),
        ([{"name": "-x"}, {"name": "a;b"}], "a;b.service: not a unit name"),
        ([{"name": "a@.service"}], "name an instance"),
        ([{"name": "a"}, {"name": "a.service"}], "listed twice"),
        ([{"name": "a", "masked": True, "state": "started"}], "neither started nor enabled"),
        ([{"name": "a", "masked": True, "enabled": True}], "neither started nor enabled"),
        ([{"name": "a", "restart_on": ["etc/x"]}], "must be absolute"),
    ],
)
def test_bad_input(units: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(units)


def test_names() -> None:
    names = [wish.name for wish in parse([{"name": n} for n in ("a", "b@1", "c.timer", "postgresql@17-main.service")])]
    assert names == ["a.service", "b@1.service", "c.timer", "postgresql@17-main.service"]


@pytest.mark.parametrize(
    ("unit", "changed", "expected"),
    [
        (RUNNING, [], False),
        (RUNNING, ["/etc/x"], False),
        (replace(RUNNING, need_daemon_reload=True), [], True),
        (MISSING, [], True),
        (RUNNING, ["/etc/systemd/system/a.service.d/x.conf"], True),
        (replace(RUNNING, files=("/opt/a.service",)), ["/opt/a.service"], True),
    ],
)
def test_daemon_reload(unit: Unit, changed: list[str], expected: bool) -> None:
    assert wants_daemon_reload([unit], changed) is expected


BLOCK = """Type={kind}
LoadState=loaded
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=yes
FragmentPath=/usr/lib/systemd/system/a.service
DropInPaths=/etc/systemd/system/a.service.d/1.conf /etc/systemd/system/a.service.d/2.conf
InactiveExitTimestampMonotonic=5000000
ActiveEnterTimestampMonotonic=9000000
ExecMainStartTimestampMonotonic={main}
StateChangeTimestampMonotonic=0"""


@pytest.mark.parametrize(
    ("kind", "main", "started"),
    # A forking service tells its main process late, when that has read its files already.
    [("notify", 7000000, 107), ("forking", 7000000, 105), ("notify", 0, 105), ("simple", 4999999, 105)],
)
def test_parse_block(kind: str, main: int, started: int) -> None:
    unit = parse_block("a.service", BLOCK.format(kind=kind, main=main), 100 * SECOND)
    assert unit.started_at == started * SECOND
    assert unit.active_at == 109 * SECOND
    assert unit.state_changed_at is None
    assert unit.need_daemon_reload
    assert len(unit.files) == 3


def test_units_are_enabled_together_and_started_one_after_the_other() -> None:
    wishes = parse([{"name": name, "enabled": True} for name in ("a", "b")])
    dead = {name: replace(DEAD, name=name, file_state="disabled") for name in ("a.service", "b.service")}
    found = [(call[0].verb, [step.unit for step in call]) for call in calls(plan(wishes, dead, Paths({})))]
    assert found == [
        ("enable", ["a.service", "b.service"]),
        ("start", ["a.service"]),
        ("start", ["b.service"]),
    ]


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


STARTING = replace(RUNNING, active_state="activating", sub_state="start")
FAILED = replace(RUNNING, active_state="failed", result="exit-code", exit_status="7")


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({0: RUNNING}, None),
        ({0: STARTING, 3: RUNNING}, None),
        ({0: STARTING}, "is not active after 10 seconds"),
        ({0: STARTING, 2: FAILED}, "did not start .*exit-code, exit status 7"),
        ({0: RUNNING, 0.5: FAILED}, "did not stay up for 1 seconds"),
        ({0: RUNNING, 0.5: replace(RUNNING, restarts="1")}, "did not stay up"),
        ({0: RUNNING, 0.5: replace(RUNNING, started_at=110 * SECOND)}, "did not stay up"),
        ({0: RUNNING, 1.5: FAILED}, None),
        ({0: DEAD}, "did not start"),
    ],
)
def test_waiting(history: dict[float, Unit], message: str | None) -> None:
    time = Time()

    def look(names: Any) -> dict[str, Unit]:
        return {name: [unit for when, unit in history.items() if when <= time.now][-1] for name in names}

    # Reloaded: then it is watched, of whatever type it is.
    if message is None:
        wait_until_settled(["a.service"], 1.0, 10.0, ["a.service"], look, time.clock, time.sleep)
    else:
        with pytest.raises(UnitFailed, match=message):
            wait_until_settled(["a.service"], 1.0, 10.0, ["a.service"], look, time.clock, time.sleep)


@pytest.mark.parametrize(
    ("unit", "watched"),
    [
        (RUNNING, False),
        (replace(RUNNING, kind="oneshot"), False),
        (replace(RUNNING, kind="simple"), True),
        (replace(RUNNING, kind="exec"), True),
        (replace(RUNNING, kind="forking"), True),
        (replace(RUNNING, name="a.timer", kind=""), False),
    ],
)
def test_who_says_by_itself_that_it_has_started_is_not_watched(unit: Unit, watched: bool) -> None:
    time = Time()

    def look(names: Any) -> dict[str, Unit]:
        return {unit.name: unit if time.now < 0.5 else replace(unit, active_state="failed")}

    if watched:
        with pytest.raises(UnitFailed, match="did not stay up for 1 seconds"):
            wait_until_settled([unit.name], 1.0, 10.0, (), look, time.clock, time.sleep)
    else:
        wait_until_settled([unit.name], 1.0, 10.0, (), look, time.clock, time.sleep)
        assert time.now == 0
