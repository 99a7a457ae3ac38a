# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""Positions in the WAL, and what pg_waldump says about its end. Pure functions.

The proof of a hand-over: the primary puts itself out of action (a start brings it up read-only), writes a message with
a token into the WAL, and stops. PostgreSQL writes the record CHECKPOINT_SHUTDOWN when the last session has ended, and
nothing after it. A standby that has replayed the message, and the shutdown as the very last record, has everything
that was ever acknowledged, and knows that nothing can follow: without asking anybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MESSAGE_PREFIX = "flotilla_handover"

_RECORD = re.compile(
    r"^rmgr: (?P<rmgr>\w+)\s.*\blsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+), prev [0-9A-F]+/[0-9A-F]+, desc: (?P<desc>.*)$"
)
_MESSAGE = re.compile(r'^MESSAGE .*prefix "(?P<prefix>[^"]*)"; payload \(\d+ bytes\): (?P<payload>[0-9A-F ]*)')
_POSITION = re.compile(r"\b([0-9A-F]{1,8}/[0-9A-F]{1,8})\b")
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,64}")


def lsn(text: str | None) -> int:
    """Return a position as a number; 0 where there is none."""
    if not text:
        return 0
    high, slash, low = text.partition("/")
    try:
        if not slash:
            raise ValueError
        return (int(high, 16) << 32) + int(low, 16)
    except ValueError:
        raise ValueError(f"{text!r} is no position in the WAL, for example 0/3000060") from None


def lsn_text(position: int) -> str:
    """Return a position as PostgreSQL writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def latest(*positions: str | None) -> str | None:
    """Return the greatest of the positions that are there."""
    known = [position for position in positions if position]
    return max(known, key=lsn) if known else None


def segment_name(timeline: int, position: int, segment_size: int) -> str:
    """Return the name of the WAL file that holds a position."""
    per_id = 0x100000000 // segment_size
    number = position // segment_size
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"


def replay_timeline(files: Iterable[str], position: int, segment_size: int) -> int:
    """Return the newest timeline of which there is WAL at a position, 0 where there is none.

    A standby that has followed a promotion says so in no view while it receives nothing, and in its control file only
    after the next restart point; but the file that it replays has the timeline in its name.
    """
    place = segment_name(0, max(0, position - 1), segment_size)[8:]
    return max((int(name[:8], 16) for name in files if _SEGMENT.fullmatch(name) and name[8:] == place), default=0)


def segments(
    files: Iterable[str], timeline: int, start: int, end: int | None, segment_size: int
) -> tuple[str, str] | None:
    """Return the first and the last WAL file for pg_waldump, None where the first is not there.

    Not named, it takes any file to find out the size of segments: one that was made in advance and is still full of
    zeros ends it.
    """
    first = segment_name(timeline, start, segment_size)
    there = sorted(name for name in files if _SEGMENT.fullmatch(name) and name.startswith(f"{timeline:08X}"))
    if first not in there:
        return None
    return first, there[-1] if end is None else segment_name(timeline, end - 1, segment_size)


def check_token(token: str) -> str:
    """Return the token, or raise ValueError where it could be confused or quoted wrongly."""
    if not _TOKEN.fullmatch(token):
        raise ValueError("the token of a hand-over must have 8 to 64 letters, digits, underscores or hyphens")
    return token


@dataclass(frozen=True)
class Record:
    """One line of pg_waldump."""

    rmgr: str
    lsn: str
    description: str

    @property
    def is_shutdown(self) -> bool:
        return self.rmgr == "XLOG" and self.description.startswith("CHECKPOINT_SHUTDOWN")

    @property
    def token(self) -> str | None:
        """The token of a hand-over, None where the record is something else."""
        match = _MESSAGE.match(self.description) if self.rmgr == "LogicalMessage" else None
        if match is None or match["prefix"] != MESSAGE_PREFIX:
            return None
        return bytes.fromhex(match["payload"]).decode(errors="replace")


def records(lines: Sequence[str]) -> list[Record]:
    """Return the records that pg_waldump lists."""
    found = (_RECORD.match(line) for line in lines)
    return [Record(match["rmgr"], match["lsn"], match["desc"]) for match in found if match]


def message_at(found: Sequence[Record], token: str) -> str | None:
    """Return the position of the message with this token."""
    return next((record.lsn for record in found if record.token == token), None)


def ends_with_shutdown(found: Sequence[Record], token: str) -> str | None:
    """Return the position of the shutdown, when these records begin with the message and end with the shutdown.

    A later message hands over to somebody else.
    """
    if len(found) < 2 or found[0].token != token or not found[-1].is_shutdown:
        return None
    if any(record.token is not None for record in found[1:]):
        return None
    return found[-1].lsn


def end_of_wal(error: str) -> str | None:
    """Return where the WAL ends from pg_waldump's complaint about it."""
    positions = _POSITION.findall(error)
    return positions[-1] if positions else None
