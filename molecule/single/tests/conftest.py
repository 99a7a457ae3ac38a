# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import pytest

from tests.cluster import Browser, Lab


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab(os.environ.get("LAB_NAME", "single"), "lab_single")


@pytest.fixture
def browser(lab: Lab) -> Browser:
    return Browser(lab, "single1")
