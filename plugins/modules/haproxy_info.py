#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_info
short_description: Read the servers of HAProxy and their state
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Reads the runtime API of one or more balancers. Nothing is changed.
attributes:
  check_mode:
    support: full
    description: Reads as always.
  diff_mode:
    support: none
    description: There is nothing to show.
  idempotent:
    support: full
    description: Changes nothing.
options:
  servers:
    description: Names of servers, or globs. Each must stand for something on every balancer.
    type: list
    elements: str
    default: ["*"]
  backends:
    description: Names of backends, or globs. Each must hold one of the servers on every balancer.
    type: list
    elements: str
    default: ["*"]
extends_documentation_fragment:
  - flotilla.django.haproxy
notes:
  - C(level operator) is enough for the sockets.
seealso:
  - module: flotilla.django.haproxy_server
"""

EXAMPLES = r"""
- name: Ask the balancer
  flotilla.django.haproxy_info:
    backends: [django]
  register: __balancer

- name: Refuse to go on when a server is out of service
  ansible.builtin.assert:
    that: __balancer['balancers'][0]['servers'] | rejectattr('operational', 'eq', 'up') | length == 0
"""

RETURN = r"""
balancers:
  description: The balancers, in the order of O(sockets).
  type: list
  elements: dict
  returned: success
  contains:
    socket:
      description: The balancer, as in O(sockets).
      type: str
    version:
      description: The version of HAProxy.
      type: str
    pid:
      description: The process id of the worker.
      type: int
    uptime:
      description: For how long, in seconds, the worker has been running. A reload starts a new one.
      type: int
    servers:
      description: The servers.
      type: list
      elements: dict
      contains:
        backend:
          description: The backend.
          type: str
        server:
          description: The server.
          type: str
        address:
          description: Its address.
          type: str
        port:
          description: Its port.
          type: int
        admin:
          description: The administrative state, V(ready), V(drain) or V(maint).
          type: str
        operational:
          description: V(up), V(down) or V(stopping).
          type: str
        weight:
          description: The weight, without slow start.
          type: int
        checked:
          description: Whether it has a health check.
          type: bool
        check_status:
          description: The result of the last health check, such as V(L7OK). Empty without one.
          type: str
        check_description:
          description: The same in words.
          type: str
        sessions:
          description: Its sessions now, on the current worker.
          type: int
        queue:
          description: Requests that wait for it now.
          type: int
        counters:
          description: >-
            Since the worker started: sessions (V(sessions)), answers by their class (V(2xx) to V(5xx)), failed
            connections (V(econ)), failed answers (V(eresp)), and requests that were repeated at the same (V(wretr)) or
            another server (V(wredis)).
          type: dict
    frontends:
      description: The frontends.
      type: list
      elements: dict
      contains:
        frontend:
          description: The frontend.
          type: str
        sessions:
          description: Its sessions now.
          type: int
        counters:
          description: >-
            Since the worker started: requests (V(requests)), answers by their class (V(2xx) to V(5xx)), requests that
            were no good (V(ereq)) or denied (V(dreq)).
          type: dict
    old_workers:
      description: The workers that earlier reloads left behind. Empty for balancers that are reached over TCP.
      type: list
      elements: dict
      contains:
        pid:
          description: The process id.
          type: int
        sessions:
          description: All its sessions at servers.
          type: int
        servers:
          description: The servers that it has sessions at.
          type: list
          elements: dict
          contains:
            backend:
              description: The backend.
              type: str
            server:
              description: The server.
              type: str
            sessions:
              description: The sessions.
              type: int
notes:
  description: What else a person should know.
  type: list
  elements: str
  returned: always
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _haproxy_io as io
from ansible_collections.flotilla.django.plugins.module_utils._haproxy_plan import (
    Refused,
    check_names,
    describe_frontend,
    describe_old_worker,
    describe_server,
    select,
)


def argument_spec() -> dict[str, Any]:
    return {
        **io.connection_options(),
        "servers": {"type": "list", "elements": "str", "default": ["*"]},
        "backends": {"type": "list", "elements": "str", "default": ["*"]},
    }


def describe(balancer: io.Balancer, servers: list[str], backends: list[str]) -> dict[str, Any]:
    now = balancer.read(True)
    keys = select(now.servers, backends, servers, balancer.name)
    return {
        "socket": balancer.name,
        "version": now.process.version,
        "pid": now.process.pid,
        "uptime": now.process.uptime,
        "servers": [describe_server(now.servers[key]) for key in keys],
        "frontends": [describe_frontend(row) for row in balancer.frontends()],
        "old_workers": [describe_old_worker(pid, sessions, keys) for pid, sessions in now.old.items()],
    }


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": argument_spec(),
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    params = module.params
    notes: list[str] = []
    try:
        check_names("servers", params["servers"])
        check_names("backends", params["backends"])
        balancers = io.balancers(params["sockets"], params["connect_timeout"])
        notes = io.attach_master(balancers, params["master_socket"])
        described = [describe(balancer, params["servers"], params["backends"]) for balancer in balancers]
    except (Refused, io.HaproxyError) as error:
        module.fail_json(msg=str(error), notes=notes)
    module.exit_json(changed=False, balancers=described, notes=notes)


if __name__ == "__main__":
    main()
