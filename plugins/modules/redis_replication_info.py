#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_replication_info
short_description: Ask all members of a Redis tier who is the master
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Asks every member at the same time for its role, its link to the master, its offset and its number of
    keys, and says who is the master. It never assumes it.
  - With O(node) it also says what that member has to do, what differs from its configuration files, and some
    facts of the host on which it runs.
  - With O(sentinel_port) it also asks every Sentinel, which tells the right one of two masters; with O(sentinel) it
    says what differs with that of this host.
  - Speaks to Redis itself, with the standard library of Python alone. The password is on no command line.
attributes:
  check_mode:
    support: full
    description: Changes nothing in either mode.
  diff_mode:
    support: none
    description: Changes nothing.
  idempotent:
    support: full
    description: Changes nothing.
extends_documentation_fragment:
  - flotilla.django.redis
  - flotilla.django.redis.sentinel
options:
  node:
    description: Name of the member on which the module runs. Leave it out on other hosts.
    type: str
  initial_master:
    description:
      - Name of the member that becomes the master of a tier without any data. The first one of O(members) by default.
    type: str
  config_paths:
    description: Files with settings that the running Redis should have. Compared when O(node) is given.
    type: list
    elements: str
    default: []
  acl_path:
    description: File with the users that the running Redis should have. Compared when O(node) is given.
    type: str
  certificate_file:
    description: File with the certificate that the running Redis should show. Compared when O(node) is given.
    type: path
  topology_path:
    description: The file that Redis itself rewrites.
    type: str
seealso:
  - module: flotilla.django.redis_node
"""

EXAMPLES = r"""
- name: Ask who is the master
  flotilla.django.redis_replication_info:
    members:
      - name: cache1
        address: 192.0.2.41
      - name: cache2
        address: 192.0.2.42
    login_user: django
    login_password: "{{ cluster_redis_password }}"
  register: redis_replication

- name: Show it
  ansible.builtin.debug:
    msg: "{{ redis_replication['master']['address'] | default('no master: ' ~ redis_replication['problem']) }}"
"""

RETURN = r"""
master:
  description: The one live master, an empty dictionary when there is none or more than one.
  type: dict
  returned: always
  sample: {name: cache1, address: 192.0.2.41}
problem:
  description: Why there is no master, or empty.
  type: str
  returned: always
  sample: ""
nodes:
  description: What each member said.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: Name of the member.
      type: str
    address:
      description: Its address.
      type: str
    state:
      description:
        - V(up), V(loading), V(refused) (no Redis listens there), V(unreachable), V(denied)
          (user or password wrong, or its certificate is not believed).
      type: str
    role:
      description: V(master), V(replica), or empty when it did not answer.
      type: str
    master_address:
      description: Address of the master that a replica follows.
      type: str
    master_port:
      description: Port of the master that a replica follows.
      type: int
    link_up:
      description: Whether a replica is connected and in step.
      type: bool
    replicas:
      description: Number of replicas that are connected to this node.
      type: int
    keys:
      description: Number of keys in all databases.
      type: int
    offset:
      description: Replication offset in bytes.
      type: int
    history:
      description: Replication id. Offsets can be compared within one history only.
      type: str
    detail:
      description: The error of a member that did not answer.
      type: str
sentinels:
  description: What each Sentinel said. Empty without O(sentinel_port).
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: Name of the member.
      type: str
    address:
      description: Its address.
      type: str
    state:
      description: As in RV(nodes[].state).
      type: str
    master_address:
      description: Address of the master that it watches, empty while it watches nothing.
      type: str
    flags:
      description: What it thinks of that master. Only V(master) while all is well.
      type: list
      elements: str
    detail:
      description: The error of a Sentinel that did not answer.
      type: str
decision:
  description: What O(node) has to do about the topology.
  type: dict
  returned: when O(node) is given
  contains:
    action:
      description: V(stay), V(follow), V(promote), V(wait) for another member, or V(refuse).
      type: str
    master:
      description: Name of the master, or of the member that has to become it, or empty.
      type: str
    reason:
      description: Why.
      type: str
settled:
  description:
    - Whether this node runs with the settings and users of its files, and is the master or a replica in step.
  type: bool
  returned: when O(node) is given
differs:
  description:
    - Names of the settings and users that differ from the files, and V(certificate) when another one than that of the
      file is shown. Empty when this node does not run.
  type: list
  elements: str
  returned: when O(node) is given
own_state:
  description: RV(nodes[].state) of O(node).
  type: str
  returned: when O(node) is given
ca_exists:
  description: Whether O(ca_file) exists.
  type: bool
  returned: when O(node) is given
topology_exists:
  description: Whether O(topology_path) exists.
  type: bool
  returned: when O(node) is given
topology_seed:
  description: The line with which that file has to begin when it does not exist.
  type: str
  returned: when O(node) is given
  sample: replicaof 192.0.2.41 6379
sentinel_exists:
  description: Whether the file of the Sentinel on this host exists and is its own, not copied from another host.
  type: bool
  returned: when O(sentinel) is given
sentinel_state:
  description: RV(sentinels[].state) of O(node), empty without O(sentinel_port).
  type: str
  returned: when O(sentinel) is given
sentinel_differs:
  description: What is not as it should be with the Sentinel of this host. Empty when it is in its place.
  type: list
  elements: str
  returned: when O(sentinel) is given
memory_mb:
  description: Memory of this host in MiB.
  type: int
  returned: when O(node) is given
overcommit_memory:
  description: The kernel's C(vm.overcommit_memory) on this host.
  type: int
  returned: when O(node) is given
overcommit_writable:
  description: Whether this host may change it.
  type: bool
  returned: when O(node) is given
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as redis_plan
from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_io as sentinel_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_plan as sentinel_plan


def differences(params: dict[str, Any], address: str) -> list[str]:
    """Names of the settings and users of the running Redis that are not as in the files."""
    wanted: dict[str, str] = {}
    for path in params["config_paths"]:
        wanted |= redis_plan.parse_settings(redis_io.read_text(path))
    users = redis_plan.parse_users(redis_io.read_text(params["acl_path"])) if params["acl_path"] else {}
    login = redis_io.login_of(params)
    with redis_io.Client(address, params["port"], *login) as client:
        names = list(redis_io.differing_settings(client, wanted))
        if redis_io.shows_another(client, params["certificate_file"]):
            names.append("certificate")
        if users:
            to_set, to_delete = redis_io.differing_users(client, users)
            names += [f"user {name}" for name in to_set + to_delete]
    return names


def about_node(params: dict[str, Any], nodes: list[redis_plan.Node], chosen: str) -> dict[str, Any]:
    """What concerns the member on which the module runs."""
    initial_master = params["initial_master"] or nodes[0].name
    decision = redis_plan.decide(nodes, params["node"], initial_master, chosen)
    me = next(node for node in nodes if node.name == params["node"])
    differs = differences(params, me.address) if me.state == redis_plan.UP else []
    in_place = decision.action == redis_plan.STAY and (me.is_master or me.link_up)
    value, writable = redis_io.overcommit_memory()
    return {
        "decision": asdict(decision),
        "settled": in_place and not differs,
        "differs": differs,
        "own_state": me.state,
        "ca_exists": bool(params["ca_file"]) and Path(params["ca_file"]).exists(),
        "topology_exists": bool(params["topology_path"]) and Path(params["topology_path"]).exists(),
        "topology_seed": redis_plan.topology_seed(nodes, params["node"], params["port"], initial_master, chosen),
        "memory_mb": redis_io.host_memory_mb(),
        "overcommit_memory": value,
        "overcommit_writable": writable,
    }


def about_sentinel(
    params: dict[str, Any], sentinels: list[sentinel_plan.Sentinel], master: redis_plan.Node | None
) -> dict[str, Any]:
    """What concerns the Sentinel of the member on which the module runs."""
    address = next(member["address"] for member in params["members"] if member["name"] == params["node"])
    text = redis_io.read_text(params["sentinel"]["path"])
    own = next((sentinel for sentinel in sentinels if sentinel.name == params["node"]), None)
    state = own.state if own else ""
    return {
        "sentinel_exists": bool(text) and not sentinel_plan.is_foreign(text, address),
        "sentinel_state": state,
        "sentinel_differs": (
            sentinel_io.differences(params, own, sentinels, master) if own and state == redis_plan.UP else [state]
        ),
    }


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": {
            **redis_io.member_options(),
            **sentinel_io.sentinel_options(),
            "node": {"type": "str"},
            "initial_master": {"type": "str"},
            "config_paths": {"type": "list", "elements": "str", "default": []},
            "acl_path": {"type": "str"},
            "certificate_file": {"type": "path"},
            "topology_path": {"type": "str"},
        },
        "required_by": {"sentinel": ["node"]},
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    params = module.params
    if not params["members"]:
        module.fail_json(msg="members is empty, wanted at least one member")
    login = redis_io.login_for(module)
    nodes = redis_io.ask_all(params["members"], params["port"], *login)
    sentinels = sentinel_io.ask_all(params["members"], params["sentinel_port"], *login)
    chosen = sentinel_plan.chosen_master(sentinels)
    shown = ("name", "address", "state", "master_address", "flags", "detail")
    result: dict[str, Any] = {
        "nodes": [asdict(node) for node in nodes],
        "sentinels": [{name: getattr(sentinel, name) for name in shown} for sentinel in sentinels],
        "master": {},
        "problem": "",
    }
    master = None
    try:
        master = redis_plan.find_master(nodes, chosen)
        if master is None:
            result["problem"] = "no member is the master"
        else:
            result["master"] = {"name": master.name, "address": master.address}
    except ValueError as error:
        result["problem"] = str(error)
    if params["node"]:
        try:
            result |= about_node(params, nodes, chosen)
            if params["sentinel"]:
                result |= about_sentinel(params, sentinels, master)
        except (ValueError, OSError, redis_io.ReplyError) as error:
            module.fail_json(msg=str(error), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
