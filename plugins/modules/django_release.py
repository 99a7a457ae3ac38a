#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Install a release of a Django project on a node."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: django_release
short_description: Install a release of a Django project on a node
version_added: "0.1.0"
description:
  - Puts a release that M(flotilla.django.django_release_build) made in a directory of its own, C(releases/<id>) below
    O(home), beside the one that runs. It holds C(source/), C(venv), C(static/) with the manifests of the static
    files, if there are any, C(requirements.txt) and C(release.json).
  - C(venv) points at a virtual environment below C(environments), which all releases with the same packages share. A
    node that has it fetches only what is the release's own, the first part of the archive.
  - The node needs no compiler and no package registry. The packages are installed from the archive, each wheel
    checked against its hash, and compiled by the system's Python. Nothing of the release is run, and everything
    belongs to root.
  - C(release.json) is put in place last. A release without it is an interrupted installation and is begun anew.
  - Removes old releases, but never those that C(current) and C(previous) point at, and environments that no release
    has any longer.
options:
  release_id:
    description: Name of the release.
    type: str
    required: true
  pack:
    description:
      - The archive, as the build host knows it (RV(flotilla.django.django_release_build#module:packs)). Without it the
        release must be installed already.
    type: dict
    suboptions:
      sha256:
        description: Hash of the whole archive.
        type: str
        required: true
      head:
        description: Its first part, which is all that a node needs that has the environment.
        type: dict
        required: true
        suboptions:
          environment:
            description: Name of the environment that the release needs.
            type: str
            required: true
          size:
            description: Size in bytes; the environment begins there.
            type: int
            required: true
          sha256:
            description: Hash of the first part.
            type: str
            required: true
  urls:
    description: Base URLs to fetch the archive from, tried in this order.
    type: list
    elements: str
    default: []
  directory:
    description: Where the archive may be on this host already, as on the build host.
    type: path
    default: /var/lib/flotilla/releases
  home:
    description: Directory that holds C(releases), C(current) and C(previous).
    type: path
    default: /srv/django
  keep:
    description: Number of releases to keep, whatever C(current) and C(previous) point at.
    type: int
    default: 5
  timeout:
    description: Seconds to wait for a server that says nothing.
    type: float
    default: 15
attributes:
  action:
    support: partial
    description: >-
      One command of the shell finds out whether there is anything to do; only then the module is started on the host.
  check_mode:
    description: Tells whether the release would be installed and which ones would be removed.
    support: full
  diff_mode:
    description: Shows the names of the releases.
    support: full
author:
  - The Flotilla maintainers (@flotilla)
"""

EXAMPLES = r"""
- name: Install the release
  flotilla.django.django_release:
    release_id: "{{ build['release_id'] }}"
    pack:
      sha256: "{{ build['packs']['release']['sha256'] }}"
      head: "{{ build['packs']['release']['head'] }}"
    urls:
      - http://192.0.2.51:8081/releases/
      - http://192.0.2.52:8081/releases/
  register: release
"""

RETURN = r"""
path:
  description: Directory of the release.
  returned: success
  type: str
  sample: /srv/django/releases/v4.2-0a1b2c3d4e5f
release:
  description: What its C(release.json) says; empty in check mode while it is not installed.
  returned: success
  type: dict
installed:
  description: Whether this run installed it.
  returned: success
  type: bool
source:
  description: Where the archive came from, a path or a URL; empty when nothing was installed.
  returned: success
  type: str
removed:
  description: Names of the releases that were removed.
  returned: success
  type: list
  elements: str
durations:
  description: Seconds that each step took.
  returned: success
  type: dict
"""

import os
import sys
import urllib.parse
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils._django_release_io import (
    BEHIND_REQUESTS,
    Installer,
    ReleaseError,
    download,
    sha256_file,
    this_host,
)
from ansible_collections.flotilla.django.plugins.module_utils._django_release_plan import is_release_id


def obtain(installer: Installer, params: dict[str, Any]) -> tuple[Path, str]:
    """Find the archive on this host or fetch it; return its path and where it came from."""
    name, pack = params["release_id"], params["pack"]
    if not pack:
        raise ReleaseError(f"the release {name} is not installed, and without its pack it cannot be")
    head = pack["head"]
    # The rest of the archive is what the environment is made of.
    enough = installer.has_environment(head["environment"])
    sha256, size = (head["sha256"], head["size"]) if enough else (pack["sha256"], 0)
    file = f"{name}.tar.gz"
    local = Path(params["directory"]) / file
    problems = []
    if local.is_file():
        with installer.clock.step("verify"):
            if sha256_file(local, size or sys.maxsize) == sha256:
                return local, str(local)
        problems.append(f"{local}: its sha256 is not {sha256}")
    installer.releases.mkdir(parents=True, exist_ok=True, mode=0o755)
    target = installer.releases / f".tmp-{file}"
    for base in params["urls"]:
        url = base.rstrip("/") + "/" + urllib.parse.quote(file)
        try:
            with installer.clock.step("download"):
                download(url, target, sha256, timeout=params["timeout"], size=size)
        except ReleaseError as error:
            problems.append(str(error))
        else:
            return target, url
    target.unlink(missing_ok=True)
    raise ReleaseError(
        f"{file} could not be had from anywhere: " + ("; ".join(problems) or "no server is named in urls")
    )


def work(module: AnsibleModule) -> dict[str, Any]:
    """Install, remove old ones, and return the result."""
    params = module.params
    name = params["release_id"]
    if not is_release_id(name):
        raise ReleaseError(f"'{name}' is no name of a release, such as v4.2-0a1b2c3d4e5f")
    if params["keep"] < 1:
        raise ReleaseError(f"keep is {params['keep']}, wanted at least 1")
    installer = Installer(Path(params["home"]), this_host(), os.uname().nodename)
    release = installer.installed(name)
    missing = not release
    source = ""
    if missing and not module.check_mode:
        pack, source = obtain(installer, params)
        try:
            release = installer.install(name, pack, params["pack"]["head"]["size"])
        finally:
            if pack.parent == installer.releases:
                pack.unlink(missing_ok=True)
    removed = installer.prune(params["keep"], name, module.check_mode)
    return {
        "changed": missing or bool(removed),
        "path": str(installer.releases / name),
        "release": release,
        "installed": missing and not module.check_mode,
        "source": source,
        "removed": removed,
        "durations": installer.clock.durations,
        "diff": {
            "before": "".join(f"{one}\n" for one in removed),
            "after": f"{name}\n" if missing else "",
        },
    }


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": {
            "release_id": {"type": "str", "required": True},
            "pack": {
                "type": "dict",
                "options": {
                    "sha256": {"type": "str", "required": True},
                    "head": {
                        "type": "dict",
                        "required": True,
                        "options": {
                            "environment": {"type": "str", "required": True},
                            "size": {"type": "int", "required": True},
                            "sha256": {"type": "str", "required": True},
                        },
                    },
                },
            },
            "urls": {"type": "list", "elements": "str", "default": []},
            "directory": {"type": "path", "default": "/var/lib/flotilla/releases"},
            "home": {"type": "path", "default": "/srv/django"},
            "keep": {"type": "int", "default": 5},
            "timeout": {"type": "float", "default": 15},
        },
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    os.nice(BEHIND_REQUESTS)
    try:
        result = work(module)
    except ReleaseError as error:
        module.fail_json(msg=f"django_release: {error}")
    except OSError as error:
        module.fail_json(msg=f"django_release: {error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
