# SPDX-License-Identifier: GPL-3.0-or-later
"""Every playbook passes --syntax-check with every inventory, without a warning."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steps import BIN, PLAYBOOKS, ROOT, quiet, run


def check(pair: tuple[Path, Path]) -> str | None:
    playbook, inventory = pair
    what = f"{playbook.relative_to(ROOT)} -i {inventory.relative_to(ROOT)}"
    command = [str(BIN / "ansible-playbook"), "--syntax-check", "-i", str(inventory), str(playbook)]
    done = run(command, environment={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"})
    if done.returncode:
        return f"{what}: exit code {done.returncode}\n{done.stdout}"
    try:
        quiet(done.stdout, what)
    except SystemExit as warning:
        return str(warning)
    return None


def main() -> None:
    inventories = sorted(path for path in (ROOT / "inventories").iterdir() if path.is_dir() and any(path.iterdir()))
    pairs = [(playbook, inventory) for playbook in [ROOT / "site.yml", *PLAYBOOKS] for inventory in inventories]
    if not pairs:
        sys.exit("there is nothing to check")
    with ThreadPoolExecutor(max_workers=2) as pool:
        errors = [error for error in pool.map(check, pairs) if error]
    print(f"{len(pairs)} combinations of playbook and inventory, {len(errors)} wrong")
    if errors:
        sys.exit("\n".join(errors))


if __name__ == "__main__":
    main()
