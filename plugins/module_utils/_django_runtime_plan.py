# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Decide what a node needs in order to run a release. Pure: no I/O, no Ansible."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

RELEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
PATH = re.compile(r"/[!-~]*")
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: .*)?")
UNIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]*\.service")


@dataclass(frozen=True)
class UnitSeen:
    """What systemd and /proc say about a unit."""

    name: str
    active_state: str = "inactive"
    enabled: bool = False
    # When the running process was started, in seconds since the epoch; None when nothing runs.
    started_at: float | None = None
    # The release whose directory the running process is in.
    release: str | None = None
    need_daemon_reload: bool = False


@dataclass(frozen=True)
class Observed:
    """The node as it is."""

    current: str | None = None
    previous: str | None = None
    releases: frozenset[str] = frozenset()
    units: Mapping[str, UnitSeen] = field(default_factory=dict)
    # Last change of each path that units depend on, None where it is missing.
    changed_at: Mapping[str, float | None] = field(default_factory=dict)
    # Units of processes that are not wanted (any longer).
    stray_units: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    switch: bool = False
    previous: str | None = None
    restart: tuple[str, ...] = ()
    enable: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    daemon_reload: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.switch or self.restart or self.enable or self.remove or self.daemon_reload)

    @property
    def interrupts(self) -> bool:
        """Whether carrying it out stops something that serves."""
        return bool(self.switch or self.restart)


def validate(release: str, units: Sequence[str], warm_up_paths: Sequence[str] = ()) -> None:
    if not RELEASE_ID.fullmatch(release):
        raise ValueError(f"release {release!r} is not a release id")
    if not units:
        raise ValueError("units must name at least the web service")
    for name in units:
        if not UNIT_NAME.fullmatch(name):
            raise ValueError(f"units: {name!r} is not the name of a service unit")
    if len(set(units)) != len(units):
        raise ValueError("units names a unit twice")
    for path in warm_up_paths:
        if not PATH.fullmatch(path):
            raise ValueError(f"warm_up_paths: got {path!r}, wants a path that begins with / and is escaped as in a URL")


def make_plan(release: str, units: Sequence[str], restart_on: Sequence[str], seen: Observed) -> Plan:
    """What makes the node run `release` under all `units`; empty when it does.

    Everything is read from the running system, so an activation that was interrupted anywhere is finished by this.
    """
    reasons: list[str] = []
    switch = seen.current != release
    if switch:
        reasons.append(f"release {seen.current} -> {release}" if seen.current else f"first release {release}")
    restart, enable = [], []
    reload_needed = False
    for name in units:
        unit = seen.units.get(name) or UnitSeen(name)
        reload_needed = reload_needed or unit.need_daemon_reload
        if not unit.enabled:
            enable.append(name)
            reasons.append(f"{name} is not enabled")
        why = _why_restart(unit, release, [*restart_on, f"/etc/systemd/system/{name}"], seen)
        if why:
            restart.append(name)
            if not switch:
                reasons.append(f"{name} {why}")
        elif switch:
            restart.append(name)
    reasons.extend(f"{name} is not wanted any longer" for name in seen.stray_units)
    if reload_needed and not restart:
        reasons.append("unit files changed")
    previous = seen.previous
    if switch and seen.current in seen.releases:
        previous = seen.current
    return Plan(
        switch=switch,
        previous=previous,
        restart=tuple(restart),
        enable=tuple(enable),
        remove=tuple(seen.stray_units),
        daemon_reload=reload_needed,
        reasons=tuple(reasons),
    )


def _why_restart(unit: UnitSeen, release: str, paths: Sequence[str], seen: Observed) -> str:
    if unit.active_state != "active" or unit.started_at is None:
        return f"is {unit.active_state}"
    if unit.release != release:
        return f"runs release {unit.release}"
    newer = [path for path in paths if (seen.changed_at.get(path) or 0.0) > unit.started_at]
    return f"was started before {', '.join(newer)} changed" if newer else ""


def health_problem(status: int, body: Mapping[str, object], release: str) -> str:
    """Empty when the deep health address answered as the wanted release does, else what is wrong."""
    answered = str(body.get("release", ""))
    if answered and answered != release:
        return f"release {answered} answers"
    if status != 200:
        reasons = body.get("reasons")
        text = "; ".join(str(item) for item in reasons) if isinstance(reasons, list) else ""
        return f"HTTP {status}{': ' + text if text else ''}"
    return "" if answered == release else "the answer names no release"


def telling_lines(journal: str, count: int) -> str:
    """
    The last lines of a journal, but never ones that stop short of the reason.

    A service that fails is started again at once, so the very last lines can be the first half of the next attempt, and
    gunicorn ends with a traceback of its own, longer than what is shown, about workers that did not start.
    Where no exception ends in them but one ends earlier, the lines end with that one.
    """
    lines = journal.strip().splitlines()
    ends = [number for number in range(1, len(lines)) if _ends_exception(lines[number - 1], lines[number])]
    end = len(lines)
    if ends and ends[-1] < end - count:
        end = ends[-1] + 1
    return "\n".join(lines[max(0, end - count) : end])


def _ends_exception(before: str, line: str) -> bool:
    """Whether a line is what Python prints after the frames of a traceback: `module.Error: text`.

    Not gunicorn's own end, which only follows from that of its workers.
    """
    return (
        before.startswith("    ")
        and EXCEPTION.fullmatch(line) is not None
        and not line.startswith("gunicorn.errors.HaltServer")
    )
