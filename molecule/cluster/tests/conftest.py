# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import pytest

from tests.cluster import PASSWORD, Browser, Lab


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab(os.environ.get("LAB_NAME", "lab"))


@pytest.fixture(scope="session")
def user(lab: Lab) -> str:
    """A user of the example site, whose password is PASSWORD."""
    lab.manage(
        "app1",
        "from django.contrib.auth import get_user_model\n"
        "user, _ = get_user_model().objects.get_or_create(username='keeper', is_staff=True, is_superuser=True)\n"
        f"user.set_password('{PASSWORD}')\n"
        "user.save()\n",
    )
    return "keeper"


@pytest.fixture
def browser(lab: Lab) -> Browser:
    return Browser(lab, "lb1")
