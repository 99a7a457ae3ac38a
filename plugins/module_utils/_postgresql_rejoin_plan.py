# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""Whether and how a member is brought back as a standby. Pure functions over what the members said.

What becomes of its data is not decided here but on the member, by postgresql_standby.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_settings_plan as settings_plan
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_switch_plan as switch_plan


@dataclass(frozen=True)
class Plan:
    """What is to be done, and why not."""

    action: str  # none | rejoin | refuse
    member: str
    primary: str | None = None
    stop: str = "none"  # none | primary (it accepts writes: put out of action, with proof) | standby
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for Ansible."""
        return asdict(self)


def _timeline(members: switch_plan.Members, name: str) -> int:
    """Return a member's timeline, by itself or by what the others heard from it."""
    node = members.nodes.get(name) or {}
    heard = [answer.get("timeline") or 0 for answer in members.answers(name).values()]
    return max([node.get("timeline") or 0, *heard])


def _stop(members: switch_plan.Members, member: str, primary: str, stop_primary: bool) -> Plan:
    """Decide about a member that accepts writes beside the primary."""
    own, newer = _timeline(members, member), _timeline(members, primary)
    if newer > own or stop_primary:
        reason = f"{member} runs as a second primary, on timeline {own}, beside {primary} on {newer}"
        return Plan("rejoin", member, primary, "primary", reason)
    return Plan(
        "refuse",
        member,
        primary,
        reason=f"{member} runs as a primary on timeline {own}, and {primary} on {newer}, which is not newer: which "
        f"of them holds the truth is for you to say. If {primary} does, postgresql_stop_second_primary=true stops "
        f"{member}",
    )


def rejoin(
    names: Sequence[str],
    member: str,
    inspected: Mapping[str, Mapping[str, Any]],
    stop_primary: bool = False,
) -> Plan:
    """Decide how the member comes back. stop_primary: it may be stopped although nothing proves it wrong."""
    if member not in names:
        return Plan("refuse", member, reason=f"postgresql_member: got {member!r}, wants one of {', '.join(names)}")
    members = switch_plan.Members(names, inspected)
    node = members.nodes.get(member)
    if node is None:
        return Plan("refuse", member, reason=f"{member} cannot be reached")
    if node["other_managers"]:
        managers = ", ".join(node["other_managers"])
        return Plan("refuse", member, reason=f"{member} is managed by {managers}, which brings it back itself")
    if not node["installed"] or not node["driver"]:
        return Plan(
            "refuse", member, reason=f"PostgreSQL is not installed on {member}: site.yml does that, and clones it"
        )
    others = [name for name in members.primaries if name != member]
    if len(others) > 1:
        return Plan(
            "refuse",
            member,
            reason=f"split brain: {', '.join(others)} are primaries at the same time. Bring the wrong one back first",
        )
    if not others:
        silent = f" {', '.join(members.missing)} cannot be reached." if members.missing else ""
        why = (
            f"{member} is the primary itself, and there is no other to follow"
            if members.is_primary(member)
            else f"no member answers as the primary.{silent} playbooks/failover.yml makes one"
        )
        return Plan("refuse", member, reason=why)
    primary = others[0]
    if members.is_primary(member):
        return _stop(members, member, primary, stop_primary)
    if not node["running"]:
        return Plan("rejoin", member, primary, "none", f"{member} is stopped, and {primary} is the primary")
    upstream = node["upstream"] or {}
    streams = upstream.get("status") == "streaming" and upstream.get("timeline") == _timeline(members, primary)
    if not streams:
        return Plan("rejoin", member, primary, "standby", f"{member} runs and does not stream from {primary}")
    if node["start"] == "disabled":
        return Plan("rejoin", member, primary, "none", f"{member} streams from {primary}, but would not start again")
    # Without them nobody could follow it, were it promoted: a run was interrupted between its start and the slots.
    lacking = [name for name in names if name != member and settings_plan.slot_name(name) not in node["slots"]]
    if lacking:
        reason = f"{member} streams from {primary}, but has no replication slots for {', '.join(lacking)}"
        return Plan("rejoin", member, primary, "none", reason)
    return Plan("none", member, primary, reason=f"{member} streams from {primary} already")
