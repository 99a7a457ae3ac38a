# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a member is brought back, and whether it may be stopped for that."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_rejoin_plan as plan

NAMES = ["db1", "db2", "db3"]


def node(**more: Any) -> dict[str, Any]:
    return {
        "installed": True, "driver": "3.1.7", "data": "present", "running": True, "accepting": True, "role": "primary",
        "in_recovery": False, "standby_signal": False, "timeline": 1, "upstream": None, "other_managers": [],
        "system_identifier": "7", "start": "auto", "receive_lsn": None, "lsn": "0/1", "downstreams": [], "error": None,
        "slots": {"db2": {}, "db3": {}}, **more,
    }  # fmt: skip


def primary(timeline: int = 2) -> dict[str, Any]:
    return node(timeline=timeline)


def standby(timeline: int = 2, status: str = "streaming", **more: Any) -> dict[str, Any]:
    upstream = {"status": status, "timeline": timeline}
    return node(**{"role": "standby", "in_recovery": True, "timeline": timeline, "upstream": upstream, **more})


def stopped(**more: Any) -> dict[str, Any]:
    return node(running=False, accepting=False, in_recovery=None, **more)


HANGING = node(accepting=False, in_recovery=None)

ROWS: list[tuple[str, dict[str, Any], bool, tuple[str, str | None, str]]] = [
    ("a stopped former primary", {"db1": stopped(), "db2": primary()}, False, ("rejoin", "db2", "none")),
    ("a fenced one", {"db1": stopped(start="disabled"), "db2": primary()}, False, ("rejoin", "db2", "none")),
    ("an empty disk", {"db1": stopped(data="absent", role=None), "db2": primary()}, False, ("rejoin", "db2", "none")),
    ("beside a newer primary", {"db1": primary(1), "db2": primary(2)}, False, ("rejoin", "db2", "primary")),
    ("it hangs beside a newer primary", {"db1": HANGING, "db2": primary(2)}, False, ("rejoin", "db2", "primary")),
    ("beside one that is not newer", {"db1": primary(2), "db2": primary(2)}, False, ("refuse", "db2", "none")),
    ("the same, allowed by name", {"db1": primary(2), "db2": primary(2)}, True, ("rejoin", "db2", "primary")),
    ("beside an older one", {"db1": primary(3), "db2": primary(2)}, False, ("refuse", "db2", "none")),
    ("streams already", {"db1": standby(), "db2": primary()}, False, ("none", "db2", "none")),
    (
        "streams, and would not survive a reboot",
        {"db1": standby(start="disabled"), "db2": primary()},
        False,
        ("rejoin", "db2", "none"),
    ),
    (
        "streams, and nobody could follow it",
        {"db1": standby(slots={"db2": {}}), "db2": primary()},
        False,
        ("rejoin", "db2", "none"),
    ),
    ("waits for WAL", {"db1": standby(status="waiting"), "db2": primary()}, False, ("rejoin", "db2", "standby")),
    ("streams an old timeline", {"db1": standby(1), "db2": primary()}, False, ("rejoin", "db2", "standby")),
    ("no receiver", {"db1": standby(upstream=None), "db2": primary()}, False, ("rejoin", "db2", "standby")),
    ("the only primary", {"db1": primary(), "db2": standby()}, False, ("refuse", None, "none")),
    ("nobody is a primary", {"db1": stopped(), "db2": standby()}, True, ("refuse", None, "none")),
    ("two others are", {"db1": stopped(), "db2": primary(), "db3": primary()}, True, ("refuse", None, "none")),
    ("cannot be reached", {"db2": primary()}, False, ("refuse", None, "none")),
    ("another manager", {"db1": stopped(other_managers=["Patroni"]), "db2": primary()}, True, ("refuse", None, "none")),
    ("nothing installed", {"db1": stopped(installed=False), "db2": primary()}, False, ("refuse", None, "none")),
    ("no driver", {"db1": stopped(driver=None), "db2": primary()}, False, ("refuse", None, "none")),
]


@pytest.mark.parametrize(("nodes", "allowed", "wanted"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_rejoin(nodes: dict[str, Any], allowed: bool, wanted: tuple[str, str | None, str]) -> None:
    inspected = {name: {"node": found, "peers": {}} for name, found in nodes.items()}
    decision = plan.rejoin(NAMES, "db1", inspected, allowed)
    assert (decision.action, decision.primary, decision.stop) == wanted
    assert decision.reason


def test_a_primary_that_only_the_others_reach_counts() -> None:
    heard = {"state": "primary", "timeline": 2}
    inspected = {"db1": {"node": primary(1), "peers": {"db2": heard}}}
    decision = plan.rejoin(NAMES, "db1", inspected)
    assert (decision.action, decision.primary, decision.stop) == ("rejoin", "db2", "primary")


def test_an_unknown_member() -> None:
    decision = plan.rejoin(NAMES, "", {"db2": {"node": primary(), "peers": {}}})
    assert decision.action == "refuse" and "postgresql_member: got ''" in decision.reason
