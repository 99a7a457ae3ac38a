#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Build a release of a Django project."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: django_release_build
short_description: Build a release of a Django project
version_added: "0.1.0"
description:
  - Builds, once and on one host, what all Django hosts and static servers need of a version of a project. The result is
    two archives. C(<id>.tar.gz) holds C(release.json) and the source, and behind them, as an archive of its own, the
    wheels of all packages, which are taken from the archive of an earlier release where they are the same;
    C(<id>-static.tar.gz) holds the collected static files, compressed beside the originals.
  - A release is named after everything it is built from, that is the source, the lock file, extra packages, build
    commands and environment, the settings module, options of the static files, Python, architecture and Debian release.
    While the archives of that name are there and are what was written, nothing is built.
  - Packages are pinned and hashed by the project's lock file. A C(requirements.txt) with ranges or without hashes is
    resolved once, when its release is built; a newer version upstream is no reason to build again.
  - All of the project's code, build systems of its packages included, runs under the unprivileged account O(account),
    which is made when it is missing.
options:
  version:
    description: Name of the version; the first part of the release's name.
    type: str
    required: true
  archive:
    description: Source archive on this host, as written by M(flotilla.django.django_project).
    type: path
    required: true
  source_sha256:
    description: Hash of the source, from M(flotilla.django.django_project).
    type: str
    required: true
  manage:
    description: Path of C(manage.py), relative to the root of the source.
    type: str
    default: manage.py
  settings_module:
    description: Dotted name of the project's settings module.
    type: str
    required: true
  wsgi_module:
    description: Dotted name of the WSGI module, for projects whose settings have no C(WSGI_APPLICATION).
    type: str
    default: ''
  python_path:
    description: Directories of the source that must be on Python's path.
    type: list
    elements: str
    default: ['.']
  lock_file:
    description: Path of the lock file, relative to the root of the source.
    type: str
    required: true
  lock_kind:
    description: Kind of the lock file.
    type: str
    choices: [uv, pylock, requirements]
    required: true
  lock_groups:
    description: Dependency groups of C(uv.lock) or C(pylock.toml) to install besides the project's dependencies.
    type: list
    elements: str
    default: []
  lock_extras:
    description: Extras (optional dependencies) of C(uv.lock) or C(pylock.toml) to install.
    type: list
    elements: str
    default: []
  requires_python:
    description: Which Python the project asks for. A host with another one is refused before anything is done.
    type: str
    default: ''
  requires_python_source:
    description: The file that says so, for the message.
    type: str
    default: ''
  extra_packages:
    description: Packages that the cluster needs. Where the project pins one of them, the project's version is taken.
    type: list
    elements: str
    default: []
  build_commands:
    description:
      - Commands run by bash in the root of the source, between the installation of the packages and C(collectstatic),
        with the virtual environment first in C(PATH) and the settings module in the environment.
    type: list
    elements: str
    default: []
  build_environment:
    description: Environment variables for everything that the build runs. They may hold secrets and are not logged.
    type: dict
    default: {}
  static_url:
    description: Overrides the project's C(STATIC_URL); empty keeps it.
    type: str
    default: ''
  static_hashed_names:
    description: Collect the static files under names with a hash of their content.
    type: bool
    default: false
  cluster_settings:
    description:
      - Text of the settings module that wraps the project's. Empty for a project that reads its settings from the
        environment; its own module is used then, and its C(STATIC_ROOT) must come from the variable E(STATIC_ROOT).
    type: str
    default: ''
  uv_requirements:
    description: Requirements file, with hashes, of the tool that resolves and installs (uv).
    type: str
    required: true
  index_url:
    description: URL of the package index; empty means the public one. It may carry a password and is not logged.
    type: str
    default: ''
  ca_file:
    description: File on this host with the certificates to trust, for builds behind an inspecting proxy.
    type: str
    default: ''
  directory:
    description: Where the archives are kept.
    type: path
    default: /var/lib/flotilla/releases
  work:
    description: Where builds and their caches are.
    type: path
    default: /var/lib/flotilla/build
  tools:
    description: Virtual environment of the build tool.
    type: path
    default: /opt/flotilla/uv
  home:
    description: Where the nodes have their releases; the archives of C(current) and C(previous) are never removed.
    type: path
    default: /srv/django
  keep:
    description: Number of releases whose archives are kept.
    type: int
    default: 5
  account:
    description: Unprivileged account that runs the project's code.
    type: str
    default: django-build
  prepare:
    description:
      - Only say whether a build is needed (RV(build_needed)), so that packages and source are brought to the host only
        then. When none is needed, the complete result is returned.
    type: bool
    default: false
attributes:
  check_mode:
    description: Tells the release's name and whether it would be built.
    support: full
  diff_mode:
    description: Shows the name of the release that is built.
    support: full
author:
  - The Flotilla maintainers (@flotilla)
"""

EXAMPLES = r"""
- name: Build the release
  flotilla.django.django_release_build:
    version: "{{ project['version'] }}"
    archive: /var/lib/flotilla/sources/source.tar.gz
    source_sha256: "{{ project['source_sha256'] }}"
    settings_module: shop.settings
    lock_file: uv.lock
    lock_kind: uv
    requires_python: ">=3.11"
    extra_packages: ["psycopg[binary]==3.3.9", "gunicorn==27.0.1"]
    cluster_settings: "{{ lookup('ansible.builtin.file', 'cluster_settings.py') }}"
    uv_requirements: "{{ lookup('ansible.builtin.file', 'uv-requirements.txt') }}"
  register: build
"""

RETURN = r"""
release_id:
  description: Name of the release.
  returned: success
  type: str
  sample: v4.2-0a1b2c3d4e5f
build_needed:
  description: Whether the release has to be built; always false after a build.
  returned: success
  type: bool
built:
  description: Whether this run built it.
  returned: success
  type: bool
packs:
  description: The archives V(release) and V(static), each with C(file), C(path), C(sha256) and C(size) in bytes, and
    V(release) with its C(head), which is all that a node needs that has the same packages, by C(environment),
    C(size) and C(sha256). Empty while the release is not built.
  returned: success
  type: dict
release:
  description: What C(release.json) says; C(id), C(version), C(python), C(arch), C(debian), C(django),
    C(settings_module), C(wsgi_application) (as gunicorn wants it), C(manage), C(python_path), C(static_url),
    C(static_files), C(environment).
  returned: success
  type: dict
removed:
  description: Names of the releases whose archives were removed.
  returned: success
  type: list
  elements: str
durations:
  description: Seconds that each step of a build took.
  returned: success
  type: dict
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils._django_release_builder import Builder, Order
from ansible_collections.flotilla.django.plugins.module_utils._django_release_io import (
    BEHIND_REQUESTS,
    Clock,
    ReleaseError,
    linked_releases,
    list_packs,
    load_pack,
    public_packs,
    this_host,
)
from ansible_collections.flotilla.django.plugins.module_utils._django_release_plan import (
    prune,
    python_problem,
    release_id,
)

# What a release is made from. `archive` and the like are ways to get there.
INPUTS = (
    "source_sha256",
    "manage",
    "settings_module",
    "wsgi_module",
    "python_path",
    "lock_file",
    "lock_kind",
    "lock_groups",
    "lock_extras",
    "extra_packages",
    "build_commands",
    "static_url",
    "static_hashed_names",
)  # and whether cluster_settings wraps the settings: see work()


def remove_old(directory: Path, home: Path, keep: int, wanted: str, pretend: bool) -> list[str]:
    """Remove the archives of old releases."""
    removed = prune(list_packs(directory), keep, [wanted, *linked_releases(home)]).remove
    if not pretend:
        for name in removed:
            for suffix in (".json", ".tar.gz", "-static.tar.gz"):
                (directory / f"{name}{suffix}").unlink(missing_ok=True)
    return removed


def work(module: AnsibleModule) -> dict[str, Any]:
    """Build what is missing and return the result."""
    params = module.params
    directory, home = Path(params["directory"]), Path(params["home"])
    host = this_host()
    problem = python_problem(host, params["requires_python"], params["requires_python_source"], os.uname().nodename)
    if problem:
        raise ReleaseError(problem)
    if params["keep"] < 1:
        raise ValueError(f"keep is {params['keep']}, wanted at least 1")
    environment = {str(key): str(value) for key, value in params["build_environment"].items()}
    inputs = {name: params[name] for name in INPUTS}
    secret = json.dumps(environment, sort_keys=True)
    inputs["environment"] = hashlib.sha256(secret.encode()).hexdigest()
    inputs["wrapped"] = bool(params["cluster_settings"])
    inputs["host"] = [host.python, host.arch, host.debian]
    name = release_id(params["version"], inputs)

    index = load_pack(directory, name)
    clock = Clock()
    needed = not index
    if needed and not params["prepare"] and not module.check_mode:
        fields = {field.name for field in dataclasses.fields(Order)}
        order = Order(
            **{key: value for key, value in params.items() if key in fields - {"archive", "build_environment"}},
            release_id=name,
            archive=Path(params["archive"]),
            build_environment=environment,
        )
        builder = Builder(
            order,
            host,
            account_name=params["account"],
            tools=Path(params["tools"]),
            work=Path(params["work"]),
            packs=directory,
            home=home,
            clock=clock,
        )
        index = builder.build()
    built = needed and bool(index)
    removed: list[str] = []
    if index:
        packs = list_packs(directory)
        if packs and packs[0] != name and not module.check_mode:
            # The archives are removed by age: the release in use is the youngest.
            os.utime(directory / f"{name}.json")
        removed = remove_old(directory, home, params["keep"], name, module.check_mode)
    return {
        "changed": bool(built or removed or (needed and module.check_mode)),
        "release_id": name,
        "build_needed": not index,
        "built": built,
        "packs": public_packs(directory, index),
        "release": index.get("release", {"id": name}),
        "removed": removed,
        "durations": clock.durations,
        "diff": {"before": "", "after": f"release {name}\n"} if needed else {},
    }


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    strings = {"type": "list", "elements": "str"}
    return {
        "argument_spec": {
            "version": {"type": "str", "required": True},
            "archive": {"type": "path", "required": True},
            "source_sha256": {"type": "str", "required": True},
            "manage": {"type": "str", "default": "manage.py"},
            "settings_module": {"type": "str", "required": True},
            "wsgi_module": {"type": "str", "default": ""},
            "python_path": {**strings, "default": ["."]},
            "lock_file": {"type": "str", "required": True},
            "lock_kind": {"type": "str", "choices": ["uv", "pylock", "requirements"], "required": True},
            "lock_groups": {**strings, "default": []},
            "lock_extras": {**strings, "default": []},
            "requires_python": {"type": "str", "default": ""},
            "requires_python_source": {"type": "str", "default": ""},
            "extra_packages": {**strings, "default": []},
            "build_commands": {**strings, "default": []},
            "build_environment": {"type": "dict", "default": {}, "no_log": True},
            "static_url": {"type": "str", "default": ""},
            "static_hashed_names": {"type": "bool", "default": False},
            "cluster_settings": {"type": "str", "default": ""},
            "uv_requirements": {"type": "str", "required": True},
            "index_url": {"type": "str", "default": "", "no_log": True},
            "ca_file": {"type": "str", "default": ""},
            "directory": {"type": "path", "default": "/var/lib/flotilla/releases"},
            "work": {"type": "path", "default": "/var/lib/flotilla/build"},
            "tools": {"type": "path", "default": "/opt/flotilla/uv"},
            "home": {"type": "path", "default": "/srv/django"},
            "keep": {"type": "int", "default": 5},
            "account": {"type": "str", "default": "django-build"},
            "prepare": {"type": "bool", "default": False},
        },
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    os.nice(BEHIND_REQUESTS)
    try:
        result = work(module)
    except (ReleaseError, ValueError) as error:
        module.fail_json(msg=f"django_release_build: {error}")
    except OSError as error:
        module.fail_json(msg=f"django_release_build: {error.filename}: {error.strerror}")
    except ImportError as error:
        module.fail_json(msg=f"django_release_build: {error}; Debian's package python3-brotli is needed")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
