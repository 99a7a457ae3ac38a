# SPDX-License-Identifier: GPL-3.0-or-later
"""The built collection: accepted by galaxy-importer, and usable where nothing else of this repository is.

Built from the files that Git knows or would add, so that what lies about in a work tree neither helps nor harms.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from steps import BIN, PLAYBOOKS, ROOT, clean_environment, must, quiet

# Nothing else is needed to run it, and nothing else may be needed.
WANTED = {"CHANGELOG.rst", "LICENSE", "README.md", "changelogs", "meta", "playbooks", "plugins", "roles"}
GENERATED = {"MANIFEST.json", "FILES.json"}
TOLERATED = {"CONTRIBUTING.md", "docs"}


def source(target: Path) -> None:
    """Copy the work tree's files, as Git sees them."""
    listed = must(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"])
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name)


def check_contents(artifact: Path) -> None:
    """The archive holds what the collection needs and nothing of the workshop."""
    with tarfile.open(artifact) as archive:
        members = archive.getmembers()
    top = {member.name.split("/")[0] for member in members}
    missing, superfluous = WANTED - top, top - WANTED - GENERATED - TOLERATED
    if missing or superfluous:
        sys.exit(f"{artifact.name}: missing {sorted(missing)}, superfluous {sorted(superfluous)} (build_ignore?)")
    print(f"{artifact.name}: {len(members)} members, {artifact.stat().st_size / 1024:.0f} KiB")


def check_import(artifact: Path, home: Path) -> None:
    """galaxy-importer takes it without an error or a warning."""
    settings = home / "galaxy-importer.cfg"
    # ansible-lint has a stage of its own; ansible-test would fetch things.
    settings.write_text(
        "[galaxy-importer]\nrun_ansible_lint = False\nrun_ansible_test = False\nrun_flake8 = False\n"
        f"run_ansible_doc = True\ncheck_changelog = True\nansible_local_tmp = {home}/tmp\n",
        encoding="utf-8",
    )
    environment = clean_environment(home, GALAXY_IMPORTER_CONFIG=str(settings))
    output = must([sys.executable, "-m", "galaxy_importer.main", str(artifact)], home, environment)
    print(output)
    bad = [line for line in output.splitlines() if line.startswith(("ERROR", "WARNING"))]
    if bad or "Importer processing completed successfully" not in output:
        sys.exit("galaxy-importer complains:\n" + "\n".join(bad))


def check_installed(artifact: Path, work: Path, home: Path) -> None:
    """Installed into an empty path, every playbook runs by its name from an empty directory."""
    collections, empty = work / "collections", work / "empty"
    empty.mkdir()
    settings = work / "ansible.cfg"
    settings.write_text("[defaults]\n", encoding="utf-8")  # nobody else's settings
    environment = clean_environment(home, ANSIBLE_COLLECTIONS_PATH=str(collections), ANSIBLE_CONFIG=str(settings))
    install = ["collection", "install", "--offline", "-p", str(collections), str(artifact)]
    must([str(BIN / "ansible-galaxy"), *install], empty, environment)
    shutil.copytree(ROOT / "inventories" / "prod", work / "prod")
    if not PLAYBOOKS:
        sys.exit("there is no playbook")
    names = [f"flotilla.django.{playbook.stem}" for playbook in PLAYBOOKS]
    command = [str(BIN / "ansible-playbook"), *names, "--syntax-check", "-i", str(work / "prod")]
    quiet(must(command, empty, environment), "a playbook")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="flotilla-package-") as directory:
        work = Path(directory)
        tree, home = work / "tree", work / "home"
        home.mkdir()
        source(tree)
        must([str(BIN / "ansible-galaxy"), "collection", "build", "--output-path", str(work), str(tree)])
        (artifact,) = work.glob("flotilla-django-*.tar.gz")
        check_contents(artifact)
        check_import(artifact, home)
        check_installed(artifact, work, home)


if __name__ == "__main__":
    main()
