# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""What systemd_units reads of a host, asked with the tools of a shell. Pure: no I/O, no Ansible."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.flotilla.django.plugins.module_utils import _shell_plan as shell
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
    return shell.command(
        f"systemctl show --property {','.join(PROPERTIES)} -- {shlex.join(wish.name for wish in wishes)}",
        shell.CLOCKS,
        # Without following links, as the module does. A pattern that matches nothing is a path that is not there.
        f"find {' '.join(paths)} -printf '%C@ %p\\n'" if paths else "true",
    )


def read(wishes: Sequence[Wish], answer: str) -> Seen:
    """The answer; ValueError when it is not one."""
    shown, clocks, files = shell.answers(answer, 3)
    blocks = [block for block in shown.split("\n\n") if block.strip()]
    if len(blocks) != len(wishes):
        raise ValueError(f"{len(blocks)} units of {len(wishes)}")
    offset = shell.boot_ns(clocks)
    stamps: dict[str, int] = {}
    for line in filter(None, files.splitlines()):
        moment, _, path = line.partition(" ")
        stamps[path] = shell.nanoseconds(moment)
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
