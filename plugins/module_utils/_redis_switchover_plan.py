# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the Redis master may be moved to another member: pure functions over what all of them answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.flotilla.django.plugins.module_utils._redis_plan import UP, Node, find_master
from ansible_collections.flotilla.django.plugins.module_utils._redis_sentinel_plan import Sentinel, chosen_master

DONE = "done"
MOVE = "move"
REFUSE = "refuse"

# Sentinel takes the replica of the lowest priority, 0 excepted: that one never. 100 is Redis' and the role's default.
CHOSEN_PRIORITY = 1
DEFAULT_PRIORITY = 100


@dataclass(frozen=True)
class Move:
    """What has to be done. `old` is empty unless something moves."""

    action: str
    reasons: tuple[str, ...] = ()
    old: str = ""


def decide(nodes: Sequence[Node], sentinels: Sequence[Sentinel], new: str) -> Move:
    """Whether the member named new may become the master, given what all Redis and all Sentinels answered."""
    names = [node.name for node in nodes]
    if new not in names:
        return Move(REFUSE, (f"the new master is '{new}', wanted one of the members: {', '.join(names)}",))
    try:
        master = find_master(nodes, chosen_master(sentinels))
    except ValueError as error:
        return Move(REFUSE, (str(error),))
    if master is None:
        return Move(REFUSE, ("no member is the master: this is not the time for a planned move",))
    reasons = []
    for sentinel in sentinels:
        where = f"the Sentinel on {sentinel.name} ({sentinel.address})"
        if sentinel.state != UP:
            reasons.append(f"{where} is {sentinel.state}: {sentinel.detail}")
        elif not sentinel.watches:
            reasons.append(f"{where} watches no master; run site.yml")
        elif sentinel.master_address != master.address:
            reasons.append(f"{where} takes {sentinel.master_address} for the master, and it is {master.address}")
        elif not sentinel.is_calm:
            reasons.append(f"{where} sees the master as {', '.join(sentinel.flags)}")
    for node in nodes:
        where = f"Redis on {node.name} ({node.address})"
        if node.state != UP:
            reasons.append(f"{where} is {node.state}: {node.detail}")
        elif node.name != master.name and not (node.is_replica and node.link_up):
            reasons.append(f"{where} is not in step with the master")
        elif node.name != master.name and node.master_address != master.address:
            reasons.append(f"{where} follows {node.master_address}, and the master is {master.address}")
    if reasons:
        return Move(REFUSE, tuple(reasons))
    return Move(DONE) if master.name == new else Move(MOVE, (), master.name)


def priorities_to_set(priorities: dict[str, int], new: str) -> dict[str, int]:
    """The priorities with which Sentinel takes the member named new. An earlier move may have been interrupted."""
    wanted = {new: CHOSEN_PRIORITY}
    wanted |= {name: DEFAULT_PRIORITY for name, value in priorities.items() if name != new and value == CHOSEN_PRIORITY}
    return {name: value for name, value in wanted.items() if priorities[name] != value}


def priorities_to_restore(priorities: dict[str, int]) -> dict[str, int]:
    return {name: DEFAULT_PRIORITY for name, value in priorities.items() if value == CHOSEN_PRIORITY}
