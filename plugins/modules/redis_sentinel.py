#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_sentinel
short_description: Let the Sentinel of this host watch the live master of its tier
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Tells a running Sentinel what it lacks, with C(SENTINEL MONITOR), C(SENTINEL SET), C(SENTINEL CONFIG SET) and
    C(ACL SETUSER). Its file belongs to it and is never written.
  - A Sentinel that watches nothing gets the master that the members themselves name. One that watches a master is
    never pointed elsewhere; the Sentinels settle that among themselves, and the module waits for it.
  - A Sentinel that still counts Sentinels or replicas of hosts that are no members any more forgets them
    (C(SENTINEL RESET)), while it sees its master up and no failover goes on.
  - Waits until it has found the others and agrees with the members about the master. Fails after O(wait) seconds.
attributes:
  check_mode:
    support: full
    description: Says what would be told now. Waits for nothing.
  diff_mode:
    support: none
    description: What a Sentinel is told holds a password.
  idempotent:
    support: full
    description: A second run changes nothing.
extends_documentation_fragment:
  - flotilla.django.redis
  - flotilla.django.redis.sentinel
options:
  node:
    description: Name of the member on which the module runs.
    type: str
    required: true
  wait:
    description: Seconds to wait until the Sentinel runs, has found the others and agrees with the members.
    type: float
    default: 60.0
seealso:
  - module: flotilla.django.redis_node
  - module: flotilla.django.redis_replication_info
"""

EXAMPLES = r"""
- name: Let Sentinel watch the master
  flotilla.django.redis_sentinel:
    node: cache2
    members:
      - name: cache1
        address: 192.0.2.41
      - name: cache2
        address: 192.0.2.42
      - name: cache3
        address: 192.0.2.43
    sentinel_port: 26379
    login_user: admin
    login_password: "{{ redis_admin_password }}"
    sentinel:
      path: /etc/redis/flotilla-sentinel.conf
      acl_path: /etc/redis/flotilla-sentinel.acl
      user: sentinel
      password: "{{ redis_sentinel_password }}"
"""

RETURN = r"""
told:
  description: Names of what the Sentinel was told, in order.
  type: list
  elements: str
  returned: always
  sample: [monitor, auth-user, auth-pass]
users:
  description: Names of its users that were set or deleted.
  type: list
  elements: str
  returned: always
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as redis_plan
from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_io as sentinel_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_plan as sentinel_plan


def strangers_of(params: dict[str, Any], own: sentinel_plan.Sentinel) -> list[str]:
    return sentinel_plan.strangers(own, [member["address"] for member in params["members"]])


def live_master(params: dict[str, Any], sentinels: list[sentinel_plan.Sentinel]) -> str:
    """The address of the one live master, empty when there is none or it cannot be told."""
    nodes = redis_io.ask_all(params["members"], params["port"], *redis_io.login_of(params))
    try:
        master = redis_plan.find_master(nodes, sentinel_plan.chosen_master(sentinels))
    except ValueError:
        return ""
    return master.address if master else ""


def converge(params: dict[str, Any], own: sentinel_plan.Sentinel, result: dict[str, Any], check: bool) -> None:
    """Everything that can be told at once."""
    told = params["sentinel"]
    sentinels = sentinel_io.ask_all(params["members"], params["sentinel_port"], *redis_io.login_of(params))
    if twins := sentinel_plan.twins(own, sentinels):
        raise ValueError(
            f"the Sentinel on {own.name} has the same id as that on {', '.join(twins)}: its host was copied. On "
            f"{own.name} run: systemctl stop redis-sentinel; rm {told['path']}. The next run makes it anew"
        )
    on_disk = sentinel_plan.stored(redis_io.read_text(told["path"]))
    wanted = sentinel_io.wanted_of(params)
    master = "" if own.watches else live_master(params, sentinels)
    commands = sentinel_plan.own_commands(wanted, on_disk)
    commands += sentinel_plan.watch_commands(own, wanted, on_disk, master, params["port"])
    users = redis_plan.parse_users(redis_io.read_text(told["acl_path"]))
    with redis_io.Client(own.address, params["sentinel_port"], *redis_io.login_of(params)) as client:
        changed, deleted = redis_io.differing_users(client, users)
        result["users"] = changed + deleted
        result["told"] = sentinel_plan.names_of(commands)
        if check:
            result["told"] += ["reset"] if strangers_of(params, own) else []
            return
        redis_io.set_users(client, users, changed, deleted)
        for command in commands:
            client.call(*command)


def settle(params: dict[str, Any], module: AnsibleModule, result: dict[str, Any], deadline: float) -> None:
    """Waits until the Sentinel could stand in for a failover, and counts nobody else. Raises TimeoutError."""
    while True:
        sentinels = sentinel_io.ask_all(params["members"], params["sentinel_port"], *redis_io.login_of(params))
        own = next(sentinel for sentinel in sentinels if sentinel.name == params["node"])
        master = live_master(params, sentinels)
        reasons = sentinel_plan.unsettled(own, sentinels, master)
        strangers = strangers_of(params, own)
        if strangers and own.is_calm and not reasons and "reset" not in result["told"]:
            with redis_io.Client(own.address, params["sentinel_port"], *redis_io.login_of(params)) as client:
                client.call("SENTINEL", "RESET", sentinel_plan.WATCHED)
            result["told"].append("reset")
            continue
        if not reasons and "reset" in result["told"]:
            if strangers:
                module.warn(f"Redis or Sentinel still runs on {', '.join(strangers)}: stop it, it is no member")
            return
        if strangers:
            reasons.append(f"it still counts {', '.join(strangers)}, and sees the master as {', '.join(own.flags)}")
        if not reasons:
            return
        if not master and not own.watches:
            module.warn(f"Sentinel on {own.name} watches nothing: no member of the tier is the master")
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"Sentinel on {own.name} is not ready for a failover: {'; '.join(reasons)}")
        time.sleep(0.3)


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": {
            **redis_io.member_options(),
            **sentinel_io.sentinel_options(),
            "node": {"type": "str", "required": True},
            "wait": {"type": "float", "default": 60.0},
        },
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    params, check = module.params, module.check_mode
    if params["node"] not in [member["name"] for member in params["members"]]:
        names = ", ".join(member["name"] for member in params["members"])
        module.fail_json(msg=f"node is '{params['node']}', wanted one of the members: {names}")
    if not params["sentinel_port"] or not params["sentinel"]:
        module.fail_json(msg="sentinel_port and sentinel say how the Sentinel should be; at least one is missing")
    member = next(member for member in params["members"] if member["name"] == params["node"])
    result: dict[str, Any] = {"told": [], "users": []}
    redis_io.login_for(module)
    deadline = time.monotonic() + params["wait"]
    try:
        while True:
            own = sentinel_io.ask(member, params["sentinel_port"], *redis_io.login_of(params))
            if own.state == redis_plan.UP:
                break
            if check:  # not installed or not started yet: everything is still to be done
                module.exit_json(changed=True, **result | {"told": ["not running"]})
            if time.monotonic() > deadline:
                raise TimeoutError(f"Sentinel on {own.name} is {own.state}: {own.detail}")
            time.sleep(0.3)
        converge(params, own, result, check)
        if not check:
            settle(params, module, result, deadline)
    except (OSError, ValueError, redis_io.ReplyError) as error:
        module.fail_json(msg=str(error), changed=bool(result["told"] or result["users"]), **result)
    module.exit_json(changed=bool(result["told"] or result["users"]), **result)


if __name__ == "__main__":
    main()
