# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Several questions to a host in one command of its shell, and their answers. Pure: no I/O, no Ansible."""

from __future__ import annotations

MARK = "=== next answer"
# The time since 1970 and since the boot. In this order: whatever comes between the two makes events since the boot look
# earlier, never later.
CLOCKS = "date +%s%N; cat /proc/uptime"
# /proc/uptime has hundredths, rounded down.
ROUNDING_NS = 20_000_000


def command(*questions: str) -> str:
    """One line for sh. Nothing that goes wrong is told: an answer is missing then."""
    return f"export LC_ALL=C; {{ {f'; echo; echo {MARK!r}; '.join(questions)}; :; }} 2>/dev/null"


def answers(text: str, count: int) -> list[str]:
    """What was answered to each question; ValueError when it is not as many."""
    # Ansible gives a command that reads nothing a terminal, which ends lines in its own way.
    parts = text.replace("\r\n", "\n").split(f"\n{MARK}\n")
    if len(parts) != count:
        raise ValueError(f"{len(parts)} answers to {count} questions")
    return parts


def boot_ns(clocks: str) -> int:
    """When the host was booted, in ns since 1970, by what CLOCKS answers: rather too early than too late."""
    now, uptime = clocks.split()[:2]
    return int(now) - nanoseconds(uptime) - ROUNDING_NS


def nanoseconds(seconds: str) -> int:
    whole, _, fraction = seconds.partition(".")
    return int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
