#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_switchover
short_description: Move the Redis master to another member without losing an acknowledged write
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Refuses, before anything is changed, unless all members and all Sentinels answer, agree about the master, and all
    replicas are in step.
  - Lets writes wait at the old master (C(CLIENT PAUSE)), waits until the new one has all of them, lets Sentinel make
    that one the master, makes the old one its replica, and only then lets the writes go on. They are refused there, so
    that their clients look for the new master. A plain C(SENTINEL FAILOVER) loses what was acknowledged meanwhile.
  - Runs on one host that reaches all members.
  - After an interruption run it again. The pause ends by itself, and whatever Sentinel began it ends.
attributes:
  check_mode:
    support: full
    description: Says whether the master would be moved. Refuses what would be refused.
  diff_mode:
    support: none
    description: There is no file.
  idempotent:
    support: full
    description: Where the member is the master already nothing is done.
extends_documentation_fragment:
  - flotilla.django.redis
options:
  new_master:
    description: Name of the member that becomes the master.
    type: str
    required: true
  patience:
    description:
      - Seconds to wait for an earlier failover to end, and afterwards until all replicas follow the new master and all
        Sentinels agree.
    type: float
    default: 60.0
seealso:
  - module: flotilla.django.redis_replication_info
"""

EXAMPLES = r"""
- name: Move the master
  flotilla.django.redis_switchover:
    new_master: cache2
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
  run_once: true
"""

RETURN = r"""
old_master:
  description: Name of the member that was the master, empty when nothing was moved.
  type: str
  returned: always
new_master:
  description: Name of the member that is the master now.
  type: str
  returned: always
paused_ms:
  description: For how many milliseconds writes waited.
  type: int
  returned: always
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_plan as redis_plan
from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_io as sentinel_io
from ansible_collections.flotilla.django.plugins.module_utils import _redis_sentinel_plan as sentinel_plan
from ansible_collections.flotilla.django.plugins.module_utils import _redis_switchover_plan as plan

PAUSE_MS = 8000
# Until the new master has everything, with writes at rest. Then the move is called off: nothing was promoted yet.
CATCH_UP_SECONDS = 2.0
# Sentinel asks a replica for its priority every ten seconds.
PRIORITY_SECONDS = 25.0


class Tier:
    """The members and their Sentinels, by name."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.members: list[dict[str, str]] = params["members"]
        self.addresses = {member["name"]: member["address"] for member in self.members}
        self.port, self.sentinel_port = params["port"], params["sentinel_port"]
        self.login = redis_io.login_of(params)

    def ask(self) -> tuple[list[redis_plan.Node], list[sentinel_plan.Sentinel]]:
        return (
            redis_io.ask_all(self.members, self.port, *self.login),
            sentinel_io.ask_all(self.members, self.sentinel_port, *self.login),
        )

    # Each time a new connection: Sentinel ends all of a server whose role it changes.
    def node(self, name: str) -> redis_plan.Node:
        return redis_io.ask({"name": name, "address": self.addresses[name]}, self.port, *self.login)

    def tell(self, name: str, *words: str) -> Any:
        with redis_io.Client(self.addresses[name], self.port, *self.login) as client:
            return client.call(*words)

    def tell_sentinel(self, name: str, *words: str) -> Any:
        with redis_io.Client(self.addresses[name], self.sentinel_port, *self.login) as client:
            return client.call(*words)

    def priorities(self) -> dict[str, int]:
        return {name: int(self.tell(name, "CONFIG", "GET", "replica-priority")[1]) for name in self.addresses}

    def set_priorities(self, wanted: dict[str, int]) -> None:
        for name, value in wanted.items():
            self.tell(name, "CONFIG", "SET", "replica-priority", str(value))


def wait_for(check: Callable[[], bool], seconds: float, pause: float) -> bool:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def choose(tier: Tier, new: str) -> None:
    """Let the Sentinel that will be asked know whom to take. Raises TimeoutError."""
    wanted = plan.priorities_to_set(tier.priorities(), new)
    tier.set_priorities(wanted)

    def is_known() -> bool:
        own = next(s for s in sentinel_io.ask_all(tier.members, tier.sentinel_port, *tier.login) if s.name == new)
        chosen = [peer.address for peer in own.replicas if peer.priority == plan.CHOSEN_PRIORITY]
        return chosen == [tier.addresses[new]]

    if not wait_for(is_known, PRIORITY_SECONDS, 0.5):
        raise TimeoutError(f"the Sentinel on {new} did not learn within {PRIORITY_SECONDS:g} s that {new} is wanted")


def move(tier: Tier, old: str, new: str) -> int:
    """The move itself; for how many milliseconds writes waited. Raises TimeoutError or ReplyError, unmoved."""
    tier.tell_sentinel(new, "SENTINEL", "CKQUORUM", sentinel_plan.WATCHED)
    began = time.monotonic()
    tier.tell(old, "CLIENT", "PAUSE", str(PAUSE_MS), "WRITE")
    try:
        written = tier.node(old).offset
        if not wait_for(lambda: tier.node(new).offset >= written, CATCH_UP_SECONDS, 0.01):
            raise TimeoutError(f"{new} did not catch up with {old} within {CATCH_UP_SECONDS:g} s")
        tier.tell_sentinel(new, "SENTINEL", "FAILOVER", sentinel_plan.WATCHED)

        def is_promoted() -> bool:
            if tier.node(new).is_master:
                return True
            # Sentinel may still promote it: no write may be acknowledged before that is over.
            tier.tell(old, "CLIENT", "PAUSE", str(PAUSE_MS), "WRITE")
            return False

        if not wait_for(is_promoted, sentinel_plan.FAILOVER_TIMEOUT_MS / 1000 + 2, 0.05):
            raise TimeoutError(f"Sentinel did not make {new} the master; its log says why")
        tier.tell(old, "REPLICAOF", tier.addresses[new], str(tier.port))
    finally:
        tier.tell(old, "CLIENT", "UNPAUSE")
    took = round((time.monotonic() - began) * 1000)
    tier.tell(old, "CONFIG", "REWRITE")
    return took


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": {
            **redis_io.member_options(),
            "new_master": {"type": "str", "required": True},
            "patience": {"type": "float", "default": 60.0},
        },
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    params, new = module.params, module.params["new_master"]
    if not params["sentinel_port"]:
        module.fail_json(
            msg="sentinel_port is 0, wanted the TCP port of Sentinel: it is Sentinel that moves the master"
        )
    redis_io.login_for(module)
    tier = Tier(params)
    result: dict[str, Any] = {"changed": False, "old_master": "", "new_master": new, "paused_ms": 0}

    def decide() -> plan.Move:
        return plan.decide(*tier.ask(), new)

    decision = decide()
    if new in tier.addresses and not module.check_mode:
        # What is wrong may be a failover that just ends.
        wait_for(lambda: decide().action != plan.REFUSE, 0 if decision.action != plan.REFUSE else 10, 0.5)
        decision = decide()
    if decision.action == plan.REFUSE:
        module.fail_json(msg=f"{'; '.join(decision.reasons)}. Nothing was changed", **result)
    try:
        if decision.action == plan.MOVE:
            result |= {"changed": True, "old_master": decision.old}
            if not module.check_mode:
                try:
                    choose(tier, new)
                    result["paused_ms"] = move(tier, decision.old, new)
                finally:
                    with contextlib.suppress(OSError):
                        tier.set_priorities(plan.priorities_to_restore(tier.priorities()))
        elif left := plan.priorities_to_restore(tier.priorities()):
            result["changed"] = True
            if not module.check_mode:
                tier.set_priorities(left)
    except (OSError, redis_io.ReplyError) as error:
        module.fail_json(msg=f"{error}. Run it again, or site.yml", **result)
    if not module.check_mode and not wait_for(lambda: decide().action == plan.DONE, params["patience"], 0.2):
        reasons = "; ".join(decide().reasons)
        module.fail_json(msg=f"{new} is the master, and not all is in order {params['patience']:g} s later: {reasons}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
