# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""How a data directory becomes a standby of a primary: followed, rewound or cloned. Pure functions.

The rule behind every branch: what is unique in the data directory goes only where the primary's history says that
it was left behind, or where the operator allowed it by name. Whatever contradicts itself is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_wal_plan as wal

# What pg_controldata says of a server that follows another, and of one that was stopped in good order.
_FOLLOWING = ("shut down in recovery", "in archive recovery")
_CLEAN = ("shut down", "shut down in recovery")

# Settings of another member, or of an earlier life, that must not win over this member's own files.
_OWN = re.compile(
    r"^\s*(primary_conninfo|primary_slot_name|recovery_\w+|restore_command|archive_cleanup_command)\b", re.IGNORECASE
)


def auto_conf(content: str) -> str:
    """Return postgresql.auto.conf without what says whom to follow, which this member's own files say."""
    return "".join(line for line in content.splitlines(keepends=True) if not _OWN.match(line))


segment_name = wal.segment_name


History = tuple[tuple[int, int], ...]


def parse_history(text: str) -> History:
    """Return what a timeline's history file says: its ancestors, oldest first, and where each was left."""
    found = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) >= 2:
            found.append((int(words[0]), wal.lsn(words[1])))
    return tuple(found)


@dataclass(frozen=True)
class Attempt:
    """A rewind that was begun: what it may be resumed with."""

    system_identifier: str
    source_timeline: int
    divergence: int
    boot_id: str


@dataclass(frozen=True)
class Local:
    """The data directory, as its files say."""

    data: str = "present"  # absent | present | foreign
    running: bool = False
    standby_signal: bool = False
    problem: str = ""  # why its control file could not be read
    state: str = ""
    system_identifier: str = ""
    timeline: int = 0
    history: History | None = None  # None: there is no history file
    position: int = 0  # up to here its data is known to go; an unclean server may have more in its WAL
    segment_size: int = 16 * 1024 * 1024
    rewindable: bool = True  # checksums, or wal_log_hints
    backup_label: bool = False  # a copy that was never started: its control file is that of its source
    rewound: bool = False  # such a copy, made by pg_rewind: it needs WAL that the primary writes after that
    interrupted: Attempt | None = None
    boot_id: str = ""

    @property
    def following(self) -> bool:
        """Tell whether its last server was a standby."""
        return self.state in _FOLLOWING or self.backup_label

    @property
    def clean(self) -> bool:
        """Tell whether its last server was stopped in good order."""
        return self.state in _CLEAN and not self.backup_label


def read_control(control: Mapping[str, str]) -> Local:
    """Return what the control file says.

    A server that crashed right after its promotion has the new timeline only as the one to recover to.
    """
    try:
        recovery_timeline = int(control["Min recovery ending loc's timeline"])
        return Local(
            state=control["Database cluster state"],
            system_identifier=control["Database system identifier"],
            timeline=max(int(control["Latest checkpoint's TimeLineID"]), recovery_timeline),
            position=max(
                wal.lsn(control["Latest checkpoint location"]),
                wal.lsn(control["Minimum recovery ending location"]),
            ),
            segment_size=int(control["Bytes per WAL segment"]),
            rewindable=control["Data page checksum version"] != "0" or control["wal_log_hints setting"] == "on",
        )
    except (KeyError, ValueError) as error:
        return Local(problem=f"pg_controldata says nothing understandable: {error}")


@dataclass(frozen=True)
class Source:
    """The primary, as it says itself."""

    system_identifier: str
    timeline: int
    history: History = ()


@dataclass(frozen=True)
class Relation:
    """Where two histories part. Without divergence they are on the same timeline with the same past."""

    ancestor: int | None
    divergence: int | None = None


def _spans(timeline: int, history: History) -> list[tuple[int, int, int | None]]:
    spans: list[tuple[int, int, int | None]] = []
    begin = 0
    for parent, switch in history:
        spans.append((parent, begin, switch))
        begin = switch
    return [*spans, (timeline, begin, None)]


def relate(local: Local, source: Source) -> Relation:
    """Return the last timeline that both have in common, and where the first of them left it."""
    history = local.history
    if history is None:
        # Only a standby that has just switched can lack the file of the timeline it is on: then it is the source's.
        known = [index for index, (timeline, _switch) in enumerate(source.history) if timeline == local.timeline]
        same = source.timeline == local.timeline
        history = source.history if same else source.history[: known[0]] if known else ()
    last = None
    for ours, theirs in zip(_spans(local.timeline, history), _spans(source.timeline, source.history), strict=False):
        if ours[:2] != theirs[:2]:
            break
        last = (ours, theirs)
    if last is None:
        return Relation(None)
    ends = [span[2] for span in last if span[2] is not None]
    return Relation(last[0][0], min(ends) if ends else None)


@dataclass(frozen=True)
class Evidence:
    """What the WAL itself says.

    past: the directory holds a record behind the place where the primary left their common timeline, which
    recovery would replay. shared: whether its last WAL is that of the primary: same | different | removed (the primary
    does not keep it any more).
    """

    past: bool = False
    shared: str = "same"


@dataclass(frozen=True)
class Allowed:
    """What the operator allows."""

    methods: Sequence[str] = ("follow", "rewind", "clone")
    replace_damaged: bool = False


@dataclass(frozen=True)
class Decision:
    """What is done."""

    method: str  # none | follow | rewind | clone
    reason: str
    recover: bool = False  # run crash recovery first
    trim: bool = False  # clear WAL that was received and not replayed, and that the primary does not have
    resume: bool = False  # go on with a rewind that was interrupted
    replace: bool = False  # keep the present directory beside the clone


def _clone(allowed: Allowed, reason: str) -> Decision:
    if "clone" not in allowed.methods:
        raise ValueError(f"{reason}, and clone is not among the allowed methods")
    return Decision("clone", reason)


def damaged(allowed: Allowed, reason: str) -> Decision:
    """Return a clone in place of a directory that is of no use, where that is allowed."""
    if not allowed.replace_damaged or "clone" not in allowed.methods:
        raise ValueError(
            f"{reason}. With replace_damaged (and the method clone) a fresh clone takes its place and the old data "
            "directory is kept beside it under a dated name; move it away by hand for the same effect"
        )
    return Decision("clone", reason, replace=True)


def decide_alone(local: Local, allowed: Allowed) -> Decision | None:
    """Decide what needs no primary to be asked, or return None."""
    if local.running:
        if local.following:
            return Decision("none", "it runs as a standby")
        raise ValueError("the data directory runs as a primary: it is never touched. Stop the server first")
    if local.data == "absent":
        return _clone(allowed, "the data directory is empty")
    if local.data == "foreign":
        return damaged(allowed, "the data directory is not empty, but it is no complete cluster: nothing was touched")
    if local.problem:
        return damaged(allowed, f"the data directory is damaged: {local.problem}")
    return None


def _resume(local: Local, source: Source, allowed: Allowed) -> Decision:
    """Decide what to do after a rewind that was interrupted.

    pg_rewind may be repeated with the WAL the directory had when it was begun, which is kept for that. Not so after
    a restart of the host, because it forces its writes to disk only at its end, nor from another timeline.
    """
    attempt = local.interrupted
    if attempt is None:
        raise ValueError("there is no rewind to resume")
    begun = "a rewind was begun and interrupted"
    if attempt.source_timeline != source.timeline:
        return damaged(
            allowed, f"{begun} on timeline {attempt.source_timeline}, and the primary is now on {source.timeline}"
        )
    if attempt.boot_id != local.boot_id:
        return damaged(allowed, f"{begun}, and the host was restarted since: what it had written may be incomplete")
    if "rewind" not in allowed.methods:
        return damaged(allowed, f"{begun}, and rewind is not among the allowed methods")
    return Decision("rewind", f"{begun}: it is resumed", resume=True)


def _follow(local: Local, allowed: Allowed, evidence: Evidence, reason: str, trim: bool) -> Decision:
    if evidence.shared == "different":
        return damaged(
            allowed,
            f"the WAL before {wal.lsn_text(local.position)} on timeline {local.timeline} is not that of the primary: "
            "two servers wrote the same timeline, which pg_rewind cannot see",
        )
    if evidence.shared == "removed":
        return damaged(
            allowed,
            f"the primary does not keep the WAL from {wal.lsn_text(local.position)} on any more, which it needs",
        )
    if "follow" not in allowed.methods:
        raise ValueError(f"{reason}, and follow is not among the allowed methods")
    return Decision("follow", reason, trim=trim)


def _rewind(local: Local, allowed: Allowed, reason: str) -> Decision:
    if not local.rewindable:
        return damaged(
            allowed, f"{reason}, and it cannot be rewound: it was made without checksums and without wal_log_hints"
        )
    if "rewind" not in allowed.methods:
        return damaged(allowed, f"{reason}, and rewind is not among the allowed methods")
    return Decision("rewind", reason, recover=not local.clean)


def decide(local: Local, source: Source, relation: Relation, evidence: Evidence, allowed: Allowed) -> Decision:
    """Decide how a stopped data directory becomes a standby of the source. Raises ValueError with the reason."""
    if local.system_identifier != source.system_identifier:
        raise ValueError(
            f"the data directory holds the cluster {local.system_identifier}, the primary {source.system_identifier}: "
            "they have never been copies of one another. Nothing was touched: move it away if it is of no use"
        )
    if local.interrupted:
        return _resume(local, source, allowed)
    if local.timeline > source.timeline:
        raise ValueError(
            f"the data directory is on timeline {local.timeline}, which is newer than the primary's "
            f"{source.timeline}: it was promoted later. Which of the two holds the truth is for you to say: move its "
            "data directory away if it is the primary that does"
        )
    if local.timeline == source.timeline and not local.following:
        return damaged(
            allowed,
            f"the data directory and the primary have both been primaries on timeline {source.timeline}: each was "
            "promoted without knowing of the other, and pg_rewind would call them the same",
        )
    if relation.ancestor is None:
        return damaged(allowed, "the data directory and the primary have no timeline in common")
    if relation.divergence is None:
        return _follow(local, allowed, evidence, f"it is on the primary's timeline {source.timeline}", trim=False)
    if local.timeline == source.timeline:
        return damaged(
            allowed,
            f"there are two different timelines {source.timeline}: the data directory's and the primary's, which "
            f"part at {wal.lsn_text(relation.divergence)}; pg_rewind would call them the same",
        )
    where = f"the primary left timeline {relation.ancestor} at {wal.lsn_text(relation.divergence)}"
    if relation.ancestor != local.timeline:
        return _rewind(local, allowed, f"{where}, and the data directory went its own way to {local.timeline}")
    if not evidence.past and local.position <= relation.divergence:
        return _follow(local, allowed, evidence, f"{where}, and the data directory is not beyond it", trim=False)
    if local.following and not local.backup_label and local.position <= relation.divergence:
        # Received and not replayed: its data pages know nothing of it, but the next start would replay it.
        reason = f"{where}, and the data directory has not replayed what it holds beyond it"
        return _follow(local, allowed, evidence, reason, trim=True)
    return _rewind(local, allowed, f"{where}, and the data directory is beyond it")
