# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]

from django_tier import Tier  # noqa: E402 - the line above must come first

from tests.cluster import Lab  # noqa: E402 - as above


@pytest.fixture(scope="session")
def tier() -> Tier:
    tier = Tier(Lab(os.environ.get("LAB_NAME", "molecule-django")))
    tier.make_user()
    return tier
