# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import pytest

from tests.cluster import Browser, Lab


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab(os.environ.get("LAB_NAME", "lab"))


@pytest.fixture(scope="session")
def user(lab: Lab) -> str:
    """A user of the example site, whose password is PASSWORD."""
    return lab.make_user("keeper")


@pytest.fixture
def browser(lab: Lab) -> Browser:
    return Browser(lab, "lb1")
