#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read a Django project's source and pack it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: django_project
short_description: Read a Django project's source and pack it
version_added: "0.1.0"
description:
  - Finds out what a release needs to know of a project (C(manage.py), settings module, lock file, wanted Python) and
    packs its source into an archive addressed by its content. Nothing of the project is run.
  - From a local directory come the files that git knows or would add (C(git ls-files -co --exclude-standard)), or all
    of them where it is no git work tree. From a git URL comes what is committed, without submodules.
  - Never packed are C(.git), C(.venv) and every other virtual environment, C(node_modules), C(__pycache__), C(*.pyc)
    and C(db.sqlite3).
  - The same files give the same archive, byte for byte.
options:
  path:
    description:
      - Directory of the project. Exactly one of O(path) and O(git) is needed.
    type: path
  git:
    description:
      - URL of the project's git repository. It may carry a token and is not logged.
    type: str
  version:
    description:
      - With O(git), the branch, tag or commit; empty means the repository's default branch. A branch is looked up
        again in each run.
      - With O(path), only the name that the release gets.
    type: str
    default: ''
  manage:
    description:
      - Path of C(manage.py) inside the project; empty means to find it.
    type: str
    default: ''
  settings_module:
    description:
      - Dotted name of the settings module; empty means the one that C(manage.py) names.
    type: str
    default: ''
  lock_file:
    description:
      - Path of the lock file inside the project; empty means C(uv.lock), C(pylock.toml) or C(requirements.txt),
        beside C(manage.py) first and then in the directories above it.
    type: str
    default: ''
  cache:
    description:
      - Directory for archives and git mirrors. It can be removed at any time.
    type: path
    default: ~/.cache/flotilla/sources
  environment:
    description:
      - Environment variables for git, such as V(GIT_SSL_CAINFO) or V(GIT_SSH_COMMAND).
    type: dict
    default: {}
notes:
  - Nothing counts as a change; the cache is no state of the host. In check mode no archive is written.
attributes:
  check_mode:
    description: Everything is read, and no archive is written. On a host without git, a repository is not read.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
author:
  - The Flotilla maintainers (@flotilla)
"""

EXAMPLES = r"""
- name: Read the project beside the playbook
  flotilla.django.django_project:
    path: "{{ playbook_dir }}/../shop"
  delegate_to: localhost
  register: project

- name: Read a tagged version
  flotilla.django.django_project:
    git: https://git.example.com/shop.git
    version: v4.2
    settings_module: shop.settings.production
  register: project
"""

RETURN = r"""
archive:
  description: Path of the source archive on the host that ran the module.
  returned: success
  type: str
  sample: /root/.cache/flotilla/sources/source-1f6e....tar.gz
source_sha256:
  description: Hash over the names, contents and executable bits of the files.
  returned: success
  type: str
version:
  description: Name of the version, or V(local).
  returned: success
  type: str
commit:
  description: The commit that was packed, or an empty string for a directory.
  returned: success
  type: str
files:
  description: Number of files in the archive.
  returned: success
  type: int
manage:
  description: Path of C(manage.py), relative to the root of the source.
  returned: success
  type: str
settings_module:
  description: Dotted name of the project's settings module.
  returned: success
  type: str
wsgi_module:
  description: Dotted name of the WSGI module beside the settings, or an empty string.
  returned: success
  type: str
python_path:
  description: Directories, relative to the root of the source, that must be on Python's path.
  returned: success
  type: list
  elements: str
lock_file:
  description: Path of the lock file, relative to the root of the source.
  returned: success
  type: str
lock_kind:
  description: V(uv), V(pylock) or V(requirements).
  returned: success
  type: str
requires_python:
  description: Which Python the project asks for, or an empty string.
  returned: success
  type: str
requires_python_source:
  description: The file that says so.
  returned: success
  type: str
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils._django_project_io import (
    ProjectError,
    checkout,
    digest_tree,
    list_directory,
    prune_archives,
    write_archive,
)
from ansible_collections.flotilla.django.plugins.module_utils._django_project_plan import describe


def unknown(params: dict[str, Any]) -> dict[str, Any]:
    """Stand in for a project that cannot be read yet, so that check mode can go on."""
    return {
        "archive": "unknown",
        "source_sha256": "0" * 64,
        "version": params["version"] or "unknown",
        "commit": "",
        "files": 0,
        "manage": params["manage"] or "manage.py",
        "settings_module": params["settings_module"] or "unknown",
        "python_path": ["."],
        "wsgi_module": "",
        "lock_file": params["lock_file"] or "uv.lock",
        "lock_kind": "uv",
        "requires_python": "",
        "requires_python_source": "",
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "git": {"type": "str", "no_log": True},
            "version": {"type": "str", "default": ""},
            "manage": {"type": "str", "default": ""},
            "settings_module": {"type": "str", "default": ""},
            "lock_file": {"type": "str", "default": ""},
            "cache": {"type": "path", "default": "~/.cache/flotilla/sources"},
            "environment": {"type": "dict", "default": {}},
        },
        mutually_exclusive=[("path", "git")],
        required_one_of=[("path", "git")],
        supports_check_mode=True,
    )
    params = module.params
    cache = Path(params["cache"])
    commit, version = "", params["version"]
    if params["git"] and module.check_mode and not shutil.which("git"):
        module.warn("git is not installed here yet, so what the project is cannot be told in check mode")
        module.exit_json(changed=False, **unknown(params))
    try:
        if params["git"]:
            environment = {key: str(value) for key, value in params["environment"].items()}
            directory, commit = checkout(params["git"], version, cache, environment)
            version = version or commit[:12]
        else:
            directory = Path(params["path"])
        paths = list_directory(directory)
        project = describe(
            paths,
            lambda name: (directory / name).read_text(encoding="utf-8", errors="replace"),
            manage=params["manage"],
            settings_module=params["settings_module"],
            lock_file=params["lock_file"],
        )
        digest = digest_tree(directory, paths)
        archive = cache / f"source-{digest}.tar.gz"
        if not archive.exists() and not module.check_mode:
            write_archive(directory, paths, archive)
            prune_archives(cache)
    except (ProjectError, ValueError) as error:
        where = "the git repository" if params["git"] else params["path"]
        module.fail_json(msg=f"django_project ({where}): {error}")
    except OSError as error:
        module.fail_json(msg=f"django_project: cannot read {error.filename}: {error.strerror}")
    for warning in project.warnings:
        module.warn(warning)
    result = asdict(project)
    del result["warnings"]
    module.exit_json(
        changed=False,
        archive=str(archive),
        source_sha256=digest,
        version=version or "local",
        commit=commit,
        files=len(paths),
        **result,
    )


if __name__ == "__main__":
    main()
