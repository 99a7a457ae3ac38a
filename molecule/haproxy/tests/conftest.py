# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from balancer import all_up, converge, wait_for


@pytest.fixture(autouse=True)
def healthy() -> None:
    wait_for("all servers are up", all_up)


@pytest.fixture
def restored() -> Iterator[None]:
    """For tests that run the role with other variables."""
    yield
    converge()
