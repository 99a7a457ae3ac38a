# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""How the primary moves: planned to a named member, or after its death to the best one. Pure functions.

The input is what postgresql_replication_info returned on each member: `node`, and `peers` for what the others said over
the network. A member that could not be reached has nothing. What an earlier run left half done is read from the same
state, so a run that was killed is finished, or undone, by the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_wal_plan as wal
from ansible_collections.flotilla.django.plugins.module_utils._postgresql_settings_plan import slot_name

# A standby tells it every second (wal_receiver_status_interval of the role).
MAX_SILENT_SECONDS = 5

Inspected = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Limits:
    """What is refused before a planned move."""

    max_lag_bytes: int = 16 * 1024 * 1024
    max_transaction_seconds: int = 60
    min_free_bytes: int = 256 * 1024 * 1024
    accept_missing_members: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be done, and why not."""

    # none | switch | promote (the old one is down already) | release (back to the old one) | fail_over | refuse
    action: str
    old: str | None = None
    new: str | None = None
    standbys: list[str] = field(default_factory=list)  # who streams from the new primary afterwards
    rejoin: list[str] = field(default_factory=list)  # fenced members that are brought back
    fence: list[str] = field(default_factory=list)  # members to be stopped on the spot
    unreachable: list[str] = field(default_factory=list)  # members to be cut off from outside
    harmless: list[str] = field(default_factory=list)  # stopped standbys, and members without data
    candidates: list[str] = field(default_factory=list)
    lossless: bool = False  # no commit that was acknowledged can be missing
    since_lsn: str | None = None
    after_lsn: str | None = None
    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for Ansible."""
        return asdict(self)


class Members:
    """The members as they were read."""

    def __init__(self, names: Sequence[str], inspected: Inspected) -> None:
        self.names = list(names)
        self.nodes: dict[str, Mapping[str, Any]] = {
            name: inspected[name]["node"] for name in names if (inspected.get(name) or {}).get("node")
        }
        self.inspected = inspected

    @property
    def missing(self) -> list[str]:
        return [name for name in self.names if name not in self.nodes]

    @property
    def primaries(self) -> list[str]:
        """Members that accept writes now: read on the spot, or told to a peer over the network."""
        return [name for name in self.names if self.is_primary(name)]

    def is_primary(self, name: str) -> bool:
        node = self.nodes.get(name)
        if node is None:
            return any(answer["state"] == "primary" for answer in self.answers(name).values())
        return bool(node["running"] and node["role"] == "primary" and (node["accepting"] or not node["standby_signal"]))

    def timeline(self, name: str) -> int | None:
        """Return the timeline of a member, from its peers where it cannot be reached."""
        if name in self.nodes:
            return self.nodes[name]["timeline"]
        return max((answer.get("timeline") or 0 for answer in self.answers(name).values()), default=0) or None

    @property
    def answering(self) -> list[str]:
        """Primaries that somebody got an answer from: one that hangs is not among them."""
        return [
            name
            for name in self.primaries
            if (self.nodes.get(name) or {}).get("accepting")
            or any(answer["state"] == "primary" for answer in self.answers(name).values())
        ]

    @property
    def standbys(self) -> list[str]:
        return [
            name for name, node in self.nodes.items() if node["running"] and node["accepting"] and node["in_recovery"]
        ]

    @property
    def stopped(self) -> list[str]:
        """Members with data and without a server."""
        return [name for name, node in self.nodes.items() if node["data"] == "present" and not node["running"]]

    def fenced(self, name: str) -> bool:
        node = self.nodes.get(name)
        return node is not None and not node["running"] and (node["start"] == "disabled")

    def harmless(self, name: str) -> bool:
        """Tell whether a member without a running server could only come up as a standby, or not at all."""
        node = self.nodes[name]
        if node["running"] or node["data"] == "foreign":
            return False
        was_standby = node["database_cluster_state"] in ("shut down in recovery", "in archive recovery")
        return node["data"] == "absent" or (was_standby and bool(node["standby_signal"]))

    def answers(self, name: str) -> dict[str, Mapping[str, Any]]:
        """Return what the others heard from a member over the network."""
        return {
            other: found["peers"][name]
            for other, found in self.inspected.items()
            if other != name and (found or {}).get("node") and name in (found.get("peers") or {})
        }

    def has(self, name: str) -> str | None:
        """Return the last position that a member has."""
        return wal.latest(self.nodes[name]["receive_lsn"], self.nodes[name]["lsn"])

    def problems(self) -> list[str]:
        """Return what forbids any move."""
        found = []
        for name, node in self.nodes.items():
            if node["other_managers"]:
                found.append(
                    f"{name} is managed by {', '.join(node['other_managers'])}, which moves the primary itself"
                )
        if len(self.primaries) > 1:
            told = ", ".join(f"{name} (timeline {self.timeline(name) or 'not known'})" for name in self.primaries)
            found.append(
                f"split brain: {told} are primaries at the same time. The one on the newest timeline was promoted "
                "last; the other one is put out of action, and brought back, by playbooks/rejoin.yml"
            )
        identifiers: dict[str, list[str]] = {}
        for name, node in self.nodes.items():
            if node["system_identifier"]:
                identifiers.setdefault(node["system_identifier"], []).append(name)
        if len(identifiers) > 1:
            listed = "; ".join(f"{', '.join(names)}: {key}" for key, names in sorted(identifiers.items()))
            found.append(f"the members hold different clusters (system identifiers {listed})")
        return found


def refuse(*reasons: str, **more: Any) -> Plan:
    """Return a refusal."""
    return Plan("refuse", reasons=list(reasons), **more)


def switchover(names: Sequence[str], target: str, inspected: Inspected, limits: Limits) -> Plan:
    """Decide how the member target becomes the primary."""
    if target not in names:
        return refuse(f"postgresql_new_primary: got {target!r}, wants one of {', '.join(names)}")
    members = Members(names, inspected)
    problems = members.problems()
    if problems:
        return refuse(*problems)
    if members.primaries == [target]:
        return _already(members, target)
    if members.primaries:
        return _switch(members, members.primaries[0], target, limits)
    return _resume(members, target)


def _rejoinable(members: Members, new: str, old: str | None = None) -> list[str]:
    """Return the members that an earlier move has left behind, stopped in order.

    Fenced still, or a standby already that was let start and was not started: a run can be killed in between.
    """
    return [
        name
        for name in members.stopped
        if name not in (new, old)
        and members.nodes[name]["start"] in ("disabled", "auto")
        and members.nodes[name]["database_cluster_state"] in ("shut down", "shut down in recovery")
        and members.nodes[name]["standby_signal"]
    ]


def _already(members: Members, target: str) -> Plan:
    node = members.nodes.get(target)
    if node is None:
        return refuse(f"{target} is the primary, but Ansible cannot reach it")
    locked = node["standby_signal"] or node["start"] == "disabled"
    warnings = (
        [f"{target} was about to be stopped by a move that was interrupted: that is taken back"] if locked else []
    )
    rejoin = _rejoinable(members, target)
    others = [name for name in members.standbys if name != target] + rejoin
    return Plan(
        "release" if locked else "none", old=target if locked else None, new=target, standbys=others, rejoin=rejoin,
        warnings=warnings,
    )  # fmt: skip


def _candidate_problems(members: Members, old: str, new: str, limits: Limits) -> list[str]:
    """Return why the candidate cannot take over from a live primary."""
    node, primary = members.nodes.get(new), members.nodes[old]
    if node is None:
        return [f"{new} cannot be reached"]
    if new not in members.standbys:
        if members.fenced(new):
            return [f"{new} is fenced: bring it back with playbooks/rejoin.yml first"]
        return [f"{new} is no running standby" + (f": {node['error']}" if node["error"] else "")]
    found = []
    upstream = node["upstream"] or {}
    if upstream.get("status") != "streaming" or upstream.get("timeline") != primary["timeline"]:
        found.append(f"{new} does not stream from {old} (its receiver: {upstream.get('status') or 'none'})")
    seen = [row for row in primary["downstreams"] if row["name"] == new]
    if not seen:
        found.append(f"{old} does not see {new} among those who stream from it")
    elif (seen[0]["silent_seconds"] or 0) > MAX_SILENT_SECONDS:
        found.append(f"{new} has not told {old} for {seen[0]['silent_seconds']} s what it has received")
    if seen and (seen[0]["lag_bytes"] is None or seen[0]["lag_bytes"] > limits.max_lag_bytes):
        found.append(
            f"{new} lags behind by {seen[0]['lag_bytes']} bytes, {limits.max_lag_bytes} are allowed "
            "(postgresql_max_lag_bytes)"
        )
    if node["replay_paused"]:
        found.append(f"replay is paused on {new}: SELECT pg_wal_replay_resume()")
    lacking = [name for name in [old, *members.standbys] if name != new and slot_name(name) not in node["slots"]]
    if lacking:
        found.append(
            f"{new} has no replication slots for {', '.join(lacking)}, so they could not follow it: "
            f"playbooks/rejoin.yml -e postgresql_member={new} makes them"
        )
    if node["apply_delay_seconds"]:
        found.append(f"replay is delayed on {new} by {node['apply_delay_seconds']} s (recovery_min_apply_delay)")
    if (node["disk_free_bytes"] or 0) < limits.min_free_bytes:
        found.append(
            f"{new} has {(node['disk_free_bytes'] or 0) >> 20} MiB free, wants {limits.min_free_bytes >> 20} "
            "(postgresql_min_free_mb)"
        )
    for other, answer in members.answers(new).items():
        if answer["state"] == "rejected":
            found.append(f"{new} does not let {other} in: {answer.get('error', '')}")
    others = len(members.names) - 1
    if node["max_wal_senders"] - len(node["downstreams"]) < others:
        found.append(f"{new} has too few max_wal_senders ({node['max_wal_senders']}) for {others} other members")
    if node["settings_errors"]:
        found.append(f"{new} refuses lines of its configuration: {'; '.join(node['settings_errors'])}")
    return found


def _primary_problems(members: Members, old: str, limits: Limits) -> list[str]:
    """Return why the primary should not be stopped now."""
    node = members.nodes.get(old)
    if node is None:
        return [f"{old} is the primary, but Ansible cannot reach it: playbooks/failover.yml is for that"]
    if not node["accepting"]:
        return [f"{old} does not answer: {node['error']}"]
    found = []
    if node["archiver"] == "failing":
        found.append(f"{old} cannot archive its WAL, which would hold up its stop: see pg_stat_archiver")
    if node["running_backups"]:
        found.append(f"{node['running_backups']} base backup(s) run on {old} and would be cut off")
    if (node["oldest_transaction_seconds"] or 0) > limits.max_transaction_seconds:
        found.append(
            f"a transaction on {old} has been open for {node['oldest_transaction_seconds']} s and would be lost, "
            f"{limits.max_transaction_seconds} s are allowed (postgresql_max_transaction_seconds)"
        )
    return found


def _switch(members: Members, old: str, new: str, limits: Limits) -> Plan:
    problems = _primary_problems(members, old, limits)
    if problems:
        return refuse(*problems, old=old, new=new)
    problems = _candidate_problems(members, old, new, limits)
    warnings: list[str] = []
    for name in members.names:
        if name in (old, new):
            continue
        streams = any(row["name"] == name and row["state"] == "streaming" for row in members.nodes[old]["downstreams"])
        if name in members.missing or not streams:
            told = f"{name} cannot be reached" if name in members.missing else f"{name} does not stream from {old}"
            (warnings if limits.accept_missing_members else problems).append(
                told
                + ("" if limits.accept_missing_members else " (postgresql_accept_missing_members=true goes without it)")
            )
    if problems:
        return refuse(*problems, old=old, new=new)
    others = [name for name in members.standbys if name != new]
    return Plan(
        "switch", old=old, new=new, standbys=[*others, old], rejoin=[old],
        since_lsn=members.nodes[new]["lsn"], warnings=warnings,
    )  # fmt: skip


def _resume(members: Members, target: str) -> Plan:
    """No member is a primary: an earlier move was killed between the stop and the promotion, or the primary is down."""
    silent = members.missing
    if silent:
        return refuse(
            f"nobody answers as the primary, and {', '.join(silent)} cannot be reached: playbooks/failover.yml"
        )
    newest = max((node["timeline"] or 0 for node in members.nodes.values()), default=0)
    former = [
        name
        for name in members.stopped
        if members.nodes[name]["database_cluster_state"] == "shut down" and members.nodes[name]["timeline"] == newest
    ]
    if len(former) != 1:
        return refuse(
            "nobody answers as the primary, and no single member was one until it was stopped in order: "
            "playbooks/failover.yml finds out what happened"
        )
    old = former[0]
    if old == target:
        return Plan("release", old=old, new=old, standbys=members.standbys, rejoin=_rejoinable(members, old))
    if target not in members.standbys:
        return refuse(f"{target} is no running standby, and {old}, the former primary, is stopped", old=old, new=target)
    after = members.nodes[old]["lsn"]
    if members.nodes[target]["replay_paused"] or wal.lsn(members.has(target)) <= wal.lsn(after):
        return Plan(
            "release", old=old, new=old, standbys=members.standbys,
            warnings=[f"{target} has not replayed all of {old}, so {old} serves again"],
        )  # fmt: skip
    others = [name for name in members.standbys if name != target]
    return Plan("promote", old=old, new=target, standbys=[*others, old], rejoin=[old], after_lsn=after)


def failover(names: Sequence[str], target: str | None, inspected: Inspected) -> Plan:
    """Decide what must be put out of action before one of the standbys may be promoted."""
    if target and target not in names:
        return refuse(f"postgresql_new_primary: got {target!r}, wants one of {', '.join(names)}")
    members = Members(names, inspected)
    problems = members.problems()
    if problems:
        return refuse(*problems)
    for name in members.answering:
        if target not in (None, name):
            return refuse(
                f"{name} is the primary and answers: playbooks/switchover.yml moves it to {target} without a loss"
            )
        standbys = [other for other in members.standbys if other != name]
        return Plan("none", new=name, standbys=standbys, rejoin=_rejoinable(members, name))
    candidates = [name for name in members.standbys if not members.fenced(name)]
    if target and target not in candidates:
        return refuse(f"{target} is no running standby; these are: {', '.join(candidates) or 'none'}")
    if not candidates:
        return refuse(
            "there is no running standby to promote. Start the former primary, or restore a backup: "
            + ", ".join(
                f"{name} ({'cannot be reached' if name in members.missing else _state(members, name)})"
                for name in names
            )
        )
    harmless = [name for name in members.nodes if name not in candidates and members.harmless(name)]
    fence = [name for name in members.nodes if name not in candidates + harmless]
    return Plan(
        "fail_over", new=target, candidates=candidates, fence=fence, unreachable=members.missing, harmless=harmless,
        old=_former(members, fence), lossless=_is_lossless(members, candidates),
    )  # fmt: skip


def _state(members: Members, name: str) -> str:
    node = members.nodes[name]
    return "fenced" if members.fenced(name) else (node["database_cluster_state"] or node["data"])


def _former(members: Members, fence: Sequence[str]) -> str | None:
    """Return who was the primary, where that can be told."""
    former = [*fence, *members.missing]
    return former[0] if len(former) == 1 else None


def _is_lossless(members: Members, candidates: Sequence[str]) -> bool:
    """Tell whether every acknowledged commit is on a standby that is seen: with ANY k of N, N-k+1 must be seen."""
    setting = members.nodes[candidates[0]]["synchronous_standby_names"] or ""
    count = int(setting.split()[1]) if setting.startswith("ANY ") else 0
    return bool(count) and len(candidates) >= len(members.names) - 1 - count + 1


def choose(inspected: Inspected, candidates: Sequence[str], target: str | None, ends: Sequence[str | None]) -> Plan:
    """Choose the most advanced candidate, now that no WAL arrives any more.

    ends: where the WAL of those that were fenced ends, null where that is not known.
    """
    members = Members(list(candidates), inspected)
    pending = [name for name in candidates if (inspected.get(name) or {}).get("promotion_pending")]
    if pending:
        return refuse(f"another run has begun to promote {', '.join(pending)}: run again when that is completed")
    gone = [name for name in candidates if name not in members.standbys]
    if gone:
        return refuse(f"{', '.join(gone)} answered as a standby a moment ago and does not any more: run again")
    order = sorted(
        candidates, key=lambda name: (members.nodes[name]["timeline"] or 0, wal.lsn(members.has(name))), reverse=True
    )
    best = order[0]
    new = target or best
    lacks = wal.lsn(members.has(best)) - wal.lsn(members.has(new))
    if members.nodes[new]["timeline"] != members.nodes[best]["timeline"] or lacks > 0:
        return refuse(f"{new} lacks {lacks} bytes that {best} has: let {best} be the new primary")
    upstream = wal.latest(*ends) if ends and all(ends) else None
    return Plan(
        "fail_over", new=new, standbys=[name for name in candidates if name != new], after_lsn=upstream,
    )  # fmt: skip


def restart(names: Sequence[str], inspected: Inspected, everything: bool) -> Plan:
    """Decide which members are restarted, and who is the primary meanwhile."""
    members = Members(names, inspected)
    problems = members.problems()
    if not members.primaries:
        problems.append("nobody answers as the primary")
    problems += [f"{name} cannot be reached" for name in members.missing]
    if problems:
        return refuse(*problems)
    primary = members.primaries[0]
    needs = [name for name in names if everything or needs_restart(members.nodes[name])]
    replicas = [name for name in needs if name != primary]
    silent = [name for name in replicas if name not in members.standbys]
    if silent:
        return refuse(f"{', '.join(silent)} do not run as standbys")
    others = [name for name in names if name != primary]
    if primary in needs and not others:
        return refuse(f"{primary} is the only member: restarting it is an outage, which is yours to choose")
    return Plan("restart" if needs else "none", old=primary if primary in needs else None, candidates=replicas,
                new=others[0] if primary in needs else None)  # fmt: skip


def needs_restart(node: Mapping[str, Any]) -> bool:
    """Tell whether a server runs with other settings or another program than it has been given."""
    return bool(node["settings_pending_restart"] or node["program_replaced"])


def table(names: Sequence[str], inspected: Inspected) -> list[str]:
    """Return one line about each member, for people."""
    members = Members(names, inspected)
    lines = []
    for name in names:
        node = members.nodes.get(name)
        if node is None:
            lines.append(f"{name}: cannot be reached")
            continue
        state = node["role"] or node["data"]
        if members.fenced(name):
            state = "out of action"
        elif not node["running"]:
            state = f"stopped ({node['role']})" if node["data"] == "present" else node["data"]
        elif node["role"] == "standby":
            state += f", {(node['upstream'] or {}).get('status') or 'receives nothing'}"
        lines.append(f"{name}: {state}, timeline {node['timeline']}, {members.has(name)}")
    return lines
