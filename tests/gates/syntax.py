# SPDX-License-Identifier: GPL-3.0-or-later
"""Every playbook passes --syntax-check with every inventory, without a warning."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from steps import BIN, PLAYBOOKS, ROOT, must, quiet

EVERY = [ROOT / "site.yml", *PLAYBOOKS]


def check(inventory: Path) -> None:
    """All playbooks in one run: to start Ansible costs more than to read a playbook."""
    command = [str(BIN / "ansible-playbook"), "--syntax-check", "-i", str(inventory), *map(str, EVERY)]
    said = must(
        command, environment={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    )
    quiet(said, f"-i {inventory.relative_to(ROOT)}")
    if said.count("playbook: ") != len(EVERY):
        sys.exit(f"-i {inventory.relative_to(ROOT)}: not every playbook was read:\n{said}")


def main() -> None:
    inventories = sorted(path for path in (ROOT / "inventories").iterdir() if path.is_dir() and any(path.iterdir()))
    if not inventories or not PLAYBOOKS:
        sys.exit("there is nothing to check")
    for inventory in inventories:
        check(inventory)


if __name__ == "__main__":
    main()
