#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Send the archives of releases to the static servers."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: django_release_upload
short_description: Send the archives of releases to the static servers
version_added: "0.1.0"
description:
  - Runs on the build host. Puts every archive that a static server lacks, or has with another size or checksum, at its
    internal address, and asks for both afterwards. A static server that was made anew gets all that are kept.
  - A server that cannot be reached is reported, and only counts as an error when no other server has the release. One
    that answers with an error always counts.
options:
  servers:
    description: Base URLs of the servers' internal locations, such as V(http://192.0.2.51:8081/releases/).
    type: list
    elements: str
    required: true
  releases:
    description: Names of the releases to send; empty means all whose archives are kept.
    type: list
    elements: str
    default: []
  directory:
    description: Where the archives are.
    type: path
    default: /var/lib/flotilla/releases
  timeout:
    description: Seconds to wait for a server that says nothing.
    type: float
    default: 15
attributes:
  check_mode:
    description: Tells what would be sent. A server that is not there yet is expected to lack everything.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
author:
  - The Flotilla maintainers (@flotilla)
"""

EXAMPLES = r"""
- name: Send the releases to both static servers
  flotilla.django.django_release_upload:
    servers:
      - http://192.0.2.51:8081/releases/
      - http://192.0.2.52:8081/releases/
"""

RETURN = r"""
sent:
  description: For each server, the names of the files that were sent to it.
  returned: success
  type: dict
  sample: {"http://192.0.2.51:8081/releases/": ["v4.2-0a1b2c3d4e5f.tar.gz"]}
not_reached:
  description: The servers that could not be reached, each with the reason.
  returned: success
  type: dict
releases:
  description: The releases that the servers hold now, newest first, each with C(id), C(packs) (C(release) and
    C(static), with C(file), C(path), C(sha256) and C(size)) and C(release) (its C(release.json)).
  returned: success
  type: list
  elements: dict
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils._django_release_io import (
    ReleaseError,
    TransferError,
    list_packs,
    load_pack,
    public_packs,
    send,
)


def work(module: AnsibleModule) -> dict[str, Any]:
    """Send what is missing and return the result."""
    params = module.params
    directory = Path(params["directory"])
    indexes = {}
    for name in params["releases"] or list_packs(directory):
        index = load_pack(directory, name)
        if index:
            indexes[name] = index
        elif name in params["releases"] and not module.check_mode:
            raise ReleaseError(f"the archives of the release {name} are not in {directory}, or not what was written")
    packs = [str(pack["file"]) for index in indexes.values() for pack in public_packs(directory, index).values()]

    def one(server: str) -> list[str] | Exception:
        try:
            return send(server, directory, packs, timeout=params["timeout"], pretend=module.check_mode)
        except ReleaseError as error:
            return error

    sent: dict[str, list[str]] = {}
    not_reached: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=4) as pool:
        for server, outcome in zip(params["servers"], pool.map(one, params["servers"]), strict=True):
            if isinstance(outcome, TransferError):
                not_reached[server] = str(outcome)
            elif isinstance(outcome, Exception):
                raise outcome
            elif outcome:
                sent[server] = outcome
    if module.check_mode:
        sent.update({server: packs for server in not_reached if packs})
    elif packs and len(not_reached) == len(params["servers"]):
        raise ReleaseError("no static server can be reached: " + "; ".join(not_reached.values()))
    for reason in not_reached.values():
        module.warn(f"not sent, the server cannot be reached: {reason}")
    return {
        "changed": bool(sent),
        "sent": sent,
        "not_reached": not_reached,
        "releases": [
            {"id": name, "packs": public_packs(directory, index), "release": index["release"]}
            for name, index in indexes.items()
        ],
    }


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": {
            "servers": {"type": "list", "elements": "str", "required": True},
            "releases": {"type": "list", "elements": "str", "default": []},
            "directory": {"type": "path", "default": "/var/lib/flotilla/releases"},
            "timeout": {"type": "float", "default": 15},
        },
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    try:
        result = work(module)
    except ReleaseError as error:
        module.fail_json(msg=f"django_release_upload: {error}")
    except OSError as error:
        module.fail_json(msg=f"django_release_upload: {error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
