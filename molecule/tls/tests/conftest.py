# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2]), str(HERE.parents[2] / "collections")]

from tests.cluster import Lab  # noqa: E402 - the line above must come first


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The scenario converges without TLS between the tiers; whatever the tests run from then on has it."""
    lab = Lab(os.environ.get("LAB_NAME", "molecule-tls"), "lab_watched")
    lab.environment["LAB_INTERNAL_TLS"] = "true"
    return lab
