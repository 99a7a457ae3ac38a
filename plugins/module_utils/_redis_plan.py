# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who is the Redis master, and what one member has to do about it: pure functions over what every member answered."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UP = "up"
LOADING = "loading"  # reads its data from disk: it answers, but what it says about keys is not final
REFUSED = "refused"  # the host is there, no Redis listens at the address
UNREACHABLE = "unreachable"
DENIED = "denied"  # a Redis that does not know this user or password, or whose certificate is not believed

MASTER = "master"
REPLICA = "replica"

STAY = "stay"
FOLLOW = "follow"
PROMOTE = "promote"
WAIT = "wait"
REFUSE = "refuse"

# What a new node follows until every member was asked. Nothing listens there.
NOBODY = ("127.0.0.1", 1)


@dataclass(frozen=True)
class Node:
    """One member, as it answered. Members that did not answer have a state and nothing else."""

    name: str
    address: str
    state: str
    role: str = ""
    master_address: str = ""
    master_port: int = 0
    link_up: bool = False
    replicas: int = 0
    keys: int = 0
    offset: int = 0
    history: str = ""  # master_replid: only offsets of the same history can be compared
    detail: str = ""

    @property
    def is_master(self) -> bool:
        return self.state == UP and self.role == MASTER

    @property
    def is_replica(self) -> bool:
        return self.state == UP and self.role == REPLICA

    @property
    def is_blank(self) -> bool:
        """Nothing is lost when this node drops what it has: no key in any database, and nobody follows it."""
        return self.keys == 0 and self.replicas == 0


@dataclass(frozen=True)
class Decision:
    """What the asking member has to do. O(master) is the name of the master, empty while there is none."""

    action: str
    master: str
    reason: str


def _names(nodes: Sequence[Node]) -> str:
    return ", ".join(f"{node.name} ({node.address})" for node in nodes)


def find_master(nodes: Sequence[Node], chosen: str = "") -> Node | None:
    """The one live master, None when there is none. Raises ValueError when there is more than one.

    chosen is the address that a majority of the Sentinels names: of two masters with data it tells the right one. A
    former master that comes back believes for some ten seconds that it still is the master.
    """
    masters = [node for node in nodes if node.is_master]
    real = [node for node in masters if not node.is_blank]
    if len(real) > 1:
        for node in real:
            if node.address == chosen:
                return node
        what = "; ".join(
            f"{node.name} ({node.address}) has {node.keys} keys and {node.replicas} replicas" for node in real
        )
        raise ValueError(
            f"{len(real)} members say that they are the master: {what}. Nothing is changed, because one of them would "
            "lose its data. Choose one, and run on each other one: REPLICAOF <address of the chosen one> <port>, "
            "CONFIG REWRITE"
        )
    if real:
        return real[0]
    # Only blank masters are left. While a replica holds data none of them may win: it would wipe that replica.
    if not masters or any(node.is_replica and node.keys > 0 for node in nodes):
        return None
    return masters[0]


def best_heir(nodes: Sequence[Node], initial_master: str) -> Node:
    """The member that loses nothing when it becomes the master. Every member must be up and none a master with data."""
    ordered = sorted(nodes, key=lambda node: node.name != initial_master)  # stable: then in the order of the inventory
    holders = [node for node in ordered if node.keys > 0]
    if not holders:
        return ordered[0]
    if len({node.history for node in holders}) > 1:
        what = "; ".join(f"{node.name} ({node.address}) has {node.keys} keys" for node in holders)
        raise ValueError(
            f"No member is the master, and these hold data that cannot be compared: {what}. Choose one, and run on it: "
            "REPLICAOF NO ONE, CONFIG REWRITE. The next run lets the others follow it"
        )
    return max(holders, key=lambda node: node.offset)  # the first one of equals


def decide(nodes: Sequence[Node], own_name: str, initial_master: str, chosen: str = "") -> Decision:
    """What the member named own_name has to do, given what all members answered (in the order of the inventory).

    While a majority of the Sentinels watches the tier (chosen, see find_master), they alone choose and demote masters.
    """
    by_name = {node.name: node for node in nodes}
    if own_name not in by_name:
        raise ValueError(f"'{own_name}' is not one of the members: {', '.join(by_name)}")
    if initial_master not in by_name:
        raise ValueError(f"initial_master is '{initial_master}', wanted one of the members: {', '.join(by_name)}")
    me = by_name[own_name]
    in_order = sorted(nodes, key=lambda node: node.name != initial_master)
    try:
        master = find_master(in_order, chosen)
    except ValueError as error:
        return Decision(REFUSE, "", str(error))

    if master is not None:
        if master.name == me.name:
            return Decision(STAY, me.name, "this node is the master")
        if me.is_replica and me.master_address == master.address:
            return Decision(STAY, master.name, f"follows {master.name}" + ("" if me.link_up else ", the link is down"))
        if me.is_replica and me.link_up and any(me.master_address == node.address for node in nodes):
            return Decision(STAY, master.name, f"follows {me.master_address}, another replica")
        if me.is_master and not me.is_blank:
            return Decision(WAIT, master.name, f"the Sentinels chose {master.name} and make this node its replica")
        return Decision(FOLLOW, master.name, f"{master.name} is the master")

    silent = [node for node in nodes if node.state != UP]
    if silent:
        what = "; ".join(f"{node.name} ({node.address}) is {node.state}" for node in silent)
        reason = f"no member is the master and not all could be asked: {what}"
        # A replica that has lost its master keeps its data and waits for it.
        has_somebody = me.is_replica and any(me.master_address == node.address for node in silent)
        return Decision(STAY if has_somebody else WAIT, "", reason)
    if chosen:
        return Decision(WAIT, "", f"no member is the master; the Sentinels, which watch {chosen}, choose the next one")
    try:
        heir = best_heir(nodes, initial_master)
    except ValueError as error:
        return Decision(REFUSE, "", str(error))
    if heir.name == me.name:
        return Decision(PROMOTE, me.name, "all members answered, none is the master, and this one loses nothing")
    if me.is_master:
        return Decision(FOLLOW, heir.name, f"this node has no data and {heir.name} has")
    return Decision(WAIT, heir.name, f"all members answered, none is the master: {heir.name} has to become it")


def topology_seed(nodes: Sequence[Node], own_name: str, port: int, initial_master: str, chosen: str = "") -> str:
    """The replicaof line with which the topology file of a node begins, empty for the master.

    A node that is not running yet never begins as a master: it follows the live one, or nobody until all were asked.
    """
    me = next(node for node in nodes if node.name == own_name)
    if me.is_master:
        return ""
    if me.is_replica:
        return f"replicaof {me.master_address} {me.master_port}"
    decision = decide(nodes, own_name, initial_master, chosen)
    if decision.master and decision.master != own_name:
        address = next(node.address for node in nodes if node.name == decision.master)
        return f"replicaof {address} {port}"
    return f"replicaof {NOBODY[0]} {NOBODY[1]}"


def parse_info(text: str) -> dict[str, str]:
    """The fields of an INFO reply."""
    lines = (line for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return {line.split(":", 1)[0]: line.split(":", 1)[1] for line in lines}


def node_from_info(name: str, address: str, info: Mapping[str, str]) -> Node:
    """What an INFO reply says about the node that gave it."""
    if "role" not in info:
        raise ValueError("the INFO reply has no field 'role': may this user run INFO?")
    replica = info["role"] != "master"
    keys = 0
    for field, value in info.items():
        if re.fullmatch(r"db\d+", field):
            keys += int(dict(part.split("=", 1) for part in value.split(","))["keys"])
    return Node(
        name=name,
        address=address,
        state=LOADING if info.get("loading", "0") != "0" else UP,
        role=REPLICA if replica else MASTER,
        master_address=info.get("master_host", "") if replica else "",
        master_port=int(info.get("master_port", "0")) if replica else 0,
        link_up=replica and info.get("master_link_status") == "up",
        replicas=int(info.get("connected_slaves", "0")),
        keys=keys,
        offset=int(info.get("slave_repl_offset" if replica else "master_repl_offset", "0")),
        history=info.get("master_replid", ""),
    )


def parse_settings(text: str) -> dict[str, str]:
    """The settings of a Redis configuration file without includes; the last line of a name counts, as in Redis."""
    settings = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            name, *values = shlex.split(line, comments=False)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None  # without the line: it may hold a password
        settings[name.lower()] = " ".join(values)
    return settings


_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}


def _normal(value: str) -> str:
    """A value as it can be compared: amounts of memory in bytes."""

    def in_bytes(word: str) -> str:
        match = re.fullmatch(r"(\d+)([kmg]?b?)", word.lower())
        return str(int(match[1]) * _UNITS[match[2]]) if match else word

    return " ".join(in_bytes(word) for word in value.split(" "))


def settings_to_set(wanted: Mapping[str, str], running: Mapping[str, str]) -> dict[str, str]:
    """The wanted settings that differ from the running ones. Raises ValueError for a name that Redis does not know."""
    unknown = sorted(set(wanted) - set(running))
    if unknown:
        raise ValueError(f"this Redis does not know the settings {', '.join(unknown)}")
    return {name: value for name, value in wanted.items() if _normal(value) != _normal(running[name])}


def parse_users(text: str) -> dict[str, list[str]]:
    """The users of an ACL file and their rules."""
    users = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2 or words[0] != "user":
            raise ValueError(f"line {number} of the ACL file does not begin with 'user <name>'")
        users[words[1]] = words[2:]
    return users
