# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""What a node runs, asked with the tools of a shell. Pure: no I/O, no Ansible."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from ansible_collections.flotilla.django.plugins.module_utils import _shell_plan as shell
from ansible_collections.flotilla.django.plugins.module_utils._django_node_io import UNIT_DIRECTORY
from ansible_collections.flotilla.django.plugins.module_utils._django_node_plan import parse_show, release_of
from ansible_collections.flotilla.django.plugins.module_utils._django_runtime_io import MARK, SHOWN
from ansible_collections.flotilla.django.plugins.module_utils._django_runtime_plan import Observed, UnitSeen

# The names of unit files that a shell takes as they are meant.
GLOB = re.compile(r"[A-Za-z0-9@_.*?-]+")


def watched(units: Sequence[str], restart_on: Sequence[str]) -> list[str]:
    return [*restart_on, *(f"{UNIT_DIRECTORY}/{name}" for name in units)]


def command(home: str, units: Sequence[str], restart_on: Sequence[str], stray_units: str) -> str:
    """The question: one line for sh; ValueError where the units are named in a way that a shell would take apart."""
    if stray_units and not GLOB.fullmatch(stray_units):
        raise ValueError(f"{stray_units}: not names of unit files")
    place = shlex.quote(home)
    pids = " ".join(f'"$(systemctl show --value -p MainPID {shlex.quote(name)})"' for name in units)
    return shell.command(
        f"systemctl show -p {SHOWN} {shlex.join(units)}",
        shell.CLOCKS,
        f"for pid in {pids}; do readlink /proc/$pid/cwd || echo; done",
        f"for name in current previous; do readlink {place}/$name || echo; done",
        f"ls -d {place}/releases/*/release.json",
        # Through links, as the module does.
        f"stat --dereference --format='%.9Y %n' -- {shlex.join(watched(units, restart_on))}",
        f"grep -lxF {shlex.quote(MARK)} {UNIT_DIRECTORY}/{stray_units}" if stray_units else "true",
    )


def read(home: str, units: Sequence[str], restart_on: Sequence[str], answer: str) -> Observed:
    """The answer; ValueError when it is not one."""
    shown_text, clocks, directories, links, releases, times, stray = shell.answers(answer, 7)
    shown = parse_show(shown_text)
    booted = shell.boot_ns(clocks) / 1e9
    directory = dict(zip(units, directories.split("\n"), strict=False))
    current, previous = (link.rpartition("/")[2] or None for link in links.split("\n")[:2])
    changed_at: dict[str, float | None] = dict.fromkeys(watched(units, restart_on))
    for line in filter(None, times.splitlines()):
        moment, _, path = line.partition(" ")
        changed_at[path] = float(moment)
    return Observed(
        current=current,
        previous=previous,
        releases=frozenset(path.split("/")[-2] for path in releases.split()),
        units={name: _unit(name, shown.get(name, {}), directory.get(name, ""), home, booted) for name in units},
        changed_at=changed_at,
        stray_units=tuple(sorted({path.rpartition("/")[2] for path in stray.split()} - set(units))),
    )


def _unit(name: str, values: Mapping[str, str], directory: str, home: str, booted: float) -> UnitSeen:
    microseconds = int(values.get("InactiveExitTimestampMonotonic") or 0)
    pid = int(values.get("MainPID") or 0)
    return UnitSeen(
        name=name,
        active_state=values.get("ActiveState", "inactive"),
        enabled=values.get("UnitFileState") == "enabled",
        started_at=booted + microseconds / 1e6 if pid and microseconds else None,
        release=release_of(directory, home) if pid else None,
        need_daemon_reload=values.get("NeedDaemonReload") == "yes",
    )
