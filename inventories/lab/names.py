#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names of the lab, from the environment, as the variables of all hosts.

Ansible runs this as a part of the inventory. As templates in group_vars they were most of what Ansible templated at
all: it works out a variable anew each time that something refers to it, for each task and host.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def names(lab: str) -> dict[str, str]:
    """The variables of a lab of this name."""
    # 10.210.0.0/24 for the lab of `make demo`; every other lab has a network chosen by its name.
    octet = 0 if lab == "lab" else 1 + int(hashlib.sha256(lab.encode()).hexdigest()[:8], 16) % 254
    return {
        "lab_name": lab,
        "lab_debian": os.environ.get("LAB_DEBIAN") or "13",
        "lab_image": os.environ.get("LAB_IMAGE") or "clean",
        "lab_network_prefix": f"10.210.{octet}",
        "lab_directory": str(ROOT / ".lab" / ("" if lab == "lab" else lab)),
    }


if __name__ == "__main__":
    print(json.dumps({"_meta": {"hostvars": {}}, "all": {"vars": names(os.environ.get("LAB_NAME") or "lab")}}))
