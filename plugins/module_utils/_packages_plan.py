# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Which Debian packages are missing, from what dpkg says. Pure: no I/O, no Ansible."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

# Debian policy, 5.6.1. Anything else (a version, a pattern, an architecture) only apt can judge.
NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
INSTALLED = "installed"


def command(names: Sequence[str]) -> str:
    """The question: one line for sh."""
    return f"dpkg-query --show --showformat='${{db:Status-Status}} ${{Package}}\\n' -- {shlex.join(names)} 2>/dev/null"


def missing(names: Iterable[str], answer: str) -> list[str]:
    """The names that dpkg does not know as installed, in their order."""
    there = set()
    for line in answer.splitlines():
        status, _, name = line.partition(" ")
        if status == INSTALLED:
            there.add(name)
    return [name for name in names if not NAME.fullmatch(name) or name not in there]


def all_named(names: Iterable[str], known: Iterable[str]) -> bool:
    """Whether each name is among the known ones, and no more than a name."""
    return {name if NAME.fullmatch(name) else None for name in names} <= set(known)
