# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_server against real HAProxy processes with real traffic."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _haproxy_io as io
from haproxy_process import App, Balancer, Slow, Stream, echoes, wait_for

READY, MAINT, DRAIN = 0, 1, 8


class Site:
    """Two application servers behind a balancer, and the module."""

    def __init__(self, run_module: Callable[..., dict[str, Any]]) -> None:
        self._run_module = run_module
        self.apps = [App("app1"), App("app2")]
        self.app1, self.app2 = self.apps
        for app in self.apps:
            app.start()
        self.balancers: list[Balancer] = []

    def balancer(self, **options: Any) -> Balancer:
        balancer = Balancer(self.apps, **options)
        self.balancers.append(balancer)
        balancer.start()
        return balancer

    def run(self, check: bool = False, diff: bool = False, **arguments: Any) -> dict[str, Any]:
        first = self.balancers[0]
        defaults = {
            "sockets": [first.admin],
            "master_socket": first.master,
            "servers": ["app1"],
            "backends": ["django"],
        }
        return self._run_module("haproxy_server", {**defaults, **arguments}, check=check, diff=diff)

    def background(self, **arguments: Any) -> Background:
        return Background(lambda: self.run(**arguments))

    def close(self) -> None:
        for balancer in self.balancers:
            balancer.remove()
        for app in self.apps:
            app.stop()


class Background(threading.Thread):
    def __init__(self, job: Callable[[], dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self._job = job
        self.result: dict[str, Any] = {}
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        self.result = self._job()
        self.ended = time.monotonic()

    def end(self) -> dict[str, Any]:
        self.join(30)
        assert self.result
        return self.result


@pytest.fixture
def site(run_module: Callable[..., dict[str, Any]]) -> Iterator[Site]:
    site = Site(run_module)
    yield site
    site.close()


@pytest.fixture
def lb(site: Site) -> Balancer:
    return site.balancer()


def wait_for_state(lb: Balancer, admin: int) -> None:
    wait_for(f"administrative state {admin}", lambda: lb.masks()["app1"][1] == admin)


# --- one server, nothing in the way ------------------------------------------------------------------------------


def test_round_of_an_idle_server(site: Site, lb: Balancer) -> None:
    """Check mode, the real run and a second run for each state; quick."""
    for state, mask in (("drain", DRAIN), ("maint", MAINT), ("ready", READY)):
        before = lb.masks()["app1"]
        predicted = site.run(state=state, check=True, diff=True)
        assert lb.masks()["app1"] == before
        done = site.run(state=state, diff=True)
        assert not done["failed"], done
        assert lb.masks()["app1"][1] == mask
        assert predicted["changed"] and done["changed"]
        assert predicted["diff"] == done["diff"]
        assert done["diff"]["after"] == f"{lb.admin} django/app1: {state}, weight 10\n"
        assert done["servers"][0]["after"]["admin"] == predicted["servers"][0]["after"]["admin"] == state
        assert done["seconds"] < 0.8
        again = site.run(state=state)
        assert not again["changed"] and not again["failed"]
        assert again["seconds"] < 0.2
        assert again["servers"][0]["before"] == again["servers"][0]["after"]


def test_weight(site: Site, lb: Balancer) -> None:
    assert site.run(weight="50%", check=True)["servers"][0]["after"]["weight"] == 5
    assert lb.masks()["app1"][2] == 10
    assert site.run(weight="50%")["changed"]
    assert lb.masks()["app1"][2] == 5
    assert not site.run(weight="5")["changed"]
    both = site.run(state="drain", weight="200")
    assert both["changed"] and lb.masks()["app1"][1:] == (DRAIN, 200)
    # A weight of 0 takes the server away as surely as a drain does.
    refused = site.run(servers=["app2"], weight="0")
    assert refused["failed"] and "min_healthy" in refused["msg"]
    assert lb.masks()["app2"][2] == 10


def test_all_backends_by_glob(site: Site, lb: Balancer) -> None:
    done = site.run(servers=["app[1]"], backends=["*"], state="maint")
    assert [(row["backend"], row["server"]) for row in done["servers"]] == [("django", "app1"), ("plain", "app1")]
    assert lb.masks("plain")["app1"][1] == MAINT
    # A server without a check would stay down for ever if it were told to wait for one.
    done = site.run(servers=["app[1]"], backends=["*"], state="ready")
    assert not done["failed"], done
    assert any("plain/app1" in note and "no health check" in note for note in done["notes"])
    assert lb.masks("plain")["app1"][:2] == (2, READY)
    assert lb.get("/plain")[0] == 200


# --- traffic -----------------------------------------------------------------------------------------------------


def test_drain_waits_for_a_slow_request_and_loses_nothing(site: Site, lb: Balancer) -> None:
    clients = [Stream(lb), Stream(lb)]
    slow = lb.start_slow(1.5, "app1")
    run = site.background(state="maint")
    done = run.end()
    back = time.monotonic()
    returned = site.run(state="ready")
    # Either client: two in step with one another each keep meeting the same of two servers that take turns.
    wait_for(
        "traffic at app1",
        lambda: any(at > back and who == "app1" for client in clients for at, _status, who in client.answers),
    )
    answers = [answer for client in clients for answer in client.end()]
    slow.join()
    assert not done["failed"] and done["sessions_left"] == 0 and done["sessions_cut"] == 0
    assert not returned["failed"] and returned["changed"]
    assert slow.answer == (200, "app1")
    assert slow.ended <= run.ended
    assert {status for _at, status, _who in answers} == {200}
    assert len(answers) > 50


def test_cookies_still_reach_a_draining_server(site: Site, lb: Balancer) -> None:
    client = Stream(lb, cookie="app1", pause=0.05)
    slow = lb.start_slow(4, "app1")
    failed = site.run(state="drain", timeout=1)
    assert failed["failed"] and "left after 1 s" in failed["msg"] and "restored" in failed["msg"]
    assert failed["sessions_left"] >= 1 and not failed["changed"]
    assert any("cookies" in note for note in failed["notes"])
    assert lb.masks()["app1"][:2] == (2, READY)
    escalated = site.run(state="drain", timeout=0.5, on_timeout="maint")
    assert not escalated["failed"] and escalated["sessions_left"] >= 1
    assert escalated["servers"][0]["after"]["admin"] == "maint"
    after = time.monotonic()
    wait_for("the client elsewhere", lambda: any(at > after and who == "app2" for at, _s, who in client.answers))
    answers = client.end()
    slow.join()
    assert slow.answer == (200, "app1")
    assert {status for _at, status, _who in answers} == {200}
    assert {who for at, _status, who in answers if at > after} == {"app2"}


@pytest.mark.parametrize("choice", ["fail", "maint", "shutdown"])
def test_web_socket_at_the_time_out(site: Site, lb: Balancer, choice: str) -> None:
    with lb.tunnel("app1") as client:
        done = site.run(state="maint", timeout=0.3, on_timeout=choice)
        alive = echoes(client)
    assert alive is (choice != "shutdown")
    assert done["failed"] is (choice == "fail")
    assert done["changed"] is (choice != "fail")
    assert done["sessions_left"] == (0 if choice == "shutdown" else 1)
    assert done["sessions_cut"] == (1 if choice == "shutdown" else 0)
    assert lb.masks()["app1"][1] == (READY if choice == "fail" else MAINT)


def test_waiting_in_steps(site: Site, lb: Balancer) -> None:
    slow = lb.start_slow(1.5, "app1")
    first = site.run(state="maint", timeout=0.3, on_timeout="leave")
    assert not first["failed"] and first["changed"] and first["sessions_left"] == 1
    assert lb.masks()["app1"][1] == DRAIN
    last = site.run(state="maint", timeout=10, on_timeout="leave")
    assert last["sessions_left"] == 0
    assert lb.masks()["app1"][1] == MAINT
    slow.join(5)
    assert slow.answer == (200, "app1")


@pytest.mark.parametrize("allowed", ["0", "20%"])
def test_a_server_that_fails_after_it_came_back_is_found(site: Site, lb: Balancer, allowed: str) -> None:
    site.run(state="maint")
    site.app1.broken = True
    stream = Stream(lb)
    failed = site.run(state="ready", soak=5, soak_errors=allowed)
    stream.end()
    assert failed["failed"]
    assert "requests to django/app1 failed after it came back" in failed["msg"]
    assert failed["seconds"] < 5  # enough is enough
    assert lb.masks()["app1"][1] == READY


def test_a_server_that_is_well_is_watched_for_the_time(site: Site, lb: Balancer) -> None:
    site.run(state="maint")
    # What the others do is not its fault.
    site.app2.broken = True
    stream = Stream(lb)
    done = site.run(state="ready", soak=1)
    answers = stream.end()
    assert not done["failed"], done
    assert done["seconds"] >= 1
    assert {status for _begun, status, name in answers if name == "app2"} == {500}
    # Nothing came back, nothing is watched.
    assert site.run(state="ready", soak=1)["seconds"] < 0.5


@pytest.mark.parametrize("broken", [True, False])
def test_a_server_that_came_back_is_watched_while_the_next_one_is_drained(
    site: Site, lb: Balancer, broken: bool
) -> None:
    site.run(state="maint")
    back = site.run(state="ready")["back"]
    assert [(one["backend"], one["server"]) for one in back] == [("django", "app1")]
    began = time.time()
    # Nothing to wait for but the watch.
    run = site.background(servers=["app2"], state="maint", watch=back, soak=1.5, soak_errors="20%")
    wait_for("the drain", lambda: lb.masks()["app2"][1] == DRAIN)
    site.app1.broken = broken
    stream = Stream(lb)
    done = run.end()
    stream.end()
    assert done["failed"] is broken
    if broken:
        assert "requests to django/app1 failed after it came back" in done["msg"]
        assert "the former state was restored" in done["msg"]
        assert lb.masks()["app2"][1] == READY
    else:
        assert back[0]["at"] + 1.5 <= time.time() < began + 2.5
        assert done["soaked"] >= 1.5
        assert lb.masks()["app2"][1] == MAINT
    assert lb.masks()["app1"][1] == READY


def test_a_long_watch_takes_nobody_out_of_service_before_its_last_two_seconds(site: Site, lb: Balancer) -> None:
    site.run(state="maint")
    back = site.run(state="ready")["back"]
    run = site.background(servers=["app2"], state="maint", watch=back, soak=6)
    time.sleep(max(0.0, back[0]["at"] + 3.5 - time.time()))
    assert lb.masks()["app2"][1] == READY
    done = run.end()
    assert not done["failed"], done
    # From the module's start on; how long after the server's return that is depends on the machine.
    assert (done["soaked"] >= 6, 0 < done["seconds_before"] <= 4.5) == (True, True), done
    # One that fails by then is found, and nothing was touched.
    site.app1.broken = True
    stream = Stream(lb)
    site.run(servers=["app2"], state="ready")
    back = [{**one, "at": time.time()} for one in back]
    failed = site.run(servers=["app2"], state="maint", watch=back, soak=60)
    stream.end()
    assert failed["failed"]
    assert "requests to django/app1 failed after it came back" in failed["msg"]
    assert failed["msg"].endswith("soak_errors allows 0") and not failed["changed"]
    assert lb.masks()["app2"][1] == READY


def test_what_is_watched_must_be_there(site: Site, lb: Balancer) -> None:
    back = {"socket": "/run/other.sock", "backend": "django", "server": "app1", "at": 0}
    refused = site.run(servers=["app2"], state="maint", watch=[{**back, "worker": "", "errors": 0, "responses": 0}])
    assert refused["failed"]
    assert "watch has servers on /run/other.sock, wants those on" in refused["msg"]
    assert lb.masks()["app2"][1] == READY


def test_without_waiting(site: Site, lb: Balancer) -> None:
    slow = lb.start_slow(1, "app1")
    done = site.run(state="maint", wait=False)
    assert done["changed"] and done["seconds"] < 0.2 and done["sessions_left"] == 1
    site.app1.healthy = False
    site.app1.served_while_unhealthy.clear()
    done = site.run(state="ready", wait=False)
    assert done["changed"] and done["seconds"] < 0.2
    assert {lb.get()[1] for _ in range(10)} == {"app2"}
    site.app1.healthy = True
    wait_for("app1 to serve", lambda: lb.get()[1] == "app1")
    assert not site.app1.served_while_unhealthy
    slow.join()
    assert slow.answer[0] == 200


# --- health ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", ["maint", pytest.param("drain", marks=pytest.mark.full)])
def test_ready_only_with_proof(site: Site, lb: Balancer, found: str) -> None:
    assert site.run(state=found)["changed"]
    site.app1.stop()
    site.app1.healthy = False
    site.app1.start()
    client = Stream(lb)
    failed = site.run(state="ready", ready_timeout=0.8)
    assert failed["failed"] and "L7STS" in failed["msg"], failed
    assert failed["servers"][0]["after"] == {"admin": "drain", "operational": "down", "weight": 10}
    assert lb.masks()["app1"][:2] == (0, DRAIN)
    run = site.background(state="ready")
    time.sleep(0.6)
    assert lb.masks()["app1"][:2] == (0, DRAIN)
    site.app1.healthy = True
    done = run.end()
    assert not done["failed"] and done["servers"][0]["after"]["operational"] == "up"
    wait_for("traffic at app1", lambda: client.answers[-1][2] == "app1")
    assert {status for _at, status, _who in client.end()} == {200}
    assert not site.app1.served_while_unhealthy


def test_server_that_is_down_drains_at_once(site: Site, lb: Balancer) -> None:
    site.app1.stop()
    wait_for("app1 to be down", lambda: lb.masks()["app1"][0] == 0)
    done = site.run(state="maint")
    assert not done["failed"] and done["changed"] and done["seconds"] < 0.8
    # Back from MAINT into a drain it must not look healthy, or cookies would lead to it.
    site.run(state="drain", wait=False)
    assert lb.masks()["app1"][:2] == (0, DRAIN)
    assert lb.get(cookie="app1") == (200, "app2")


def test_server_that_goes_down_while_it_is_drained(site: Site, lb: Balancer) -> None:
    with lb.tunnel("app1") as client:
        run = site.background(state="drain", timeout=10)
        wait_for_state(lb, DRAIN)
        site.app1.stop()
        wait_for("app1 to be down", lambda: lb.masks()["app1"][0] == 0)
        assert echoes(client)
    done = run.end()
    assert not done["failed"] and done["servers"][0]["after"] == {"admin": "drain", "operational": "down", "weight": 10}


def test_last_healthy_server_stays(site: Site, lb: Balancer) -> None:
    for wanted, healthy_left in (("2", 1), ("51%", 1)):
        refused = site.run(state="drain", min_healthy=wanted)
        assert refused["failed"] and f"would have {healthy_left} healthy" in refused["msg"]
    assert site.run(state="drain", min_healthy="50%", check=True)["changed"]
    site.app1.stop()
    wait_for("app1 to be down", lambda: lb.masks()["app1"][0] == 0)
    for check in (True, False):
        refused = site.run(servers=["app2"], state="drain", check=check)
        assert refused["failed"] and "min_healthy" in refused["msg"] and not refused["changed"]
        assert refused["servers"] == [] or refused["servers"][0]["after"]["admin"] == "ready"
    assert lb.masks()["app2"][1] == READY
    assert site.run(servers=["app2"], state="drain", min_healthy="0")["changed"]


# --- reloads -----------------------------------------------------------------------------------------------------


def test_sessions_of_a_worker_from_before_a_reload_count(site: Site, lb: Balancer) -> None:
    slow = lb.start_slow(2, "app1")
    lb.reload()
    assert lb.sessions("app1") == 0
    blind = site.run(state="drain", master_socket="")
    assert not blind["failed"] and not slow.ended
    run = site.background(state="maint")
    done = run.end()
    slow.join()
    assert not done["failed"], done
    assert slow.answer[0] == 200 and 0 < slow.ended <= run.ended


def test_sessions_of_an_old_worker_are_cut(site: Site, lb: Balancer) -> None:
    with lb.tunnel("app1") as client, lb.tunnel("app2") as other:
        lb.reload()
        done = site.run(state="maint", timeout=0.3, on_timeout="shutdown")
        assert not done["failed"] and (done["sessions_cut"], done["sessions_left"]) == (1, 0), done
        assert not echoes(client)
        assert echoes(other)


@pytest.mark.parametrize("keep_state", [pytest.param(True, marks=pytest.mark.full), False])
def test_reload_while_draining(site: Site, keep_state: bool) -> None:
    lb = site.balancer(keep_state=keep_state)
    slow = lb.start_slow(2.5, "app1")
    run = site.background(state="maint")
    wait_for_state(lb, DRAIN)
    lb.reload()
    done = run.end()
    slow.join()
    assert not done["failed"], done
    assert slow.answer == (200, "app1") and slow.ended <= run.ended
    again = "the state was kept" if keep_state else "the state was set again"
    assert [note for note in done["notes"] if "reloaded while waiting" in note and again in note], done["notes"]
    assert done["changed"] and lb.masks()["app1"][1] == MAINT


def test_old_worker_that_ends_while_it_is_asked(lb: Balancer) -> None:
    """The master does not answer for a worker that is gone, and does not close the connection either."""
    gone = int(lb.pid())
    lb.reload()
    master = io.Master(io.Endpoint(lb.master, connect_timeout=1))
    wait_for("the old worker to end", lambda: gone not in master.processes()[1])
    begun = time.monotonic()
    assert master.sessions([gone]) == {}
    assert time.monotonic() - begun < 1


def test_restart_while_draining(site: Site, lb: Balancer) -> None:
    Slow(lb, 10, "app1")
    wait_for("the slow request", lambda: lb.sessions("app1"))
    run = site.background(state="drain")
    wait_for_state(lb, DRAIN)
    lb.stop()
    time.sleep(0.5)
    lb.start()
    done = run.end()
    assert not done["failed"], done
    assert lb.masks()["app1"][1] == DRAIN
    assert any("set again" in note for note in done["notes"])


def test_reload_while_waiting_for_proof(site: Site, lb: Balancer) -> None:
    site.run(state="maint")
    site.app1.healthy = False
    run = site.background(state="ready")
    wait_for_state(lb, DRAIN)
    lb.reload()
    wait_for_state(lb, DRAIN)
    time.sleep(0.6)
    assert lb.masks()["app1"][:2] == (0, DRAIN)
    site.app1.healthy = True
    done = run.end()
    assert not done["failed"] and lb.masks()["app1"][:2] == (2, READY)


def test_state_set_by_somebody_else_is_theirs(site: Site, lb: Balancer) -> None:
    with lb.tunnel("app1"):
        run = site.background(state="drain")
        wait_for_state(lb, DRAIN)
        lb.say("set server django/app1 state maint")
        failed = run.end()
    assert failed["failed"] and "somebody else" in failed["msg"]
    assert lb.masks()["app1"][1] == MAINT


# --- several balancers -------------------------------------------------------------------------------------------


def test_two_balancers_as_one(site: Site, lb: Balancer) -> None:
    other = site.balancer()
    slow = other.start_slow(1.5, "app1")
    run = site.background(sockets=[lb.admin, other.tcp], state="maint")
    done = run.end()
    slow.join()
    assert not done["failed"] and slow.answer[0] == 200 and slow.ended <= run.ended
    assert [row["socket"] for row in done["servers"]] == [lb.admin, other.tcp]
    assert lb.masks()["app1"][1] == other.masks()["app1"][1] == MAINT
    assert not site.run(sockets=[lb.admin, other.tcp], state="ready")["failed"]
    assert lb.masks()["app1"][:2] == other.masks()["app1"][:2] == (2, READY)
    # Nothing is changed anywhere when one of them does not take part.
    for bad, words in ((other.operator, "level admin"), (f"{other.directory}/none", "missing")):
        failed = site.run(sockets=[lb.admin, bad], state="drain", connect_timeout=0)
        assert failed["failed"] and words in failed["msg"] and not failed["changed"]
        assert lb.masks()["app1"][1] == READY
    with other.tunnel("app1"):
        failed = site.run(sockets=[lb.admin, other.tcp], state="drain", timeout=0.3)
        assert failed["failed"] and f"1 at django/app1 on {other.tcp}" in failed["msg"]
    assert lb.masks()["app1"][1] == other.masks()["app1"][1] == READY


# --- what is refused ---------------------------------------------------------------------------------------------


def test_socket_missing(site: Site, lb: Balancer) -> None:
    gone = str(lb.directory / "gone.sock")
    failed = site.run(sockets=[gone], state="drain", connect_timeout=0.5)
    assert failed["failed"] and gone in failed["msg"] and "missing" in failed["msg"]
    lb.stop()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(lb.admin)
        failed = site.run(state="drain", connect_timeout=0.3)
    assert failed["failed"] and "HAProxy is down" in failed["msg"]


def run_as_nobody(arguments: dict[str, Any]) -> str:
    """The module's message, when it runs without root's rights. What it imports is imported before it gives them up."""
    program = (
        "import os; from ansible_collections.flotilla.django.plugins.modules import haproxy_server as m; "
        "os.geteuid() or (os.setgroups([]), os.setegid(65534), os.seteuid(65534)); m.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout, done.stderr
    return str(json.loads(done.stdout)["msg"])


def test_permission_denied(site: Site, lb: Balancer) -> None:
    denied = site.run(sockets=[lb.operator], state="drain")
    assert denied["failed"] and "`level operator`" in denied["msg"] and "permission denied" in denied["msg"]
    assert lb.masks()["app1"][1] == READY
    # The mode of the socket, and then of its directory. Root may do anything, so the module runs as somebody else.
    lb.directory.chmod(0o755)
    Path(lb.admin).chmod(0o200)
    message = run_as_nobody({"sockets": [lb.admin], "servers": ["app1"], "state": "drain", "master_socket": ""})
    assert f"{lb.admin} has mode 0200 and belongs to" in message and "our uid is" in message
    lb.directory.chmod(0o600)
    message = run_as_nobody({"sockets": [lb.admin], "servers": ["app1"], "state": "drain", "master_socket": ""})
    assert f"{lb.directory} has mode 0600" in message
    lb.directory.chmod(0o700)


def test_typos_are_refused_and_named(site: Site, lb: Balancer) -> None:
    typos: tuple[tuple[dict[str, Any], str], ...] = (
        ({"servers": ["app9"]}, "no server 'app9'; it has django/app1, django/app2"),
        ({"servers": ["app1", "web*"]}, "no server 'web*'"),
        ({"backends": ["jango"]}, "no backend 'jango'; it has django, plain"),
    )
    for arguments, words in typos:
        failed = site.run(state="drain", **arguments)
        assert failed["failed"] and words in failed["msg"], failed
    assert lb.masks()["app1"][1] == READY


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"servers": ["app1;set server django/app2 state maint"]}, "servers has"),
        ({"timeout": -1}, "timeout is -1"),
        ({"sockets": ["run/haproxy.sock"]}, "sockets has"),
        ({"master_socket": "master:80x"}, "wants the absolute path"),
        ({"state": None}, "one of the following is required: state, weight"),
    ],
)
def test_bad_input_is_refused_before_any_connection(
    run_module: Callable[..., dict[str, Any]], arguments: dict[str, Any], words: str
) -> None:
    defaults = {"sockets": ["/nonexistent/admin.sock"], "servers": ["app1"], "state": "drain"}
    given = {name: value for name, value in {**defaults, **arguments}.items() if value is not None}
    failed = run_module("haproxy_server", given)
    assert failed["failed"] and words in failed["msg"]
    assert failed.get("changed", False) is False


def test_missing_master_is_said(site: Site, lb: Balancer) -> None:
    done = site.run(state="drain", master_socket=f"{lb.directory}/none")
    assert done["changed"] and any("does not exist" in note for note in done["notes"])
