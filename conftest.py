# SPDX-License-Identifier: GPL-3.0-or-later
"""For all tests, those of the scenarios too."""

from __future__ import annotations

import sys

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once why a test failed: a scenario that is ended by its time limit never gets to pytest's own summary."""
    if report.failed:
        sys.__stderr__.write(f"\n{report.nodeid} failed in {report.when}:\n{report.longreprtext}\n")
        sys.__stderr__.flush()
