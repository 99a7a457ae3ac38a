# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock and journal of deploys, in a real file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Lock = Callable[..., dict[str, Any]]


@pytest.fixture
def lock(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> Lock:
    """Runs the module for the owner of this name."""

    def run(state: str, owner: str = "anna", **options: Any) -> dict[str, Any]:
        path = str(tmp_path / "deploy.json")
        return run_module("deploy_lock", {"state": state, "owner": {"id": owner}, "path": path, **options})

    return run


def test_one_at_a_time_and_the_other_is_told_by_whom(lock: Lock) -> None:
    assert not lock("held", phase="switch", nodes=["app1"])["failed"]
    refused = lock("held", "bert")
    assert refused["failed"]
    assert "anna" in refused["msg"] and "working at app1" in refused["msg"]
    assert lock("free", "bert")["lock"]["id"] == "anna", "nobody gives back what another one holds"
    assert not lock("held", "bert", take_over="anna")["failed"]


def test_what_is_left_stays_on_record(lock: Lock) -> None:
    lock("held", nodes=["app1", "app2"], former_releases={"app1": "one"}, release="zero")
    assert lock("free", nodes=["app2"], former_releases={"app1": "one"})["lock"] == {
        "nodes": ["app2"],
        "former_releases": {"app1": "one"},
        "release": "zero",
    }
    taken = lock("held", "bert")
    assert taken["lock"] | {"nodes": ["app2"], "release": "zero"} == taken["lock"]
    assert lock("held", "bert", nodes=[], release="")["lock"]["release"] == ""
    assert lock("free", "bert")["lock"] == {}
    assert lock("read")["lock"] == {}


def test_who_switches_a_node_in_between_forgets_no_other_one(lock: Lock) -> None:
    lock("held", nodes=["app2"], release="zero")
    lock("free", nodes=["app2"])
    taken = lock("held", "site", nodes=["app1"], keep_nodes=True)
    assert taken["lock"]["nodes"] == ["app1", "app2"]
    assert lock("held", "site", nodes=["app2"], keep_nodes=True)["lock"]["nodes"] == ["app2", "app1"], "each once"
    assert lock("free", "site", nodes=["app2"])["lock"]["nodes"] == ["app2"]
