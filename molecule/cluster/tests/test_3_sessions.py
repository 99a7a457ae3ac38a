# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis dies under load: nobody is logged out, and no page fails for longer than it takes to find the next master."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster import PASSWORD, Browser, Lab, broken, wait_until
from tests.load.load import running

CACHES = ["cache1", "cache2", "cache3"]
DOWN_AFTER = 5.0  # seconds, the role's default
RATE = 30.0
# `session` is a page of somebody who is logged in: it fails when the login is gone.
MIX = {"plain": 2.0, "page": 2.0, "session": 5.0, "post": 1.0}


def named_by_sentinel(lab: Lab, host: str) -> str:
    """The master, as the Sentinel on a host tells the application's user."""
    password = (lab.directory / "secrets" / "redis_password").read_text(encoding="ascii").strip()
    asked = f"AUTH django {password}\nSENTINEL GET-MASTER-ADDR-BY-NAME flotilla\n"
    lines = lab.ssh(host, "redis-cli -p 26379", asked).split()
    return next(name for name in CACHES if lab.address(name) in lines)


def cache_works(lab: Lab, app: str) -> bool:
    """Whether a node of Django reads what it has written."""
    code = "from django.core.cache import caches\nc = caches['sessions']\nc.set('t', 7)\nprint('is', c.get('t'))\n"
    return "is 7" in lab.manage(app, code)


@contextlib.contextmanager
def all_well_afterwards(lab: Lab) -> Iterator[None]:
    yield
    wait_until(lambda: cache_works(lab, "app1"), 60, "Django writes to Redis again")
    wait_until(lambda: len({named_by_sentinel(lab, host) for host in CACHES}) == 1, 60, "the Sentinels agree")
    # A former master learns within about ten seconds that it is none any more.
    time.sleep(12)
    run = lab.playbook("--tags", "redis", "--limit", "redis")
    assert (run.returncode, run.changed) == (0, {}), run.changed_tasks or run.output[-3000:]


def under_load(lab: Lab, user: str, break_it: Callable[[], Any]) -> tuple[dict[str, Any], float]:
    with running(lab.load(user, rate=RATE, seconds=60, mix=MIX, deadline=8)) as load:
        time.sleep(4)
        broken_at = time.time()
        break_it()
        time.sleep(16)
    assert sum(load.report["served_by"].values()) > 200, load.report
    return load.report, broken_at


@pytest.mark.parametrize(
    ("break_it", "mend_it"),
    [
        pytest.param("kill", "start", id="dead"),
        pytest.param("pause", "unpause", id="frozen", marks=pytest.mark.full),
        pytest.param("cut", "heal", id="cut off", marks=pytest.mark.full),
    ],
)
def test_the_redis_master_is_gone(lab: Lab, user: str, browser: Browser, break_it: str, mend_it: str) -> None:
    old = named_by_sentinel(lab, "cache1")
    witness = next(name for name in CACHES if name != old)
    browser.login(user, PASSWORD)
    with all_well_afterwards(lab):
        try:
            report, broken_at = under_load(lab, user, lambda: lab.tool(break_it, old))
            assert named_by_sentinel(lab, witness) != old
            assert cache_works(lab, "app1"), "Django has found the new master"
            assert browser.where()["user"] == user, "still logged in"
        finally:
            lab.tool(mend_it, old)
    late = [failure for failure in report["failures"] if failure["at"] > broken_at + DOWN_AFTER + 3]
    assert late == []
    # Every login is in the database as well: not even in between does a page fail.
    assert report["failures"] == []


def test_all_of_redis_is_down(lab: Lab, user: str, browser: Browser) -> None:
    browser.login(user, PASSWORD)
    with all_well_afterwards(lab):
        for host in CACHES:
            lab.ssh(host, "systemctl stop redis-server redis-sentinel")
        try:
            other = Browser(lab, "lb1")
            other.login(user, PASSWORD)
            for one in (browser, other):
                for _ in range(12):
                    began = time.monotonic()
                    assert one.where()["user"] == user, "logged in before, and while Redis is down"
                    assert time.monotonic() - began < 3
        finally:
            for host in CACHES:
                lab.ssh(host, "systemctl start redis-server redis-sentinel")
    assert {one.where()["user"] for one in (browser, other)} == {user}


@pytest.mark.full
def test_all_hosts_of_redis_are_frozen(lab: Lab, user: str, browser: Browser) -> None:
    """Nothing refuses a connection: each attempt has to run into its time-out."""
    browser.login(user, PASSWORD)
    with all_well_afterwards(lab), contextlib.ExitStack() as stack:
        for host in CACHES:
            stack.enter_context(broken(lab, ("pause", host), ("unpause", host)))
        for _ in range(20):
            began = time.monotonic()
            assert browser.where()["user"] == user
            assert time.monotonic() - began < 5
