# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Ask and tell systemd, and look at the times of files."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from ansible_collections.flotilla.django.plugins.module_utils._systemd_units_plan import (
    Paths,
    Unit,
    Wish,
    crashed_between,
    hopeless,
    tells_when_started,
)

# Besides the settings, only monotonic times: they are plain numbers in every release and don't jump with the clock.
PROPERTIES = (
    "Id",
    "LoadState",
    "LoadError",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "FragmentPath",
    "DropInPaths",
    "CanReload",
    "Type",
    "RemainAfterExit",
    "Result",
    "ReloadResult",
    "ExecMainStatus",
    "MainPID",
    "NRestarts",
    "InactiveExitTimestampMonotonic",
    "ActiveEnterTimestampMonotonic",
    "ExecMainStartTimestampMonotonic",
    "StateChangeTimestampMonotonic",
)
# For these the main process is started by systemd itself, so that its start time is when it can first read its files.
DIRECT_TYPES = ("simple", "exec", "notify", "notify-reload", "dbus")
POLL_SECONDS = 0.1


class SystemctlFailed(Exception):
    """systemctl ended with an error."""

    def __init__(self, arguments: Sequence[str], output: str) -> None:
        super().__init__(f"systemctl {' '.join(arguments)}: {output.strip()}")


class UnitFailed(Exception):
    """A unit did not come to the state it was brought to."""

    def __init__(self, unit: Unit, message: str) -> None:
        super().__init__(message)
        self.unit = unit


def systemctl(*arguments: str) -> str:
    environment = dict(os.environ, LC_ALL="C.UTF-8", SYSTEMD_COLORS="0", SYSTEMD_PAGER="")
    try:
        done = subprocess.run(
            ["systemctl", "--no-ask-password", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise SystemctlFailed(arguments, f"cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        raise SystemctlFailed(arguments, done.stderr or done.stdout)
    return done.stdout


def show(names: Sequence[str]) -> dict[str, Unit]:
    """All units with one call; systemctl answers with one block each, in the order of the names."""
    if not names:
        return {}
    text = systemctl("show", "--property", ",".join(PROPERTIES), "--", *names)
    blocks = [block for block in text.split("\n\n") if block.strip()]
    if len(blocks) != len(names):
        raise SystemctlFailed(["show", *names], f"{len(blocks)} answers to {len(names)} questions")
    # Ages are compared, not dates: a clock that was set meanwhile does not make a unit older or younger.
    offset = time.time_ns() - time.monotonic_ns()
    return {name: parse_block(name, block, offset) for name, block in zip(names, blocks, strict=True)}


def parse_block(name: str, block: str, offset: int) -> Unit:
    """One unit from the lines of systemctl show; offset is the wall clock minus the monotonic one, in ns."""
    values: dict[str, str] = {}
    for line in block.splitlines():
        key, found, value = line.partition("=")
        if found:
            values[key] = value

    def moment(key: str) -> int | None:
        number = values.get(key, "")
        return int(number) * 1000 + offset if number.isdigit() and int(number) > 0 else None

    started_at = moment("InactiveExitTimestampMonotonic")
    if values.get("Type") in DIRECT_TYPES:
        main = moment("ExecMainStartTimestampMonotonic")
        started_at = max(started_at or 0, main or 0) or None
    fragment = values.get("FragmentPath", "")
    return Unit(
        name=name,
        load_state=values.get("LoadState", ""),
        load_error=values.get("LoadError", ""),
        active_state=values.get("ActiveState", ""),
        sub_state=values.get("SubState", ""),
        file_state=values.get("UnitFileState", ""),
        need_daemon_reload=values.get("NeedDaemonReload") == "yes",
        kind=values.get("Type", ""),
        remain_after_exit=values.get("RemainAfterExit") == "yes",
        can_reload=values.get("CanReload") == "yes",
        result=values.get("Result", ""),
        reload_result=values.get("ReloadResult", ""),
        exit_status=values.get("ExecMainStatus", ""),
        main_pid=values.get("MainPID", ""),
        restarts=values.get("NRestarts", ""),
        started_at=started_at,
        active_at=moment("ActiveEnterTimestampMonotonic"),
        state_changed_at=moment("StateChangeTimestampMonotonic"),
        files=tuple(path for path in [fragment, *values.get("DropInPaths", "").split()] if path),
    )


def stamp(path: str) -> int | None:
    """When the path itself last changed (for a link: the link), in ns.

    The ctime, because it moves with content, owner and mode alike and cannot be set: a file that was
    unpacked with an old time is new all the same, and one with a time in the future does not stay new for ever.
    """
    try:
        return os.lstat(path).st_ctime_ns
    except OSError:
        return None


def expand(pattern: str) -> dict[str, int]:
    """The paths that a pattern stands for now, with their times; a directory stands for all that is in it."""
    found: dict[str, int] = {}
    plain = pattern.rstrip("/") or "/"
    names = [plain]
    if stamp(plain) is None:
        matches = Path("/").glob(plain.lstrip("/"))
        # As in a shell: the files that config_files is just writing are not meant by "*".
        names = sorted(str(path) for path in matches if not path.name.startswith("."))
    for name in names:
        for path in [name, *_inside(name)]:
            moment = stamp(path)
            if moment is not None:
                found[path] = moment
    return found


def _inside(path: str) -> list[str]:
    if Path(path).is_symlink():
        return []
    return [
        str(Path(directory) / name)
        for directory, directories, files in os.walk(path)
        for name in [*directories, *files]
    ]


def look_at_paths(wishes: Iterable[Wish], changed: Sequence[str]) -> Paths:
    patterns = {pattern for wish in wishes for pattern in wish.restart_on + wish.reload_on}
    return Paths(
        stamps={pattern: expand(pattern) for pattern in patterns},
        changed=changed,
        changed_stamps={path: stamp(path) for path in changed},
    )


def journal(name: str, lines: int = 20) -> str:
    try:
        done = subprocess.run(
            ["journalctl", "--no-pager", "--quiet", "--output=short-iso", f"--lines={lines}", f"--unit={name}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def failure(unit: Unit, what: str) -> UnitFailed:
    """Everything one wants to know about a unit that failed, in one message."""
    facts = [f"state {unit.active_state}/{unit.sub_state}"]
    if unit.result:
        facts.append(f"result {unit.result}")
    if unit.exit_status:
        facts.append(f"exit status {unit.exit_status}")
    message = f"{unit.name} {what} ({', '.join(facts)})"
    lines = journal(unit.name)
    return UnitFailed(unit, f"{message}. Its last journal lines:\n{lines}" if lines else message)


def wait_until_settled(
    names: Sequence[str],
    settle: float,
    timeout: float,
    reloaded: Collection[str] = (),
    look: Callable[[Sequence[str]], dict[str, Unit]] = show,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Unit]:
    """Wait until all units are active, and then that they stay so; UnitFailed names the first that does not.

    Who told systemd by itself that its start is over is not watched, unless it was reloaded.
    """
    if not names:
        return {}
    deadline = clock() + timeout
    while True:
        first = look(names)
        for unit in first.values():
            if hopeless(unit):
                raise failure(unit, "did not start")
        late = [unit for unit in first.values() if unit.active_state != "active"]
        if not late:
            break
        if clock() >= deadline:
            raise failure(late[0], f"is not active after {timeout:g} seconds")
        sleep(POLL_SECONDS)
    watched = [name for name, unit in first.items() if name in reloaded or not tells_when_started(unit)]
    if not watched:
        return first
    sleep(settle)
    # Whoever crashed and was started again meanwhile shows it.
    last = look(watched)
    for name, unit in last.items():
        again = crashed_between(first[name], unit)
        if unit.active_state != "active" or again:
            since = ", and systemd started it again" if again else ""
            raise failure(unit, f"started, but did not stay up for {settle:g} seconds{since}")
    return {**first, **last}
