# SPDX-License-Identifier: GPL-3.0-or-later
"""A plain `git clone` works: nothing that the playbooks need is ignored by Git or lies only in this work tree."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from steps import BIN, PLAYBOOKS, ROOT, clean_environment, must, quiet


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="flotilla-clone-") as directory:
        work = Path(directory)
        home, elsewhere, clone = work / "home", work / "elsewhere", work / "clone"
        home.mkdir()
        elsewhere.mkdir()
        environment = clean_environment(home)
        must(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], work, environment)
        check = [str(BIN / "ansible-playbook"), "--syntax-check"]
        # As the README says it: from the root, with the checkout's own ansible.cfg.
        quiet(must([*check, "site.yml", "-i", "inventories/prod"], clone, environment), "site.yml")
        # From any other directory there is no ansible.cfg, and the collection is found all the same.
        paths = [clone / playbook.relative_to(ROOT) for playbook in [ROOT / "site.yml", *PLAYBOOKS]]
        command = [*check, *(str(path) for path in paths if path.exists()), "-i", str(clone / "inventories" / "prod")]
        quiet(must(command, elsewhere, environment), "a playbook")
        shutil.rmtree(clone)


if __name__ == "__main__":
    main()
