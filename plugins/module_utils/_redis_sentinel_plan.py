# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the Sentinels of a Redis tier say, and what one of them has to be told: pure functions."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.flotilla.django.plugins.module_utils._redis_plan import UP

# The name under which the Sentinels watch the tier's master, and under which clients ask for it.
WATCHED = "flotilla"

# After so long a failover that does not come to its end is given up; twice as long after it began the next one may
# begin. Redis' own 180000 would leave a tier without a master for six minutes when two Sentinels voted for themselves.
FAILOVER_TIMEOUT_MS = 15000


@dataclass(frozen=True)
class Peer:
    """Another Sentinel, or a replica, as a Sentinel knows it."""

    address: str
    port: int
    run_id: str = ""
    priority: int = 100
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sentinel:
    """One Sentinel, as it answered. One that did not answer has a state and nothing else."""

    name: str
    address: str
    state: str
    run_id: str = ""
    master_address: str = ""  # empty while it watches nothing
    flags: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    peers: tuple[Peer, ...] = ()
    replicas: tuple[Peer, ...] = ()
    detail: str = ""

    @property
    def watches(self) -> bool:
        return self.state == UP and bool(self.master_address)

    @property
    def is_calm(self) -> bool:
        """It sees its master up, and no failover goes on."""
        return self.watches and self.flags == ("master",)


@dataclass(frozen=True)
class Wanted:
    """How the Sentinel of one host should be."""

    members: int
    user: str
    password: str
    down_after_ms: int

    @property
    def settings(self) -> dict[str, str]:
        """By the names that SENTINEL SET takes and SENTINEL MASTER shows."""
        return {
            "quorum": str(majority(self.members)),
            "down-after-milliseconds": str(self.down_after_ms),
            "failover-timeout": str(FAILOVER_TIMEOUT_MS),
            "parallel-syncs": "1",
        }


def majority(members: int) -> int:
    return members // 2 + 1


def chosen_master(sentinels: Sequence[Sentinel]) -> str:
    """The address that a majority of all Sentinels names as the master's, empty when there is none."""
    named = [sentinel.master_address for sentinel in sentinels if sentinel.watches]
    for address in dict.fromkeys(named):
        if named.count(address) >= majority(len(sentinels)):
            return address
    return ""


def stored(text: str) -> dict[str, str]:
    """What a Sentinel has written down about itself and the watched master. It shows no password when it is asked."""
    found = {}
    for line in text.splitlines():
        try:
            words = shlex.split(line)
        except ValueError:
            continue  # a password in there is none that this collection has set: it counts as missing
        if len(words) < 3 or words[0].lower() != "sentinel":
            continue
        if len(words) == 3:
            found[words[1]] = words[2]
        elif words[2] == WATCHED and words[1] != "monitor":
            found[words[1]] = words[3]
    return found


def is_foreign(text: str, address: str) -> bool:
    """Whether the file of a Sentinel was copied from another host: it would answer with that one's id."""
    return bool(text) and stored(text).get("announce-ip") != address


def own_commands(wanted: Wanted, on_disk: Mapping[str, str]) -> list[tuple[str, ...]]:
    """How it logs in at the others."""
    values = {"sentinel-user": wanted.user, "sentinel-pass": wanted.password}
    return [("SENTINEL", "CONFIG", "SET", name, value) for name, value in values.items() if on_disk.get(name) != value]


def watch_commands(
    own: Sentinel, wanted: Wanted, on_disk: Mapping[str, str], master: str, port: int
) -> list[tuple[str, ...]]:
    """What it has to be told about the master, whose address is only needed while it watches nothing."""
    commands: list[tuple[str, ...]] = []
    if not own.watches:
        if not master:
            return []
        commands.append(("SENTINEL", "MONITOR", WATCHED, master, str(port), wanted.settings["quorum"]))
        on_disk = {}
    login = {"auth-user": wanted.user, "auth-pass": wanted.password}
    values = {name: value for name, value in login.items() if on_disk.get(name) != value}
    values |= {name: value for name, value in wanted.settings.items() if own.settings.get(name) != value}
    return commands + [("SENTINEL", "SET", WATCHED, name, value) for name, value in values.items()]


def names_of(commands: Iterable[Sequence[str]]) -> list[str]:
    """What commands are about, without values: they may hold a password."""
    return [command[3] if command[1] in ("SET", "CONFIG") else command[1].lower() for command in commands]


def strangers(own: Sentinel, addresses: Iterable[str]) -> list[str]:
    """The addresses of Sentinels and replicas that it still counts although they are no members any more."""
    known = set(addresses)
    return sorted({peer.address for peer in (*own.peers, *own.replicas)} - known)


def twins(own: Sentinel, sentinels: Iterable[Sentinel]) -> list[str]:
    """The other members whose Sentinel has the same id. They take each other for themselves and never agree."""
    return [other.name for other in sentinels if other.name != own.name and own.run_id and other.run_id == own.run_id]


def unsettled(own: Sentinel, sentinels: Sequence[Sentinel], master: str) -> list[str]:
    """What still keeps it from standing in for a failover, given the address of the live master."""
    if not own.watches:
        return ["it watches no master"]
    reasons = []
    if own.master_address != master:
        reasons.append(f"it watches {own.master_address}, and the master is {master or 'nobody'}")
    known = {peer.run_id for peer in own.peers}
    for other in sentinels:
        if other.name != own.name and other.watches and other.run_id not in known:
            reasons.append(f"it has not found the Sentinel of {other.name} ({other.address}) yet")
    return reasons
