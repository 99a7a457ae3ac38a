# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import sys
from collections.abc import Generator

import pytest

from tests.cluster import Browser, Lab

# What the nodes said of a request that failed is in their journals, which are gone with the lab.
TRACEBACKS = (
    "journalctl -u django -o short-precise --no-hostname --since -10min | "
    "grep -E ': +[A-Za-z_.]+(Error|Exception|Interrupted|Timeout)(:|$)' | tail -n 12"
)


@pytest.fixture(scope="session")
def lab() -> Lab:
    """
    The whole cluster. site.yml leaves the monitoring alone in the tests, which makes it a third shorter: the scenario
    itself converges all of it twice, and molecule/prometheus tests it.
    """
    lab = Lab(os.environ.get("LAB_NAME", "lab"))
    lab.environment["ANSIBLE_SKIP_TAGS"] = "prometheus"
    return lab


@pytest.fixture(scope="session")
def user(lab: Lab) -> str:
    """A user of the example site, whose password is PASSWORD."""
    return lab.make_user("keeper")


@pytest.fixture
def browser(lab: Lab) -> Browser:
    return Browser(lab, lab.shared_address())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    lab = item.funcargs.get("lab")
    if report.failed and isinstance(lab, Lab):
        for app in ("app1", "app2", "app3"):
            said = lab.ssh(app, TRACEBACKS, check=False)
            sys.__stderr__.write("".join(f"E   {app}: {line}\n" for line in said.splitlines()))
    return report
