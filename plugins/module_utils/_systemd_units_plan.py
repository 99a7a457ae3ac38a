# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Decide what has to happen to a list of systemd units. Pure: no I/O, no Ansible."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

SUFFIXES = (
    ".service",
    ".socket",
    ".timer",
    ".path",
    ".target",
    ".mount",
    ".automount",
    ".swap",
    ".slice",
    ".scope",
    ".device",
)
UNIT_DIRECTORIES = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
FILE_VERBS = ("unmask", "mask", "enable", "disable")
TELLING_TYPES = ("notify", "notify-reload", "dbus", "oneshot")
RUNNING = ("active", "reloading", "refreshing")
ENABLED = ("enabled", "alias", "generated")
# The kernel stamps files with a clock that may be one tick (at most 10 ms) behind the one systemd reads.
TICK_NS = 50_000_000


@dataclass(frozen=True)
class Wish:
    """One entry of the module's units option."""

    name: str
    enabled: bool | None = None
    state: str = "started"
    masked: bool | None = None
    restart_on: tuple[str, ...] = ()
    reload_on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unit:
    """What systemd says about a unit. Times are nanoseconds since the epoch, None when there was no such event."""

    name: str
    load_state: str = "loaded"
    load_error: str = ""
    active_state: str = "inactive"
    sub_state: str = "dead"
    file_state: str = ""
    need_daemon_reload: bool = False
    kind: str = ""
    remain_after_exit: bool = False
    can_reload: bool = False
    result: str = ""
    reload_result: str = ""
    exit_status: str = ""
    main_pid: str = ""
    restarts: str = ""
    started_at: int | None = None
    active_at: int | None = None
    state_changed_at: int | None = None
    files: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        return self.active_state in RUNNING

    @property
    def read_its_files_at(self) -> int | None:
        """When it last began to read what a reload reads again.

        A reload moves the time of the last state change, for every type of service, and leaves that of becoming
        active alone; without a reload since the start, the start counts and not its end.
        """
        if self.state_changed_at and self.state_changed_at > (self.active_at or 0) + 1_000_000:
            return max(self.state_changed_at, self.started_at or 0)
        return self.started_at


@dataclass(frozen=True)
class Step:
    """One systemctl call for one unit, and why."""

    verb: str  # unmask, mask, enable, disable, start, stop, restart, reload
    unit: str
    reason: str


@dataclass(frozen=True)
class Paths:
    """The files that units depend on: what each pattern stands for with its ctime, and what this play changed."""

    stamps: Mapping[str, Mapping[str, int]]
    changed: Sequence[str] = ()
    changed_stamps: Mapping[str, int | None] | None = None


def parse(units: Iterable[Mapping[str, Any]]) -> list[Wish]:
    wishes: list[Wish] = []
    for item in units:
        name = str(item["name"])
        if not name.endswith(SUFFIXES):
            name += ".service"
        if not re.fullmatch(r"[A-Za-z0-9:_.\\@-]+", name):
            raise ValueError(f"{name}: not a unit name")
        if "@." in name:
            raise ValueError(f"{name}: is a template; name an instance, such as {name.replace('@.', '@x.')}")
        if name in (wish.name for wish in wishes):
            raise ValueError(f"{name}: listed twice")
        masked = item.get("masked")
        state = item.get("state") or ("stopped" if masked else "started")
        if masked and (state == "started" or item.get("enabled")):
            raise ValueError(f"{name}: a masked unit can be neither started nor enabled")
        restart_on, reload_on = tuple(item.get("restart_on") or ()), tuple(item.get("reload_on") or ())
        for path in restart_on + reload_on:
            if not path.startswith("/"):
                raise ValueError(f"{name}: {path}: paths must be absolute")
        wishes.append(Wish(name, item.get("enabled"), state, masked, restart_on, reload_on))
    return wishes


def wants_daemon_reload(units: Iterable[Unit], changed: Iterable[str]) -> bool:
    """Whether systemd knows other unit files than those on disk."""
    files: set[str] = set()
    for unit in units:
        if unit.need_daemon_reload or unit.load_state in ("not-found", "bad-setting", "error"):
            return True
        files.update(unit.files)
    return any(path in files or path.startswith(tuple(f"{d}/" for d in UNIT_DIRECTORIES)) for path in changed)


def covers(pattern: str, path: str) -> bool:
    """Whether a path is what the pattern names (itself or as a glob), or is inside a directory that it names."""
    place = PurePosixPath(path)
    wanted = PurePosixPath(pattern)
    return any(one == wanted or one.match(pattern) for one in (place, *place.parents))


def newer_than(since: int | None, patterns: Iterable[str], paths: Paths, check_mode: bool) -> str | None:
    """Why the patterns ask for action since that moment, None when they don't.

    A path that this play changed counts even when its time cannot be told (it was removed, or would be written
    if this were not check mode), unless the action came after the change.
    """
    changed_stamps = paths.changed_stamps or {}
    for pattern in patterns:
        for path in paths.changed:
            if not covers(pattern, path):
                continue
            stamp = changed_stamps.get(path)
            if check_mode or stamp is None or since is None or stamp + TICK_NS > since:
                return f"{path} was changed"
        if since is None:
            continue
        for path, stamp in paths.stamps.get(pattern, {}).items():
            if stamp > since:
                return f"{path} is newer than its last start or reload"
    return None


def plan(wishes: Iterable[Wish], units: Mapping[str, Unit], paths: Paths, check_mode: bool = False) -> list[Step]:
    """The calls that lead from what is to what is wanted, in the order of the wishes."""
    problems: list[str] = []
    of_files: list[Step] = []
    of_states: list[Step] = []
    for wish in wishes:
        unit = units[wish.name]
        problem = _problem(wish, unit)
        if problem and not check_mode:
            problems.append(f"{wish.name}: {problem}")
            continue
        of_files.extend(_file_steps(wish, unit))
        step = _state_step(wish, unit, paths, check_mode)
        if step:
            of_states.append(step)
    if problems:
        raise ValueError("; ".join(problems))
    return of_files + of_states


def calls(steps: Iterable[Step]) -> list[list[Step]]:
    """The steps that systemctl is told together: after each change of unit files systemd reads all of them again."""
    found: list[list[Step]] = []
    for step in steps:
        if found and step.verb in FILE_VERBS and step.verb == found[-1][0].verb:
            found[-1].append(step)
        else:
            found.append([step])
    return found


def _problem(wish: Wish, unit: Unit) -> str | None:
    wanted = wish.state == "started" or bool(wish.enabled)
    if not wanted or wish.masked:
        return None
    if unit.load_state == "masked" and wish.masked is None:
        return "is masked; say masked: false to unmask it"
    if unit.load_state == "not-found":
        return "does not exist"
    if unit.load_state in ("bad-setting", "error"):
        return f"cannot be loaded: {unit.load_error or unit.load_state}"
    if wish.state == "started" and unit.kind == "oneshot" and not unit.remain_after_exit:
        return (
            "is of type oneshot without RemainAfterExit=yes, so whether it ran cannot be told; "
            "add that to its unit file, or start the timer that runs it"
        )
    if wish.enabled and unit.file_state == "static":
        return "cannot be enabled, because its unit file has no [Install] section"
    return None


def _file_steps(wish: Wish, unit: Unit) -> list[Step]:
    steps: list[Step] = []
    is_masked = unit.load_state == "masked" or unit.file_state.startswith("masked")
    if wish.masked is False and is_masked:
        steps.append(Step("unmask", wish.name, "is masked"))
    if wish.enabled is True and unit.file_state not in ENABLED:
        steps.append(Step("enable", wish.name, f"is {unit.file_state or 'not there yet'}"))
    if wish.enabled is False and unit.file_state.startswith("enabled"):
        steps.append(Step("disable", wish.name, f"is {unit.file_state}"))
    if wish.masked and not is_masked:
        steps.append(Step("mask", wish.name, f"is {unit.file_state or 'not there'}"))
    return steps


def _state_step(wish: Wish, unit: Unit, paths: Paths, check_mode: bool) -> Step | None:
    if wish.state == "stopped":
        stoppable = unit.running or unit.active_state in ("activating", "deactivating")
        return Step("stop", wish.name, f"is {unit.active_state}") if stoppable else None
    restart = newer_than(unit.started_at, wish.restart_on, paths, check_mode)
    if not unit.running:
        return Step("start", wish.name, f"is {unit.active_state}")
    if restart:
        return Step("restart", wish.name, restart)
    reload = newer_than(unit.read_its_files_at, wish.reload_on, paths, check_mode)
    if not reload and wish.reload_on and unit.reload_result not in ("", "success"):
        reload = f"its last reload failed: {unit.reload_result}"
    return Step("reload" if unit.can_reload else "restart", wish.name, reload) if reload else None


def report(units: Mapping[str, Unit], steps: list[Step]) -> dict[str, dict[str, Any]]:
    """What the module returns of each unit."""
    return {
        name: {
            "actions": [step.verb for step in steps if step.unit == name],
            "reasons": [step.reason for step in steps if step.unit == name],
            "active_state": unit.active_state,
            "sub_state": unit.sub_state,
            "file_state": unit.file_state,
        }
        for name, unit in units.items()
    }


def hopeless(unit: Unit) -> bool:
    """Whether waiting longer for a unit that was started cannot help."""
    return unit.active_state in ("failed", "inactive")


def tells_when_started(unit: Unit) -> bool:
    """Whether "active" means that its start is over: it has said so, or what it runs has ended, or it runs nothing."""
    return unit.kind in TELLING_TYPES or not unit.name.endswith(".service")


def crashed_between(first: Unit, last: Unit) -> bool:
    """Whether systemd had to start the unit again between two looks at it."""
    return first.restarts != last.restarts or (first.started_at or 0) + TICK_NS < (last.started_at or 0)
