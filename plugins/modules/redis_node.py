#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_node
short_description: Bring a running member of a Redis tier to its place without a restart
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Gives the running Redis the settings and users of its files with C(CONFIG SET) and C(ACL SETUSER). No connection
    is closed.
  - Asks all members who is the master and lets this one follow it. Where no member is the master, all of them have
    answered and this one loses nothing by it, it becomes the master. C(CONFIG REWRITE) makes that last.
  - Never moves a master that holds data. Two masters that hold data are refused.
  - Where a majority of Sentinels watches the tier (O(sentinel_port)), it is they who choose the master and settle two
    of them; this module waits for that.
  - Waits until a replica is in step with the master. Fails after O(wait) seconds.
attributes:
  check_mode:
    support: full
    description: Says what would be set now. Waits for nothing.
  diff_mode:
    support: none
    description: The files are shown by the module that writes them.
  idempotent:
    support: full
    description: A second run changes nothing.
extends_documentation_fragment:
  - flotilla.django.redis
options:
  node:
    description: Name of the member on which the module runs.
    type: str
    required: true
  initial_master:
    description:
      - Name of the member that becomes the master of a tier without any data. The first one of O(members) by default.
    type: str
  config_paths:
    description: Files with settings that the running Redis has to have.
    type: list
    elements: str
    default: []
  acl_path:
    description: File with the users that the running Redis has to have. Users that are not in it are deleted.
    type: str
  certificate_file:
    description: File with the certificate that Redis should show. One that shows another reads it again.
    type: path
  fresh_connections:
    description:
      - When this node is in its place, end the connections of everybody else and that to its master, and wait until it
        is in step again. Those that were made before TLS was turned on come back with it.
    type: bool
    default: false
  wait:
    description: Seconds to wait until this node runs, the master is known and the data is copied.
    type: float
    default: 60.0
seealso:
  - module: flotilla.django.redis_replication_info
"""

EXAMPLES = r"""
- name: Bring this member to its place
  flotilla.django.redis_node:
    node: cache2
    members:
      - name: cache1
        address: 192.0.2.41
      - name: cache2
        address: 192.0.2.42
    login_user: admin
    login_password: "{{ redis_admin_password }}"
    config_paths:
      - /etc/redis/flotilla-live.conf
    acl_path: /etc/redis/flotilla-users.acl
"""

RETURN = r"""
settings:
  description: Names of the settings that were set.
  type: list
  elements: str
  returned: always
users:
  description: Names of the users that were set or deleted.
  type: list
  elements: str
  returned: always
topology:
  description: What was done about the topology, in order.
  type: list
  elements: str
  returned: always
  sample: [REPLICAOF 192.0.2.41 6379]
ended:
  description: How many connections O(fresh_connections) ended.
  type: int
  returned: always
reason:
  description: Why the topology is as it is now.
  type: str
  returned: always
"""

import time
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as redis_plan
from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_io as sentinel_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_plan as sentinel_plan


@dataclass
class Result:
    """What was done, or in check mode would be."""

    settings: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    topology: list[str] = field(default_factory=list)
    ended: int = 0
    reason: str = ""
    warnings: list[str] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        changed = bool(self.settings or self.users or self.topology or self.ended)
        named = {"settings": self.settings, "users": self.users, "topology": self.topology, "reason": self.reason}
        return {"changed": changed, "ended": self.ended, **named}


def converge_files(client: redis_io.Client, params: dict[str, Any], result: Result, check: bool) -> None:
    """Settings and users as in the files."""
    wanted: dict[str, str] = {}
    for path in params["config_paths"]:
        wanted |= redis_plan.parse_settings(redis_io.read_text(path))
    to_set = redis_io.differing_settings(client, wanted)
    if redis_io.shows_another(client, params["certificate_file"]) and "tls-cert-file" in wanted:
        to_set["tls-cert-file"] = wanted["tls-cert-file"]  # the same name again: Redis reads the file
    result.settings = sorted(to_set)
    if to_set and not check:
        client.call("CONFIG", "SET", *(word for pair in to_set.items() for word in pair))
    users = redis_plan.parse_users(redis_io.read_text(params["acl_path"])) if params["acl_path"] else {}
    if users:
        changed, deleted = redis_io.differing_users(client, users)
        result.users = changed + deleted
        if not check:
            redis_io.set_users(client, users, changed, deleted)


def converge_topology(params: dict[str, Any], result: Result, check: bool, deadline: float) -> None:
    """Asks and acts until this node is in its place. Raises TimeoutError or ValueError."""
    login = redis_io.login_of(params)
    initial_master = params["initial_master"] or params["members"][0]["name"]
    while True:
        nodes = redis_io.ask_all(params["members"], params["port"], *login)
        sentinels = sentinel_io.ask_all(params["members"], params["sentinel_port"], *login)
        me = next(node for node in nodes if node.name == params["node"])
        decision = redis_plan.decide(nodes, me.name, initial_master, sentinel_plan.chosen_master(sentinels))
        result.reason = decision.reason
        late = time.monotonic() > deadline
        if me.state != redis_plan.UP:
            if late:
                raise TimeoutError(f"Redis on {me.name} ({me.address}:{params['port']}) is {me.state}: {me.detail}")
        elif decision.action == redis_plan.STAY:
            if me.is_master or me.link_up:
                return
            if not decision.master:
                result.warnings.append(f"Redis on {me.name} keeps its data and waits for its master: {decision.reason}")
                return
            if late:
                raise TimeoutError(
                    f"Redis on {me.name} follows {decision.master} but gets no data from it; see its log"
                )
        elif decision.action in (redis_plan.FOLLOW, redis_plan.PROMOTE):
            target = next(node for node in nodes if node.name == decision.master)
            order = ("NO", "ONE") if decision.action == redis_plan.PROMOTE else (target.address, str(params["port"]))
            result.topology.append(" ".join(("REPLICAOF", *order)))
            if check:
                return
            if late:
                raise TimeoutError(f"Redis on {me.name} does not stay with {decision.master}: {decision.reason}")
            with redis_io.Client(me.address, params["port"], *login) as client:
                client.call("REPLICAOF", *order)
                client.call("CONFIG", "REWRITE")
            continue
        elif late and decision.action == redis_plan.REFUSE:
            raise ValueError(decision.reason)
        elif late:
            advice = (
                "Run the play for all Redis hosts" if decision.master else "Start it or take it out of the inventory"
            )
            raise TimeoutError(f"Redis on {me.name} has no master: {decision.reason}. {advice}, and run again")
        if check:
            return
        time.sleep(0.3)


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": {
            **redis_io.member_options(),
            "node": {"type": "str", "required": True},
            "initial_master": {"type": "str"},
            "config_paths": {"type": "list", "elements": "str", "default": []},
            "acl_path": {"type": "str"},
            "certificate_file": {"type": "path"},
            "fresh_connections": {"type": "bool", "default": False},
            "wait": {"type": "float", "default": 60.0},
        },
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    params, check = module.params, module.check_mode
    addresses = {member["name"]: member["address"] for member in params["members"]}
    if params["node"] not in addresses:
        module.fail_json(msg=f"node is '{params['node']}', wanted one of the members: {', '.join(addresses)}")
    login = redis_io.login_for(module)
    result = Result()
    deadline = time.monotonic() + params["wait"]
    try:
        while True:
            try:
                client = redis_io.Client(addresses[params["node"]], params["port"], *login)
                break
            except OSError as error:
                if check:  # the daemon is not installed or not started yet: everything is still to be done
                    result.topology.append("not running")
                    module.exit_json(**result.values())
                if time.monotonic() > deadline:
                    module.fail_json(msg=f"Redis on {params['node']} does not answer: {error}", **result.values())
                time.sleep(0.3)
        with client:
            converge_files(client, params, result, check)
        converge_topology(params, result, check, deadline)
        if params["fresh_connections"] and not check:
            with redis_io.Client(addresses[params["node"]], params["port"], *login) as client:
                result.ended = redis_io.end_connections(client)
            converge_topology(params, result, check, deadline)
    except (OSError, ValueError, redis_io.ReplyError) as error:
        module.fail_json(msg=str(error), **result.values())
    for warning in result.warnings:
        module.warn(warning)
    module.exit_json(**result.values())


if __name__ == "__main__":
    main()
