# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""What systemd_units reads of a host, asked with the tools of a shell. Pure: no I/O, no Ansible."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.flotilla.django.plugins.module_utils._systemd_units_io import PROPERTIES, parse_block
from ansible_collections.flotilla.django.plugins.module_utils._systemd_units_plan import (
    Paths,
    Unit,
    Wish,
    covers,
    plan,
    wants_daemon_reload,
)

# A path or a pattern that a shell takes as it is meant.
PLAIN = re.compile(r"[A-Za-z0-9/._@:+*?-]+")
MARK = "=== files"
# /proc/uptime has hundredths, rounded down. Too early a start is the safe side: the module looks again.
ROUNDING_NS = 20_000_000


@dataclass(frozen=True)
class Seen:
    """The units as systemd has them, and the files they depend on."""

    units: dict[str, Unit]
    paths: Paths


def patterns(wishes: Sequence[Wish]) -> list[str]:
    return sorted({pattern for wish in wishes for pattern in wish.restart_on + wish.reload_on})


def command(wishes: Sequence[Wish]) -> str | None:
    """The question: one line for sh. None where a path is one that a shell would take apart."""
    paths = patterns(wishes)
    if not all(PLAIN.fullmatch(path) for path in paths):
        return None
    parts = [
        f"systemctl show --property {','.join(PROPERTIES)} -- {shlex.join(wish.name for wish in wishes)}",
        # In this order: whatever comes between the two makes a start look earlier, never later.
        f"echo '{MARK}'; date +%s%N; cat /proc/uptime",
    ]
    if paths:
        # Without following links, as the module does. A pattern that matches nothing is a path that is not there.
        parts.append(f"find {' '.join(paths)} -printf '%C@ %p\\n'")
    return f"export LC_ALL=C SYSTEMD_COLORS=0 SYSTEMD_PAGER=; {{ {'; '.join(parts)}; }} 2>/dev/null"


def read(wishes: Sequence[Wish], answer: str) -> Seen:
    """The answer; ValueError when it is not one."""
    # Ansible gives a command that reads nothing a terminal, which ends lines in its own way.
    shown, found, rest = answer.replace("\r\n", "\n").partition(f"{MARK}\n")
    blocks = [block for block in shown.split("\n\n") if block.strip()]
    lines = rest.splitlines()
    if not found or len(blocks) != len(wishes) or len(lines) < 2:
        raise ValueError("not an answer")
    offset = int(lines[0]) - _nanoseconds(lines[1].split()[0]) - ROUNDING_NS
    stamps: dict[str, int] = {}
    for line in lines[2:]:
        moment, _, path = line.partition(" ")
        stamps[path] = _nanoseconds(moment)
    return Seen(
        units={wish.name: parse_block(wish.name, block, offset) for wish, block in zip(wishes, blocks, strict=True)},
        paths=Paths(
            {
                pattern: {path: moment for path, moment in stamps.items() if covers(pattern, path)}
                for pattern in patterns(wishes)
            }
        ),
    )


def as_wanted(wishes: Sequence[Wish], answer: str) -> dict[str, Unit] | None:
    """The units when nothing is to be done about them, None when there is, or when they cannot be judged."""
    try:
        seen = read(wishes, answer)
        steps = plan(wishes, seen.units, seen.paths)
    except ValueError:
        return None
    return None if steps or wants_daemon_reload(seen.units.values(), ()) else seen.units


def _nanoseconds(seconds: str) -> int:
    whole, _, fraction = seconds.partition(".")
    return int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
