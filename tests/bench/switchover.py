# SPDX-License-Identifier: GPL-3.0-or-later
"""How long Django cannot write while the primary moves.

Measured by a client on two nodes that writes all the time through Django's own settings.

Planned: switchover.yml against the same move made by hand, in turns on the same hosts. By hand means nothing but a fast
stop and pg_promote, one right after the other, without any check: the floor.

After a crash: failover.yml does not begin by itself. The bench starts it at once; in earnest, the time until the
operator starts it comes on top.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tests.cluster import Lab, wait_until
from tests.writes import Writes, switch_by_hand, writing

MEMBERS = ["db1", "db2", "db3"]
NODES = ["app1", "app2", "app3"]
LIMIT_SECONDS, LIMIT_RATIO = 1.0, 3.0

# What happens to a primary: it moves as planned, only its server dies, or the whole host.
SWITCHOVER, KILLED, DEAD = "switch-over", "postgres killed (kill -9)", "host dead"


class Results(Protocol):
    """Where the figures go."""

    def add(self, name: str, figures: str, ratio: str, good: bool) -> None: ...


@dataclass
class Measured:
    """What several moves of one kind did to Django."""

    gaps: list[float] = field(default_factory=list)
    lost: int = 0

    def add(self, lab: Lab, writes: Writes, server: str) -> None:
        """Two nodes' gaps, and what they were told and is not on the server that is the primary now."""
        self.gaps += writes.gaps
        self.lost += len(writes.lost(lab, server))

    @property
    def gap(self) -> float:
        return statistics.median(self.gaps)

    def __str__(self) -> str:
        return f"{self.gap:.2f} s ({min(self.gaps):.1f}-{max(self.gaps):.1f})"


# By what was done to the primary and the number of synchronous standbys.
Moves = dict[tuple[str, int], Measured]


def primary(lab: Lab, members: Sequence[str] = MEMBERS) -> str:
    """The member that accepts writes."""
    return next(name for name in members if lab.sql(name, "SELECT pg_is_in_recovery()") == "f")


def all_stream(lab: Lab) -> bool:
    query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    return lab.sql(primary(lab), query) == str(len(MEMBERS) - 1)


def others(member: str) -> list[str]:
    return [name for name in MEMBERS if name != member]


def play(lab: Lab, *arguments: str, playbook: str = "site.yml") -> str:
    done = lab.playbook(*arguments, playbook=playbook)
    if done.returncode:
        raise SystemExit(done.output[-3000:])
    return done.output


def converge(lab: Lab, *setting: str) -> None:
    play(lab, *setting, "--limit", "postgresql", "--tags", "postgresql")


def switchover(lab: Lab, results: Results, rounds: int) -> Moves:
    """Print the median write gap of both, asynchronous and with one synchronous standby."""
    moves: Moves = {}
    for standbys in (0, 1):
        setting = ("-e", f"postgresql_synchronous_standbys={standbys}")
        converge(lab, *setting)
        ours, floor = Measured(), Measured()
        for number in range(2 * rounds):
            wait_until(lambda: all_stream(lab), 60, "all members stream")
            old = primary(lab)
            new = MEMBERS[(MEMBERS.index(old) + 1) % len(MEMBERS)]
            by_hand = number % 2 == 1
            with writing(lab, f"bench-{time.time()}") as writes:
                if by_hand:
                    switch_by_hand(lab, old, new)
                else:
                    play(lab, *setting, "-e", f"postgresql_new_primary={new}", playbook="playbooks/switchover.yml")
            (floor if by_hand else ours).add(lab, writes, new)
        results.add(
            f"write gap of a switch-over, {standbys} synchronous standbys, {ours.lost} lost",
            f"{ours.gap:.2f} s / {floor.gap:.2f} s", f"{ours.gap / floor.gap:.2f}",
            ours.gap <= LIMIT_SECONDS and ours.gap / floor.gap <= LIMIT_RATIO and ours.lost == 0,
        )  # fmt: skip
        moves[SWITCHOVER, standbys] = ours
    converge(lab)
    return moves


def breaks(lab: Lab, kind: str, host: str) -> None:
    """Let a primary die. What it answered is with the clients a second later; nothing can come from it after that."""
    if kind == DEAD:
        lab.tool("kill", host)
    else:
        lab.ssh(host, "pkill -9 -x postgres")


def failover(lab: Lab, results: Results, rounds: int) -> Moves:
    """Print the median write gap after a crash, from the death and from the start of failover.yml, and the loss."""
    moves: Moves = {}
    for host in [*MEMBERS, *NODES]:  # a standard Debian has it, and these cut themselves off from a host that is dead
        lab.ssh(host, "command -v nft || DEBIAN_FRONTEND=noninteractive apt-get install -qy nftables")
    for kind, standbys, times in ((KILLED, 0, rounds), (KILLED, 1, rounds), (DEAD, 1, 1)):
        setting = ("-e", f"postgresql_synchronous_standbys={standbys}")
        converge(lab, *setting)
        measured = Measured()
        waits: list[float] = []
        reported = 0
        for _ in range(times):
            wait_until(lambda: all_stream(lab), 60, "all members stream")
            old = primary(lab)
            with writing(lab, f"bench-{time.time()}") as writes:
                breaks(lab, kind, old)
                started = time.time()
                output = play(lab, *setting, playbook="playbooks/failover.yml")
            reported += sum(int(told) for told in re.findall(r"data_loss_bytes: (\d+)", output)[:1])
            measured.add(lab, writes, primary(lab, others(old)))
            waits += [
                min(write.ended for write in told if write.began > started) - started for told in writes.told.values()
            ]
            if kind == DEAD:
                lab.tool("start", old)
            play(lab, *setting, "-e", f"postgresql_member={old}", playbook="playbooks/rejoin.yml")
        results.add(
            f"{kind}, failover.yml at once, {standbys} synchronous, {measured.lost} lost ({reported} bytes told)",
            f"{measured.gap:.2f} s", f"{statistics.median(waits):.2f} s from its start",
            measured.lost == 0 or standbys == 0,
        )  # fmt: skip
        moves[kind, standbys] = measured
    converge(lab)
    return moves
