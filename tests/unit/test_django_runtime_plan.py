# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node needs in order to run a release, decided from what was read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.flotilla.django.plugins.module_utils._django_node_plan import parse_show, release_of
from ansible_collections.flotilla.django.plugins.module_utils._django_runtime_plan import (
    Observed,
    Plan,
    UnitSeen,
    health_problem,
    make_plan,
    telling_lines,
    validate,
)

WEB, WORKER = "django.service", "django-worker.service"
ENVIRONMENT = "/etc/django/environment"


def running(name: str, release: str = "2", started_at: float = 100.0) -> UnitSeen:
    return UnitSeen(name, active_state="active", enabled=True, started_at=started_at, release=release)


CONVERGED = Observed(
    current="2",
    previous="1",
    releases=frozenset({"1", "2"}),
    units={WEB: running(WEB), WORKER: running(WORKER)},
    changed_at={ENVIRONMENT: 50.0, f"/etc/systemd/system/{WEB}": 50.0},
)


def plan(seen: Observed, release: str = "2") -> Plan:
    return make_plan(release, [WEB, WORKER], [ENVIRONMENT], seen)


def test_converged_node_needs_nothing() -> None:
    assert not plan(CONVERGED).changed
    assert plan(CONVERGED).reasons == ()


def test_first_release() -> None:
    found = plan(Observed(releases=frozenset({"2"})))

    assert found.switch
    assert found.restart == found.enable == (WEB, WORKER)
    assert found.previous is None
    assert "first release 2" in found.reasons


def test_new_release_restarts_all_and_remembers_the_former() -> None:
    found = plan(CONVERGED, "3")

    assert (found.switch, found.previous, found.restart) == (True, "2", (WEB, WORKER))
    assert found.reasons == ("release 2 -> 3",)


def test_former_release_that_is_gone_is_not_remembered() -> None:
    assert plan(replace(CONVERGED, releases=frozenset({"1", "3"})), "3").previous == "1"


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        (replace(running(WORKER), active_state="failed", started_at=None), "is failed"),
        (replace(running(WORKER), active_state="activating"), "is activating"),
        (running(WORKER, release="1"), "runs release 1"),
        (running(WORKER, started_at=49.0), f"was started before {ENVIRONMENT} changed"),
    ],
)
def test_unit_that_does_not_run_what_it_should(unit: UnitSeen, reason: str) -> None:
    found = plan(replace(CONVERGED, units={WEB: running(WEB), WORKER: unit}))

    assert (found.switch, found.restart) == (False, (WORKER,))
    assert found.reasons == (f"{WORKER} {reason}",)
    assert found.interrupts


def test_changed_unit_file_restarts_its_own_unit_only() -> None:
    found = plan(replace(CONVERGED, changed_at={f"/etc/systemd/system/{WEB}": 101.0}))

    assert found.restart == (WEB,)


def test_stray_and_disabled_units_interrupt_nothing() -> None:
    seen = replace(
        CONVERGED,
        units={WEB: replace(running(WEB), enabled=False), WORKER: running(WORKER)},
        stray_units=("django-old.service",),
    )
    found = plan(seen)

    assert found.changed
    assert not found.interrupts
    assert (found.enable, found.remove) == ((WEB,), ("django-old.service",))


@pytest.mark.parametrize(
    ("release", "units", "message"),
    [
        ("../etc", [WEB], "not a release id"),
        ("", [WEB], "not a release id"),
        ("2", [], "at least the web service"),
        ("2", ["django; reboot.service"], "not the name"),
        ("2", [WEB, WEB], "twice"),
    ],
)
def test_bad_input(release: str, units: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(release, units)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, {"release": "2"}, ""),
        (200, {"release": "1"}, "release 1 answers"),
        (200, {}, "the answer names no release"),
        (503, {"release": "2", "reasons": ["redis: away", "database: x"]}, "HTTP 503: redis: away; database: x"),
        (502, {}, "HTTP 502"),
    ],
)
def test_health_problem(status: int, body: dict[str, object], expected: str) -> None:
    assert health_problem(status, body, "2") == expected


def test_parsing() -> None:
    shown = parse_show("Id=a.service\nActiveState=active\n\nId=b.service\nActiveState=inactive\n")

    assert shown["b.service"]["ActiveState"] == "inactive"
    assert release_of("/srv/django/releases/7/source/x", "/srv/django") == "7"
    assert release_of("/srv/django/releases/7 (deleted)", "/srv/django/") == "7"
    assert release_of("/", "/srv/django") is None


TRACEBACK = """Traceback (most recent call last):
  File "wsgi.py", line 1, in <module>
    raise RuntimeError("broken on purpose")
RuntimeError: broken on purpose"""
HALTED = """Traceback (most recent call last):
  File "arbiter.py", line 683, in reap_workers
    raise HaltServer(reason, self.WORKER_BOOT_ERROR)
gunicorn.errors.HaltServer: <HaltServer 'Worker failed to boot.' 3>"""
STOPPED = "[INFO] Worker exiting (pid: 8)"


@pytest.mark.parametrize(
    ("journal", "count", "expected"),
    [
        ("a\nb\nc\n", 2, "b\nc"),
        ("a\n", 30, "a"),
        ("", 30, ""),
        # The reason stands in the last lines: they stay the last ones.
        (f"Starting\n{TRACEBACK}\n{STOPPED}", 5, f"{TRACEBACK}\n{STOPPED}"),
        # The next attempt has begun and got half way: the lines end with the reason of the one before.
        (f"{TRACEBACK}\n{STOPPED}\nStarting\nTraceback (most recent call last):\n  File", 4, TRACEBACK),
        # gunicorn's own traceback, which follows, is none.
        (f"{TRACEBACK}\n{STOPPED}\n{HALTED}", 4, TRACEBACK),
        # A line that only looks like one is no reason.
        ("Error: no\nb\nc\nd", 2, "c\nd"),
    ],
)
def test_the_lines_shown_hold_the_reason(journal: str, count: int, expected: str) -> None:
    assert telling_lines(journal, count) == expected
