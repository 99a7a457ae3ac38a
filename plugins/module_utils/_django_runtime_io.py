# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Read and change which release a node runs: links, units, the health address."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ansible_collections.flotilla.django.plugins.module_utils._django_node_io import (
    UNIT_DIRECTORY,
    linked,
    running_release,
    workers,
)
from ansible_collections.flotilla.django.plugins.module_utils._django_node_plan import parse_show
from ansible_collections.flotilla.django.plugins.module_utils._django_runtime_plan import (
    Observed,
    UnitSeen,
    health_problem,
    telling_lines,
)
from ansible_collections.flotilla.django.plugins.module_utils._health_io import ask, get

SHOWN = "Id,ActiveState,MainPID,InactiveExitTimestampMonotonic,UnitFileState,NeedDaemonReload"
MARK = "[X-Flotilla]"
POLL_SECONDS = 0.1
# Read of the journal before the telling lines are chosen: several attempts of several units, tracebacks included.
JOURNAL_LINES = 2000


class RuntimeFailure(Exception):
    """What was tried did not work; the message says what and the journal why."""


def run(*command: str, check: bool = True) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and result.returncode:
        raise RuntimeFailure(f"{' '.join(command)}: {(result.stderr or result.stdout).strip()}")
    return result.stdout


class Node:
    """The node's links and units."""

    def __init__(
        self, home: str, unit_glob: str, clock: Callable[[], float] = time.monotonic, ca_file: str = ""
    ) -> None:
        self.ca_file = ca_file
        self._home = Path(home)
        self._unit_glob = unit_glob
        self._clock = clock

    def observe(self, units: Sequence[str], restart_on: Sequence[str]) -> Observed:
        seen = {}
        shown = parse_show(run("systemctl", "show", "-p", SHOWN, *units))
        since_boot = time.time() - time.monotonic()
        for name in units:
            values = shown.get(name, {})
            microseconds = int(values.get("InactiveExitTimestampMonotonic") or 0)
            pid = int(values.get("MainPID") or 0)
            seen[name] = UnitSeen(
                name=name,
                active_state=values.get("ActiveState", "inactive"),
                enabled=values.get("UnitFileState") == "enabled",
                started_at=since_boot + microseconds / 1e6 if pid and microseconds else None,
                release=running_release(pid, str(self._home)),
                need_daemon_reload=values.get("NeedDaemonReload") == "yes",
            )
        paths = [*restart_on, *(str(UNIT_DIRECTORY / name) for name in units)]
        releases = self._home / "releases"
        stray = (
            [path.name for path in UNIT_DIRECTORY.glob(self._unit_glob) if _is_ours(path)] if self._unit_glob else []
        )
        return Observed(
            current=linked(str(self._home), "current"),
            previous=linked(str(self._home), "previous"),
            releases=frozenset(path.parent.name for path in releases.glob("*/release.json")),
            units=seen,
            changed_at={path: _changed_at(path) for path in paths},
            stray_units=tuple(sorted(set(stray) - set(units))),
        )

    def switch(self, name: str, release: str | None) -> None:
        """Point a link at a release in one step, or remove it."""
        link = self._home / name
        if release is None:
            link.unlink(missing_ok=True)
            return
        temporary = self._home / f".{name}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(f"releases/{release}")
        temporary.replace(link)
        directory = os.open(self._home, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def remove_units(self, names: Sequence[str]) -> None:
        run("systemctl", "disable", "--now", *names)
        for name in names:
            (UNIT_DIRECTORY / name).unlink(missing_ok=True)
        run("systemctl", "daemon-reload")
        run("systemctl", "reset-failed", *names, check=False)

    def wait_healthy(self, host: str, port: int, path: str, release: str, timeout: float) -> dict[str, object]:
        """Ask until the wanted release answers 200; the last answer is in the error when it does not."""
        deadline = self._clock() + timeout
        scheme = "https" if self.ca_file else "http"
        while True:
            status, body = ask(host, port, path, ca_file=self.ca_file)
            problem = health_problem(status, body, release) if status else str(body.get("error"))
            if not problem:
                return body
            if self._clock() >= deadline:
                raise RuntimeFailure(
                    f"{scheme}://{host}:{port}{path} did not become healthy in {timeout:g} s: {problem}"
                )
            time.sleep(POLL_SECONDS)

    def workers(self, unit: str) -> int:
        """The number of processes that the main process of a unit has started, at least one."""
        return workers(int(run("systemctl", "show", "-P", "MainPID", unit).strip() or 0))

    def warm_up(self, address: str, port: int, host: str, paths: Sequence[str], timeout: float) -> None:
        """Ask for the paths, all at once, so that every worker loads what it loads with its first request."""
        if not paths:
            return
        from concurrent.futures import ThreadPoolExecutor  # dear to import, and seldom wanted

        headers = {"Host": host, "X-Forwarded-Proto": "https"}
        with ThreadPoolExecutor(len(paths)) as pool:
            problems = list(pool.map(lambda path: _problem(address, port, path, headers, timeout, self.ca_file), paths))
        failed = [f"GET {path}: {problem}" for path, problem in zip(paths, problems, strict=True) if problem]
        if failed:
            raise RuntimeFailure(f"{len(failed)} of the first {len(paths)} requests failed, {failed[0]}")

    def require_active(self, names: Sequence[str]) -> None:
        shown = parse_show(run("systemctl", "show", "-p", "Id,ActiveState,Result", *names))
        bad = [f"{name} is {shown[name]['ActiveState']}" for name in names if shown[name]["ActiveState"] != "active"]
        if bad:
            raise RuntimeFailure("; ".join(bad))

    @staticmethod
    def journal(names: Sequence[str], lines: int, since: float) -> str:
        units = [f"--unit={name}" for name in names]
        since_option = f"--since=@{since:.0f}"
        written = run("journalctl", *units, since_option, f"-n{JOURNAL_LINES}", "--no-pager", "-ocat", check=False)
        return telling_lines(written, lines)


def _is_ours(path: Path) -> bool:
    """Whether a unit file carries the mark of the role: nobody else's is ever removed."""
    try:
        return MARK in path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False


def _changed_at(path: str) -> float | None:
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return None


def _problem(address: str, port: int, path: str, headers: Mapping[str, str], timeout: float, ca_file: str = "") -> str:
    """Empty when a page was answered with less than 500."""
    status, _body, error = get(address, port, path, headers, timeout, ca_file)
    return error or (f"HTTP {status}" if status >= 500 else "")
