#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_server
short_description: Take servers out of HAProxy and put them back without losing a request
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Sets the administrative state and the weight of servers over HAProxy's runtime API, on all balancers of a cluster
    in one run or on each balancer for itself.
  - Everything is read on every balancer and checked before anything is written anywhere; then everything is written,
    and then the module waits once for all of it.
  - A server is drained when no session is left and none is queued on any balancer and, over O(master_socket), on any
    worker that an earlier reload left behind.
  - A server comes back with proof (see O(proof)). HAProxy itself makes a server that leaves the state V(maint) serve at
    once, before any health check.
  - When HAProxy is reloaded or restarted during the wait, the state is read and set again.
  - HAProxy should not be asked to reload in the middle of a deploy. Requests that reach a worker from before a reload
    over a connection that was open at that time go to any server that this worker knew as healthy.
attributes:
  check_mode:
    support: full
    description: Everything is read and checked, nothing is written and nothing is waited for.
  diff_mode:
    support: full
    description: Shows the administrative state and the weight of each server.
  idempotent:
    support: full
    description: Servers that are in their state already are left alone.
options:
  servers:
    description: Names of servers, or globs. Each must stand for something on every balancer.
    type: list
    elements: str
    required: true
  backends:
    description:
      - Names of backends, or globs. The default stands for all that hold one of the servers.
      - Each must hold one of the servers on every balancer.
    type: list
    elements: str
    default: ["*"]
  state:
    description:
      - V(ready) serves. V(drain) gets no new requests except from clients that a cookie or stick table leads there.
        V(maint) gets none at all and is not checked.
      - With O(wait=true), V(maint) drains first. The server is left in V(drain) until it is drained.
    type: str
    choices: [ready, drain, maint]
  weight:
    description: >-
      The weight, from V(0) to V(256), or a share of the configured weight such as V(50%). At least one of O(state) and
      O(weight) is required. HAProxy rounds down, so that V(50%) of 1 is 0.
    type: str
  wait:
    description:
      - Whether to wait until the servers are drained, or proven healthy.
      - With V(false), V(maint) is set at once, and a server that shall be V(ready) with O(proof) serves as soon as its
        health check passes.
    type: bool
    default: true
  timeout:
    description: How long, in seconds, to wait until all servers are drained.
    type: float
    default: 60.0
  on_timeout:
    description:
      - What to do when sessions are left after O(timeout).
      - V(fail) restores the former state and fails.
      - V(maint) sets the servers to V(maint) and lets the sessions end by themselves.
      - V(shutdown) cuts the sessions and goes on to O(state).
      - V(leave) leaves the servers in V(drain) and succeeds; RV(sessions_left) says that the wait is to go on. So a
        playbook can wait in steps and show how many are left.
    type: str
    choices: [fail, maint, shutdown, leave]
    default: fail
  min_healthy:
    description:
      - How many servers of each backend must be healthy and in service without the named ones, as a number or as a
        share of the servers of the backend such as V(50%), rounded up. V(0) is no limit.
      - Only servers that get requests now count as taken away, also when O(weight) takes them away.
    type: str
    default: "1"
  proof:
    description:
      - Whether a server that shall be V(ready) must be found healthy first. It is put to V(drain) and marked as down;
        when its own health check brings it up, it becomes V(ready), on all balancers at once. HAProxy's C(slowstart)
        begins when it comes up.
      - Takes about C(rise) times C(fastinter) of the health check.
      - A server without a health check becomes V(ready) at once, and RV(notes) say so.
    type: bool
    default: true
  ready_timeout:
    description: >-
      How long, in seconds, to wait for that. After it the module fails and leaves the servers in V(drain), where they
      do not serve. A server that was V(ready) and down is left like that.
    type: float
    default: 60.0
  soak:
    description:
      - How long, in seconds, to watch servers that came back to V(ready). V(0) does not watch.
      - The module fails when more of their requests fail than O(soak_errors) allows, and leaves them in V(ready).
      - With O(watch), how long those servers are watched from the time on at which they came back.
    type: float
    default: 0.0
  soak_errors:
    description:
      - How many requests to a server may fail during O(soak), as a number, or as a share of its responses such as
        V(5%), which allows one in any case. Answers with 5xx, refused connections and broken responses count.
    type: str
    default: "0"
  watch:
    description:
      - RV(back) of an earlier run on these balancers. With V(drain) or V(maint), which take their time, the servers
        that came back then are watched meanwhile.
      - Only the last two seconds of the watch go by beside the drain. What is longer comes before it, with O(servers)
        still in service.
      - When they fail too many requests, the state of O(servers) is restored and the module fails.
    type: list
    elements: dict
    default: []
    suboptions:
      socket:
        description: As in RV(back).
        type: str
        required: true
      backend:
        description: As in RV(back).
        type: str
        required: true
      server:
        description: As in RV(back).
        type: str
        required: true
      at:
        description: As in RV(back).
        type: float
        required: true
      worker:
        description: As in RV(back).
        type: str
        required: true
      errors:
        description: As in RV(back).
        type: int
        required: true
      responses:
        description: As in RV(back).
        type: int
        required: true
  poll:
    description: How often, in seconds, to look while waiting.
    type: float
    default: 0.1
  drained_samples:
    description: How many times in a row there must be no session.
    type: int
    default: 3
extends_documentation_fragment:
  - flotilla.django.haproxy
notes:
  - The sockets need C(level admin).
  - A balancer that cannot be reached is a failure before anything is changed, because the address may move to it.
seealso:
  - module: flotilla.django.haproxy_info
"""

EXAMPLES = r"""
- name: Take a node out, and wait for the requests that are under way
  flotilla.django.haproxy_server:
    servers: [app1]
    state: maint
    timeout: 90

- name: Put it back when HAProxy itself finds it healthy
  flotilla.django.haproxy_server:
    servers: [app1]
    state: ready

- name: Take two nodes out of two balancers, leave at least half of them, and cut what is left after a minute
  flotilla.django.haproxy_server:
    sockets:
      - 10.0.0.11:9999
      - 10.0.0.12:9999
    backends: [django]
    servers: [app1, app2]
    state: drain
    min_healthy: 50%
    on_timeout: shutdown

- name: Put a node back and have it watched while the next one is taken out
  flotilla.django.haproxy_server:
    servers: [app1]
    state: ready
  register: app1

- name: Take the next one out
  flotilla.django.haproxy_server:
    servers: [app2]
    state: maint
    watch: "{{ app1['back'] }}"
    soak: 2
    soak_errors: 5%

- name: Give a node half of its share
  flotilla.django.haproxy_server:
    servers: [app1]
    weight: 50%
"""

RETURN = r"""
servers:
  description: Each server of each backend on each balancer. Also returned on failure, as far as it was read.
  type: list
  elements: dict
  returned: always
  contains:
    socket:
      description: The balancer, as in O(sockets).
      type: str
    backend:
      description: The backend.
      type: str
    server:
      description: The server.
      type: str
    before:
      description: How it was found.
      type: dict
      contains:
        admin:
          description: The administrative state, V(ready), V(drain) or V(maint).
          type: str
        operational:
          description: V(up), V(down) or V(stopping).
          type: str
        weight:
          description: The weight, without slow start.
          type: int
    after:
      description: How it is in the end; in check mode how it would be.
      type: dict
      contains:
        admin:
          description: The administrative state, V(ready), V(drain) or V(maint).
          type: str
        operational:
          description: V(up), V(down) or V(stopping).
          type: str
        weight:
          description: The weight, without slow start.
          type: int
    sessions:
      description: Its sessions in the end, on all workers that were asked.
      type: int
    queue:
      description: Requests that wait for it in the end.
      type: int
  sample:
    - socket: /run/haproxy/admin.sock
      backend: django
      server: app1
      before: {admin: ready, operational: up, weight: 1}
      after: {admin: maint, operational: down, weight: 1}
      sessions: 0
      queue: 0
sessions_left:
  description: >-
    Sessions and queued requests that were left in the end, or when the wait timed out. V(0) with O(state=ready) and
    with O(weight) alone.
  type: int
  returned: always
sessions_cut:
  description: Sessions that were cut.
  type: int
  returned: always
soaked:
  description: How long servers were watched after they came back, in seconds.
  type: float
  returned: always
back:
  description: Servers that came back and were not watched, for O(watch) of a later run.
  type: list
  elements: dict
  returned: always
  contains:
    socket:
      description: The balancer, as in O(sockets).
      type: str
    backend:
      description: The backend.
      type: str
    server:
      description: The server.
      type: str
    at:
      description: When it came back, in seconds since 1970.
      type: float
    worker:
      description: The process of HAProxy whose counters these are.
      type: str
    errors:
      description: Its failed requests until then, as O(soak_errors) counts them.
      type: int
    responses:
      description: Its responses until then.
      type: int
seconds:
  description: How long it took, in seconds.
  type: float
  returned: always
seconds_before:
  description: How much of RV(seconds) went by before the first change, for O(watch).
  type: float
  returned: always
notes:
  description: What else a person should know, such as a reload of HAProxy during the wait.
  type: list
  elements: str
  returned: always
  sample:
    - HAProxy on /run/haproxy/admin.sock was reloaded while waiting; the state was set again
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _haproxy_io as io
from ansible_collections.flotilla.django.plugins.module_utils._haproxy_plan import Back, Refused, Wish

NOTHING: dict[str, Any] = {
    "servers": [],
    "sessions_left": 0,
    "sessions_cut": 0,
    "soaked": 0.0,
    "back": [],
    "seconds": 0.0,
    "seconds_before": 0.0,
    "notes": [],
}


# What is noted of a server that came back.
BACK = {
    "socket": "str",
    "backend": "str",
    "server": "str",
    "at": "float",
    "worker": "str",
    "errors": "int",
    "responses": "int",
}


def argument_spec() -> dict[str, Any]:
    return {
        **io.connection_options(),
        "servers": {"type": "list", "elements": "str", "required": True},
        "backends": {"type": "list", "elements": "str", "default": ["*"]},
        "state": {"type": "str", "choices": ["ready", "drain", "maint"]},
        "weight": {"type": "str"},
        "wait": {"type": "bool", "default": True},
        "timeout": {"type": "float", "default": 60.0},
        "on_timeout": {"type": "str", "choices": ["fail", "maint", "shutdown", "leave"], "default": "fail"},
        "min_healthy": {"type": "str", "default": "1"},
        "proof": {"type": "bool", "default": True},
        "ready_timeout": {"type": "float", "default": 60.0},
        "soak": {"type": "float", "default": 0.0},
        "soak_errors": {"type": "str", "default": "0"},
        "watch": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {name: {"type": kind, "required": True} for name, kind in BACK.items()},
        },
        "poll": {"type": "float", "default": 0.1},
        "drained_samples": {"type": "int", "default": 3},
    }


def wish_from(params: dict[str, Any]) -> Wish:
    return Wish(
        servers=tuple(params["servers"]),
        backends=tuple(params["backends"]),
        state=params["state"] or "",
        weight=params["weight"] or "",
        wait=params["wait"],
        proof=params["proof"],
        min_healthy=params["min_healthy"],
        timeout=params["timeout"],
        ready_timeout=params["ready_timeout"],
        connect_timeout=params["connect_timeout"],
        poll=params["poll"],
        drained_samples=params["drained_samples"],
        soak=params["soak"],
        soak_errors=params["soak_errors"],
        watch=tuple(Back(**{name: back[name] for name in BACK}) for back in params["watch"]),
    )


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": argument_spec(),
        "supports_check_mode": True,
        "required_one_of": [("state", "weight")],
    }


def main() -> None:
    module = AnsibleModule(**specification())
    params = module.params
    operation: io.Operation | None = None
    try:
        operation = io.Operation(wish_from(params), params["sockets"], params["master_socket"], params["on_timeout"])
        operation.prepare()
        if module.check_mode:
            operation.predict()
        else:
            operation.run()
    except (Refused, io.HaproxyError) as error:
        result = operation.result() if operation else {"changed": False, **NOTHING}
        result.pop("diff", None)
        module.fail_json(msg=str(error), **result)
        raise AssertionError("fail_json returned") from error
    result = operation.result(predicted=module.check_mode)
    if not module._diff:
        result.pop("diff")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
