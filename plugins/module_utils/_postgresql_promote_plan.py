# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""Whether a standby may become the primary, and whether a primary may be put out of action or back. Pure functions.

What cannot be known for sure is refused with a sentence that says why: a second primary is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_wal_plan as wal

# What the caller may accept, and what it may cost.
ACCEPT = ("data_loss", "paused_replay", "split_brain")

_ANY = re.compile(r"\s*ANY\s+(\d+)\s*\((.*)\)\s*", re.IGNORECASE)
_NAME = re.compile(r'\s*(?:"((?:[^"]|"")+)"|(\w+))\s*(?:,|$)')


@dataclass(frozen=True)
class Request:
    """What the caller knows and wants."""

    fenced: tuple[str, ...] = ()  # peers that were put out of action with proof
    handover_from: str | None = None  # the primary that is about to fence and stop itself
    after_lsn: str | None = None  # the shutdown checkpoint of the former primary
    upstream_lsn: str | None = None  # the last position the former primary is known to have written
    max_lag_bytes: int = 0
    accept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What is to be done: none, wait (it starts up) or promote."""

    action: str
    lag_bytes: int | None = None
    data_loss_bytes: int | None = None  # None: not known
    warnings: list[str] = field(default_factory=list)


def refuse_foreign(node: Mapping[str, Any]) -> None:
    """Refuse a node that something else manages, or that holds nothing of ours."""
    if node["other_managers"]:
        raise ValueError(
            f"{', '.join(node['other_managers'])} manages PostgreSQL on this host, and starts, stops and promotes it "
            "itself: two managers end in two primaries"
        )
    if node["data"] != "present":
        raise ValueError(f"there is no cluster in {node['data_directory']} (data: {node['data']})")


def judge_peers(
    node: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]], request: Request
) -> tuple[list[str], list[str]]:
    """Return why the peers forbid a promotion, and warnings about what the caller has accepted."""
    forbidden: list[str] = []
    unproven: list[str] = []
    for name, answer in peers.items():
        state = answer["state"]
        if state == "primary" and name != request.handover_from:
            forbidden.append(
                f"{name} answers as a primary" + (" although it is fenced" if name in request.fenced else "")
            )
        elif name == request.handover_from and state != "primary":
            forbidden.append(f"{name}, which is to hand over, is no primary ({_told(answer)})")
        elif state in ("starting", "rejected", "unreachable") and name not in request.fenced:
            unproven.append(f"{name} ({_told(answer)})")
        identifier = answer.get("system_identifier")
        if identifier and identifier != node["system_identifier"]:
            forbidden.append(f"{name} holds another cluster (system identifier {identifier})")
        if state == "standby" and (answer.get("timeline") or 0) > (node["timeline"] or 0):
            forbidden.append(f"{name} is on the newer timeline {answer['timeline']}, this server on {node['timeline']}")
    missing = set(request.fenced) | {request.handover_from} - {None}
    if not peers and not missing:
        unproven.append("no peers were named, so nobody was asked")
    warnings: list[str] = []
    if unproven:
        told = f"it cannot be proven that there is no other primary: {', '.join(unproven)}"
        (warnings if "split_brain" in request.accept else forbidden).append(told)
    return forbidden, warnings


def _told(answer: Mapping[str, Any]) -> str:
    error = (answer.get("error") or "").splitlines()
    return f"{answer['state']}: {error[-1]}" if error else str(answer["state"])


def decide(node: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]], request: Request) -> Decision:
    """Decide whether this server is promoted. Raises ValueError with the reasons when it may not be."""
    refuse_foreign(node)
    if not node["running"]:
        raise ValueError("the server is stopped: only a running standby can be promoted")
    if not node["accepting"]:
        return Decision("wait")
    if node["role"] == "primary":
        others = [name for name, answer in peers.items() if answer["state"] == "primary"]
        if others:
            raise ValueError(f"this server and {', '.join(others)} are primaries at the same time (split brain)")
        return Decision("none", 0, 0)

    reasons, warnings = judge_peers(node, peers, request)
    if node["start"] == "disabled":
        reasons.append("this member is fenced (start.conf says disabled): bring it back with playbooks/rejoin.yml")
    streaming = (node["upstream"] or {}).get("status") == "streaming"
    if request.handover_from and not streaming:
        reasons.append("it does not stream from the primary that is to hand over")
    for found, what in (
        (node["replay_paused"], "replay is paused"),
        (node["apply_delay_seconds"], "replay is delayed"),
    ):
        if found:
            told = f"{what} on this standby" + (f" by {found} s" if what.endswith("delayed") else "")
            (warnings if "paused_replay" in request.accept else reasons).append(told)
    lag, loss, told = judge_lag(node, request)
    if told:
        (warnings if "data_loss" in request.accept else reasons).append(told)
    if reasons:
        raise ValueError("; ".join(reasons))
    return Decision("promote", lag, loss, warnings)


def judge_lag(node: Mapping[str, Any], request: Request) -> tuple[int | None, int | None, str]:
    """Return the lag in bytes, what would be lost, and why that is too much."""
    has = wal.latest(node["receive_lsn"], node["lsn"])
    if request.handover_from:
        return None, 0, ""  # it waits for the very end
    if request.after_lsn:
        lag = max(0, wal.lsn(request.after_lsn) - wal.lsn(has))
        if wal.lsn(has) > wal.lsn(request.after_lsn):
            return 0, 0, ""
        return lag, lag, f"it has the WAL up to {has}, and the former primary ended after {request.after_lsn}"
    if request.upstream_lsn:
        lag = max(0, wal.lsn(request.upstream_lsn) - wal.lsn(has))
        told = (
            f"it lacks {lag} bytes: it has the WAL up to {has}, the former primary wrote up to {request.upstream_lsn}"
        )
        return lag, lag, told if lag > request.max_lag_bytes else ""
    return None, None, f"how much WAL it lacks is not known; it has {has}"


def synchronous(configured: str, current: str, standbys: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return what synchronous_standby_names must be so that commits return, and warnings.

    The value, the empty string included, overrides the configuration; 'configured' itself means that it can be met.
    None: written by somebody in a form that is not understood, left alone.
    """
    if not configured.strip():
        return configured, []
    match = _ANY.fullmatch(configured)
    if match is None:
        return None, [f"synchronous_standby_names is {configured!r}, and whether it can be met was not looked at"]
    count = int(match[1])
    names = [(quoted or plain).replace('""', '"') for quoted, plain in _NAME.findall(match[2])]
    there = [name for name in names if name in standbys]
    if len(there) >= count:
        return configured, []
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in there)
    value = f"ANY {len(there)} ({quoted})" if there else ""
    told = f"commits wait for {len(there)} instead of {count} standbys until there are more: {value or 'asynchronous'}"
    return value, [told] if value != current else []


@dataclass(frozen=True)
class FenceDecision:
    """What is to be done to a member: lock, stop_and_lock, unlock, stop_and_unlock or none."""

    action: str
    reason: str = ""


def decide_fence(node: Mapping[str, Any], locked: bool, planned: bool) -> FenceDecision:
    """Decide how a member is put out of action. Raises ValueError when it is not one to put out of action."""
    if node["other_managers"]:
        refuse_foreign(node)
    if node["data"] != "present":
        if node["running"]:
            raise ValueError(f"a server runs on {node['data_directory']}, which is no complete cluster")
        return FenceDecision("none", "there is no cluster that could be a primary")
    if not node["running"]:
        if planned:
            raise ValueError("the server is stopped, so it cannot hand over")
        return FenceDecision("none" if locked else "lock", "the server is stopped")
    if node["accepting"] and node["role"] == "standby":
        raise ValueError("the server is a standby and can accept no writes: a standby is not fenced")
    if planned and not node["accepting"]:
        raise ValueError(f"the server does not answer, so it cannot hand over: {node['error']}")
    return FenceDecision("stop_and_lock")


def decide_release(
    node: Mapping[str, Any],
    locked: bool,
    peers: Mapping[str, Mapping[str, Any]],
    accept: Sequence[str],
    locked_by_another: bool = False,
) -> FenceDecision:
    """Decide whether a fenced primary may serve again. Raises ValueError when somebody else may be the primary."""
    refuse_foreign(node)
    if locked_by_another:
        raise ValueError("another run has put it out of action, and settles who is the primary")
    if node["running"] and node["accepting"]:
        if node["role"] != "primary":
            raise ValueError("the server runs as a standby: a standby becomes a primary by postgresql_promote only")
        return FenceDecision("unlock" if locked else "none", "it is the primary and was never stopped")
    if node["database_cluster_state"] == "shut down in recovery":
        raise ValueError("the server was last a standby: it is not made a primary by starting it")
    for name, answer in peers.items():
        if answer["state"] == "primary":
            raise ValueError(f"{name} is the primary")
        if (answer.get("timeline") or 0) > (node["timeline"] or 0):
            raise ValueError(f"{name} is on the newer timeline {answer['timeline']}: somebody was promoted already")
    silent = [f"{name} ({_told(answer)})" for name, answer in peers.items() if answer["state"] != "standby"]
    if silent and "split_brain" not in accept:
        raise ValueError(f"it cannot be proven that nobody was promoted: {', '.join(silent)}")
    if node["running"]:
        return FenceDecision("stop_and_unlock", "it is neither up nor down")
    return FenceDecision("unlock" if locked else "none", "nobody was promoted")
