# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]

if TYPE_CHECKING:
    from static_tier import Tier


@pytest.fixture(scope="session")
def tier() -> Tier:
    """Both servers with the first release published, whatever an earlier run left."""
    from static_tier import FIRST, Tier

    from tests.cluster import Lab

    static = Tier(Lab(os.environ.get("LAB_NAME", "molecule-nginx-static")))
    static.wipe("static1", "static2")
    assert {static.get(host, "/-/health").status for host in static.address} == {503}, "healthy without a release"
    for host in static.address:
        assert static.put(host, "r1-static.tar.gz", FIRST.pack()) == 201
    static.publish()
    return static
