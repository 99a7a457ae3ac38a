# SPDX-License-Identifier: GPL-3.0-or-later
"""How long Django cannot write while the primary moves: switchover.yml against the same move made by hand.

By hand means nothing but a fast stop and pg_promote, one right after the other, without any check: the floor. Both are
measured in turns on the same hosts, by a client on two nodes that writes all the time through Django's own settings.
"""

from __future__ import annotations

import statistics
import time
from typing import Protocol

from tests.cluster import Lab, wait_until
from tests.writes import switch_by_hand, writing

MEMBERS = ["db1", "db2", "db3"]
LIMIT_SECONDS, LIMIT_RATIO = 1.0, 3.0


class Results(Protocol):
    """Where the figures go."""

    def add(self, name: str, figures: str, ratio: str, good: bool) -> None: ...


def primary(lab: Lab) -> str:
    """The member that accepts writes."""
    return next(name for name in MEMBERS if lab.sql(name, "SELECT pg_is_in_recovery()") == "f")


def all_stream(lab: Lab) -> bool:
    query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    return lab.sql(primary(lab), query) == str(len(MEMBERS) - 1)


def switchover(lab: Lab, results: Results, rounds: int) -> None:
    """Print the median write gap of both, asynchronous and with one synchronous standby."""
    for standbys in (0, 1):
        setting = ("-e", f"postgresql_synchronous_standbys={standbys}")
        site = lab.playbook(*setting, "--limit", "postgresql", "--tags", "postgresql")
        if site.returncode:
            raise SystemExit(site.output[-3000:])
        ours: list[float] = []
        floor: list[float] = []
        lost = 0
        for number in range(2 * rounds):
            wait_until(lambda: all_stream(lab), 60, "all members stream")
            old = primary(lab)
            new = MEMBERS[(MEMBERS.index(old) + 1) % len(MEMBERS)]
            by_hand = number % 2 == 1
            with writing(lab, f"bench-{time.time()}") as writes:
                if by_hand:
                    switch_by_hand(lab, old, new)
                else:
                    moved = lab.playbook(
                        *setting, "-e", f"postgresql_new_primary={new}", playbook="playbooks/switchover.yml"
                    )
                    if moved.returncode:
                        raise SystemExit(moved.output[-3000:])
            (floor if by_hand else ours).extend(writes.gaps)
            lost += 0 if by_hand else len(writes.lost(lab, new))
        gap, least = statistics.median(ours), statistics.median(floor)
        title = f"write gap of a switch-over, {standbys} synchronous standbys, {lost} lost"
        results.add(
            title, f"{gap:.2f} s / {least:.2f} s", f"{gap / least:.2f}",
            gap <= LIMIT_SECONDS and gap / least <= LIMIT_RATIO and lost == 0,
        )  # fmt: skip
    lab.playbook("--limit", "postgresql", "--tags", "postgresql")
