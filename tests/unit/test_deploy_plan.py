# SPDX-License-Identifier: GPL-3.0-or-later
"""What a deploy decides: the order, whether it may begin, where a rollback leads, whose lock it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.filter import deploy as filters
from ansible_collections.flotilla.django.plugins.lookup import deploy_controller
from ansible_collections.flotilla.django.plugins.module_utils import _deploy_plan as plan

NODES = ["app1", "app2", "app3", "app4"]


@pytest.mark.parametrize(
    ("size", "first", "wanted"),
    [
        (1, [], [["app1"], ["app2"], ["app3"], ["app4"]]),
        (2, [], [["app1"], ["app2", "app3"], ["app4"]]),
        ("50%", [], [["app1"], ["app2", "app3"], ["app4"]]),
        ("1%", [], [["app1"], ["app2"], ["app3"], ["app4"]]),
        (9, [], [["app1"], ["app2", "app3", "app4"]]),
        (1, ["app3", "app2"], [["app2", "app3"], ["app1"], ["app4"]]),
        (1, NODES, [NODES]),
    ],
)
def test_one_node_alone_comes_before_the_batches_and_what_is_out_of_service_before_all(
    size: Any, first: list[str], wanted: list[list[str]]
) -> None:
    assert plan.batches(NODES, size, first) == wanted


@pytest.mark.parametrize("size", [0, -1, "0%", "101%", "all", "", True, 1.5, None])
def test_a_batch_size_that_is_none_is_refused_by_name(size: Any) -> None:
    with pytest.raises(ValueError, match="deploy_batch: got "):
        plan.batches(NODES, size)


SETTINGS: dict[str, Any] = {
    "deploy_batch": 1,
    "deploy_on_failure": "rollback",
    "deploy_min_healthy": 1,
    "deploy_drain_timeout": 60,
    "deploy_drain_on_timeout": "fail",
    "deploy_ready_timeout": "60",
    "deploy_soak": 2.5,
    "deploy_canary_soak": 2,
    "deploy_soak_errors": "5%",
    "deploy_lock_wait": 0,
    "deploy_take_over_lock": False,
    "deploy_min_free_mb": 500,
    "deploy_without_balancers": "yes",
    "deploy_before_migrate": [],
    "deploy_after_switch": ["manage clear_cache"],
    "deploy_after_finish": [],
}


@pytest.mark.parametrize(
    ("name", "value", "wants"),
    [
        ("deploy_batch", "all", "a number of nodes from 1 on or a percentage from 1% to 100%"),
        ("deploy_on_failure", "carry on", "rollback or stop"),
        ("deploy_min_healthy", -1, "a number from 0 on"),
        ("deploy_min_free_mb", "1 GB", "a number from 0 on"),
        ("deploy_drain_timeout", "1m", "seconds from 0 on"),
        ("deploy_ready_timeout", -3, "seconds from 0 on"),
        ("deploy_soak", "", "seconds from 0 on"),
        ("deploy_lock_wait", None, "seconds from 0 on"),
        ("deploy_drain_on_timeout", "leave", "fail or maint or shutdown"),
        ("deploy_soak_errors", "101%", "a number of requests or a percentage to 100%"),
        ("deploy_soak_errors", "some", "a number of requests or a percentage to 100%"),
        ("deploy_take_over_lock", "perhaps", "true or false"),
        ("deploy_without_balancers", "lb1", "true or false"),
        ("deploy_before_migrate", "manage check", "a list of commands, each a text"),
        ("deploy_after_switch", [{"cmd": "x"}], "a list of commands, each a text"),
        ("deploy_after_finish", [" "], "a list of commands, each a text"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(name: str, value: Any, wants: str) -> None:
    assert plan.setting_problems(SETTINGS) == []
    assert plan.setting_problems(SETTINGS | {name: value}) == [f"{name}: got {value!r}, wants {wants}"]


def server(name: str, admin: str = "ready", operational: str = "up") -> dict[str, str]:
    return {"server": name, "admin": admin, "operational": operational}


GOOD = {lb: [server(name) for name in NODES] for lb in ("lb1", "lb2")}


def changed(**servers: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    return {"lb1": [servers.get(name, server(name)) for name in NODES], "lb2": GOOD["lb2"]}


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({}, ""),
        ({"nodes": [*NODES, "app5"]}, "lb1 does not know the node app5: run site.yml first"),
        ({"balancers": changed(app2=server("app2", "drain"))}, "app2 is in state drain on lb1, and not by a deploy"),
        ({"balancers": changed(app2=server("app2", "maint", "down")), "unfinished": ["app2"]}, ""),
        ({"balancers": changed(app2=server("app2", "ready", "down"))}, ""),
        ({"unhealthy": {"app1": "no database"}}, "app1 is not well: no database"),
        ({"unhealthy": {"app2": "stopped"}, "balancers": changed(app2=server("app2", "ready", "down"))}, ""),
        ({"size": 3, "min_healthy": 2}, "4 nodes serve, and with 3 of them taken out (deploy_batch: 3) fewer than 2"),
        ({"size": 3, "min_healthy": 1}, ""),
    ],
)
def test_a_deploy_begins_only_when_it_can_end(arguments: dict[str, Any], wanted: str) -> None:
    everything: dict[str, Any] = {"nodes": NODES, "balancers": GOOD, "unfinished": [], "unhealthy": {}}
    found = plan.problems(**(everything | {"size": 1, "min_healthy": 1} | arguments))
    assert len(found) == (2 if wanted.startswith("lb1 does") else bool(wanted)), found
    assert not wanted or found[0].startswith(wanted)


def disk(mount: str, free_mb: int) -> dict[str, Any]:
    return {"mount": mount, "free_bytes": free_mb * 2**20}


ROOM = {"disks": [disk("/", 9000)]}
WELL = {"host": ROOM, "django": {"health": {"status": 200, "reasons": []}}}


@pytest.mark.parametrize(
    ("answers", "unhealthy", "problems"),
    [
        ({"app1": WELL}, {}, []),
        (
            {"app1": {"host": ROOM, "django": {"health": {"status": 503, "reasons": ["redis: away", "unapplied: x"]}}}},
            {"app1": "redis: away, unapplied: x"},
            [],
        ),
        ({"app1": {"host": ROOM, "django": {"health": {"status": 502}}}}, {"app1": "HTTP 502"}, []),
        (
            {"app1": {"host": ROOM, "django": {"health": {"status": 0, "error": "refused"}}}},
            {"app1": "refused"},
            [],
        ),
        ({"app1": {"host": ROOM, "django": {"error": "no answer"}}}, {"app1": "no answer"}, []),
        ({"lb1": {"host": ROOM, "haproxy": {"error": "no socket"}}}, {}, ["lb1 is not well (haproxy): no socket"]),
        (
            {"static1": {"host": ROOM, "nginx_static": {"health": {"status": 0, "error": "refused"}}}},
            {},
            ["static1 is not well (nginx_static): refused"],
        ),
        ({"app1": {**WELL, "host": {"error": "hangs"}}}, {}, ["app1 is not well (host): hangs"]),
        (
            {"app1": {**WELL, "host": {"disks": [disk("/", 400), disk("/srv", 499), disk("/var/lib", 500)]}}},
            {},
            ["app1 has 499 MiB free at /srv, wants 500 (deploy_min_free_mb)"],
        ),
        (
            {"static1": {"host": {"disks": [disk("/", 499), disk("/srv2", 1)]}, "nginx_static": {}}},
            {},
            ["static1 has 499 MiB free at /, wants 500 (deploy_min_free_mb)"],
        ),
        # A host that only balances gets no files.
        ({"lb1": {"host": {"disks": [disk("/", 1)]}, "haproxy": {"servers": []}}}, {}, []),
    ],
)
def test_what_hosts_say_to_a_deploy(answers: dict[str, Any], unhealthy: dict[str, str], problems: list[str]) -> None:
    found = plan.seen(answers, 500)
    assert (found["unhealthy"], found["problems"]) == (unhealthy, problems)


def test_only_the_nodes_are_looked_at_among_the_servers_of_a_balancer() -> None:
    servers = [server("app1") | {"backend": "django"}, server("static1") | {"backend": "nginx_static"}]
    hostvars = {"lb1": {"__deploy_asked": {"answers": {"host": ROOM, "haproxy": {"servers": servers}}}}, "app9": {}}
    assert filters.deploy_seen(["lb1", "app9"], hostvars, "500")["servers"] == {"lb1": servers[:1]}


def test_a_node_that_one_balancer_still_uses_is_in_service() -> None:
    assert plan.out_of_service(changed(app2=server("app2", "maint")), NODES) == []
    # ... but has to be put back on the other one.
    assert plan.incomplete(changed(app2=server("app2", "maint")), NODES) == ["app2"]
    assert plan.incomplete(GOOD, NODES) == []
    both = {lb: [server("app2", "maint"), server("app1")] for lb in ("lb1", "lb2")}
    assert plan.out_of_service(both, ["app1", "app2"]) == ["app2"]


def node(current: str, previous: str, *releases: str) -> dict[str, Any]:
    return {"current": current, "previous": previous, "releases": list(releases or ("v1-a", "v2-b", "v3-c"))}


@pytest.mark.parametrize(
    ("nodes", "wanted", "target"),
    [
        ([node("v2-b", "v1-a"), node("v2-b", "v1-a")], "", "v1-a"),
        # Interrupted: the first node was switched already, the others were not.
        ([node("v3-c", "v2-b"), node("v2-b", "v1-a"), node("v2-b", "v1-a")], "", "v2-b"),
        ([node("v3-c", "v2-b"), node("v2-b", "v3-c")], "v3", "v3-c"),
        ([node("v2-b", "v1-a")], "v3-c", "v3-c"),
    ],
)
def test_where_a_rollback_leads(nodes: list[dict[str, Any]], wanted: str, target: str) -> None:
    assert plan.rollback_target({f"app{number}": one for number, one in enumerate(nodes)}, wanted) == target


@pytest.mark.parametrize(
    ("nodes", "wanted", "message"),
    [
        ([node("v2-b", ""), node("v2-b", "")], "", "do not agree about the release before"),
        ([node("v2-b", "v1-a"), node("v2-b", "v3-c")], "", "all nodes keep v1-a, v2-b, v3-c"),
        ([node("v2-b", "v1-a", "v2-b")], "", "do not agree"),
        ([node("v2-b", "v1-a")], "v9", "got v9, wants one release that all nodes keep: v1-a, v2-b, v3-c"),
        ([node("v2-b", "v1-a", "v1-a", "v1-d", "v2-b")], "v1", "v1-a, v1-d"),
    ],
)
def test_a_rollback_that_leads_nowhere_is_refused(nodes: list[dict[str, Any]], wanted: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.rollback_target({f"app{number}": one for number, one in enumerate(nodes)}, wanted)


def test_what_a_node_keeps_is_read_from_its_directory() -> None:
    lines = ["release /srv/django/releases/v1-a", "current releases/v2-b", "previous releases/v1-a", "cache x"]
    assert plan.kept(lines) == {"current": "v2-b", "previous": "v1-a", "releases": ["v1-a"]}


def test_the_holder_of_a_lock_is_named_with_age_phase_and_nodes() -> None:
    lock = {"id": "x", "kind": "deploy", "user": "anna", "host": "pc", "pid": 7, "since": 1000.0, "phase": "switch"}
    text = plan.holder(lock | {"nodes": ["app2"]}, 1000.0 + 3600 * 2 + 90)
    assert text == ("deploy x by anna on pc (process 7) holds the lock since 2 h 1 min; phase: switch, working at app2")


def test_a_lock_is_dead_only_when_its_process_on_this_controller_is_gone() -> None:
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(program) as process:
        started = int(Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
        lock = {"host": os.uname().nodename, "pid": process.pid, "process_started": started}
        assert not filters.deploy_is_dead(lock)
        assert filters.deploy_is_dead(lock | {"process_started": started - 1}), "the number was used again"
        process.kill()
        process.wait()
        assert filters.deploy_is_dead(lock)
        assert not filters.deploy_is_dead(lock | {"host": "elsewhere"})
        assert not filters.deploy_is_dead({})


def test_the_controller_names_its_process() -> None:
    owner = deploy_controller.LookupModule().run([])[0]
    assert owner["host"] == os.uname().nodename
    assert Path(f"/proc/{owner['pid']}").exists()
    assert not filters.deploy_is_dead(owner)


def test_the_slowest_balancer_counts() -> None:
    # What lb1 watched before is not part of its drain.
    drained = [{"seconds": 9.4, "seconds_before": 9.0}, {"seconds": 2.0, "seconds_before": 0.0}]
    readied = [{"seconds": 4.5, "soaked": 3.0}, {"seconds": 4.0, "soaked": 3.1}]
    hosts = {
        "lb1": {"__deploy_drained": drained[0], "__deploy_readied": readied[0]},
        "lb2": {"__deploy_drained": drained[1], "__deploy_readied": readied[1]},
        "app1": {"__django_activation": {"seconds": 1.2}, "deploy_to": "v2", "deploy_from": "v1"},
    }
    rows = filters.deploy_rows(["app1"], hosts, ["lb1", "lb2"], "switch", 5)
    wanted = {"release": "v2", "drain": 7.0, "switch": 1.2, "ready": 1.4, "soak": 3.1, "result": "switched"}
    assert {
        key: round(value, 3) if isinstance(value, float) else value for key, value in rows["app1"].items()
    } == wanted
    assert "app0" not in filters.deploy_rows(["app1"], hosts, ["lb1", "lb2"], "switch", 5, ["app0"])
    drained[1]["soaked"] = 1.1
    rows = filters.deploy_rows(["app1"], hosts, ["lb1", "lb2"], "switch", 5, ["app0"])
    assert (rows["app0"], rows["app1"]["soak"]) == ({"soak": 1.1}, 3.1)
    back = filters.deploy_rows(["app1"], hosts, [], "undo", 0)["app1"]
    assert (back["release"], back["result"], back["drain"]) == ("v1", "put back", 0.0)


def test_the_table_has_a_line_for_each_node() -> None:
    rows = [
        plan.row("app1", {"deploy_ran": "v1"}, {"release": "v2", "drain": 0.44, "result": "switched"}),
        plan.row("app2", {"deploy_ran": "v2", "deploy_to": "v2"}),
        plan.row("app3", {"deploy_ran": "v1", "deploy_to": "v2"}),
    ]
    assert plan.table(rows) == [
        "node  release  drain  switch  ready  soak  result",
        "app1  v2       0.4 s  -       -      -     switched",
        "app2  v2       -      -       -      -     ran it already",
        "app3  v1       -      -       -      -     not switched",
    ]
