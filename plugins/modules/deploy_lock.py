#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lock and the journal of deploys."""

from __future__ import annotations

DOCUMENTATION = r"""
module: deploy_lock
short_description: The lock of deploys, and the journal of the one that runs
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Only one deploy or rollback at a time. The lock is a file on one fixed host; it says who holds it, since when, in
    which phase and at which nodes the deploy works.
  - The nodes are the journal. A deploy that was killed could clean nothing up, and the one that takes its lock over
    learns here which nodes may have been left drained.
options:
  state:
    description:
      - V(read) returns the lock and changes nothing.
      - V(held) takes the lock, or writes O(phase) and O(nodes) when O(owner) holds it already.
      - V(free) gives it back. With O(nodes) those stay on record for the next deploy, with O(former_releases) and
        O(release). A lock of somebody else is left alone.
    type: str
    choices: [read, held, free]
    required: true
  owner:
    description: Who takes the lock. The C(id) tells deploys apart; the rest is for people.
    type: dict
    default: {}
  phase:
    description: What the deploy is doing.
    type: str
    default: ''
  nodes:
    description:
      - The nodes it has taken out of service.
      - Without it V(held) keeps those that are on record, and V(free) keeps none.
    type: list
    elements: str
  keep_nodes:
    description: Whether V(held) keeps those that are on record besides O(nodes).
    type: bool
    default: false
  release:
    description:
      - The release that a rollback goes back to. One that was interrupted is finished with it, because what the nodes
        ran before does not tell any more.
      - Without it V(held) and V(free) keep the one that is on record.
    type: str
  former_releases:
    description:
      - The release that each node ran before the deploy, by node. A deploy that finishes an interrupted one, and fails
        itself, takes all nodes back to these.
      - Without it V(held) keeps those that are on record.
    type: dict
  wait:
    description: Seconds to wait for the lock of somebody else.
    type: int
    default: 0
  take_over:
    description: The C(id) of the deploy whose lock may be taken over. Any other lock still counts.
    type: str
    default: ''
  path:
    description: The file.
    type: path
    default: /var/lib/flotilla/deploy.json
attributes:
  check_mode:
    support: full
    description: Tells whether the lock could be taken, and writes nothing.
  diff_mode:
    support: none
    description: The lock is no configuration.
  idempotent:
    support: full
    description: A lock that is held by O(owner) stays.
"""

EXAMPLES = r"""
- name: Take the lock
  flotilla.django.deploy_lock:
    state: held
    owner:
      id: 20261124T030000Z-anna
      user: anna
      host: controller
    wait: 600
  delegate_to: app1
  run_once: true
"""

RETURN = r"""
lock:
  description: The lock as it is now; empty when nobody holds it.
  type: dict
  returned: always
former:
  description: What stood there before; with the C(nodes) that an earlier deploy left behind.
  type: dict
  returned: always
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _deploy_plan as plan


class Held(Exception):
    """Somebody else holds the lock."""


class Journal:
    """The file, read and written under a lock of the kernel."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise Held(f"{self.path} is not a lock of this program ({error}): look at it, and remove it") from error

    def write(self, content: dict[str, Any]) -> None:
        if not content:
            self.path.unlink(missing_ok=True)
            return
        new = self.path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as handle:
            json.dump(content, handle)
            handle.flush()
            os.fsync(handle.fileno())
        new.replace(self.path)


def take(journal: Journal, params: dict[str, Any], check_mode: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take the lock, or write the journal of the one that is held. Returns what stood there and what stands now."""
    owner = params["owner"]
    former = journal.read()
    mine = former.get("id") == owner["id"]
    if former.get("id") and not mine and former["id"] != params["take_over"]:
        raise Held(plan.holder(former, time.time()))
    lock = owner | {"phase": params["phase"]}
    for name, nothing in (("nodes", []), ("former_releases", {}), ("release", "")):
        lock[name] = former.get(name, nothing) if params[name] is None else params[name]
    if params["keep_nodes"]:
        lock["nodes"] = [*lock["nodes"], *(node for node in former.get("nodes", []) if node not in lock["nodes"])]
    lock["since"] = former["since"] if mine else time.time()
    if not check_mode:
        journal.write(lock)
    return former, lock


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    journal = Journal(params["path"])
    if params["state"] == "read":
        lock = journal.read()
        return {"former": lock, "lock": lock}
    if not params["owner"].get("id"):
        raise ValueError("owner: wants a dictionary with an id")
    if params["state"] == "free":
        with journal.alone():
            former = journal.read()
            if former.get("id") != params["owner"]["id"]:
                return {"former": former, "lock": former}
            left = {}
            if params["nodes"]:
                release = former.get("release", "") if params["release"] is None else params["release"]
                left = {
                    "nodes": params["nodes"],
                    "former_releases": params["former_releases"] or {},
                    "release": release,
                }
            if not module.check_mode:
                journal.write(left)
        return {"former": former, "lock": left}
    deadline = time.monotonic() + params["wait"]
    while True:
        try:
            with journal.alone():
                former, lock = take(journal, params, module.check_mode)
            return {"former": former, "lock": lock}
        except Held:
            if time.monotonic() >= deadline:
                raise
        time.sleep(1)


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": {
            "state": {"type": "str", "choices": ["read", "held", "free"], "required": True},
            "owner": {"type": "dict", "default": {}},
            "phase": {"type": "str", "default": ""},
            "nodes": {"type": "list", "elements": "str"},
            "keep_nodes": {"type": "bool", "default": False},
            "former_releases": {"type": "dict"},
            "release": {"type": "str"},
            "wait": {"type": "int", "default": 0},
            "take_over": {"type": "str", "default": ""},
            "path": {"type": "path", "default": "/var/lib/flotilla/deploy.json"},
        },
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    try:
        result = run(module)
    except Held as error:
        lock = Journal(module.params["path"])
        held = {}
        with contextlib.suppress(Held):
            held = lock.read()
        module.fail_json(msg=str(error), lock=held, former=held)
    except (ValueError, OSError) as error:
        module.fail_json(msg=str(error), lock={}, former={})
    # Neither taking nor freeing the lock changes what the host is.
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
