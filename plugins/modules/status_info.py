#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: status_info
short_description: Read everything that one host knows about its share of the cluster
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - One run for all tiers of a host, for C(playbooks/status.yml) and for what a deploy asks first. Nothing is changed.
  - A part that does not answer costs its own time and says so; the others are read all the same.
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
  timeout:
    description: Seconds that all parts together may take.
    type: float
    default: 5.0
  part_timeout:
    description: Seconds that one part may take. By default half a second less than O(timeout).
    type: float
  tiers:
    description: What is read, by the tiers that the host belongs to.
    type: dict
    default: {}
    suboptions:
      haproxy:
        description: Read a balancer.
        type: dict
        suboptions:
          units:
            description: Units of systemd whose state is wanted.
            type: list
            elements: str
            default: [haproxy.service, keepalived.service]
          socket:
            description: Its admin socket.
            type: str
            default: /run/haproxy/admin.sock
          master_socket:
            description: The socket of its master process, for the sessions of old workers.
            type: str
            default: /run/haproxy-master.sock
      django:
        description: Read a Django node, and the lock of deploys if it stands there.
        type: dict
        suboptions:
          home:
            description: Where the releases are.
            type: path
            default: /srv/django
          address:
            description: The address that gunicorn listens at.
            type: str
            required: true
          port:
            description: Its port.
            type: int
            default: 8000
          health_path:
            description: The health address; its thorough sibling C(/deep) is asked.
            type: str
            default: /-/health
          timeout:
            description: Seconds to wait for it. By default 0.3 less than O(part_timeout).
            type: float
          ca_file:
            description: File with the authority that signed its certificate. Without such a file no TLS is spoken.
            type: path
            default: /etc/django/ca.pem
      nginx_static:
        description: Read a static server.
        type: dict
        suboptions:
          units:
            description: Units of systemd whose state is wanted.
            type: list
            elements: str
            default: [nginx.service]
          address:
            description: The address that Nginx listens at.
            type: str
            required: true
          port:
            description: Its port.
            type: int
            default: 8080
          health_path:
            description: The health address.
            type: str
            default: /-/health
          timeout:
            description: Seconds to wait for it. By default 0.3 less than O(part_timeout).
            type: float
      postgresql:
        description: Read a member of the database tier.
        type: dict
        suboptions:
          cluster:
            description: Name of the cluster.
            type: str
            default: main
          port:
            description: Its port.
            type: int
            default: 5432
          socket_directory:
            description: Where its local socket is.
            type: path
            default: /var/run/postgresql
      redis:
        description: Read a member of the Redis tier.
        type: dict
        suboptions:
          name:
            description: Its name.
            type: str
            required: true
          address:
            description: Its address.
            type: str
            required: true
          port:
            description: Its port.
            type: int
            default: 6379
          sentinel_port:
            description: The port of its Sentinel. 0 means that there is none.
            type: int
            default: 26379
          user:
            description: A user who may ask for everything.
            type: str
            required: true
          password:
            description: That user's password.
            type: str
            required: true
          ca_file:
            description: File with the authority that signed its certificate. Without such a file no TLS is spoken.
            type: path
            default: /etc/redis/flotilla-ca.pem
          timeout:
            description: Seconds to wait for an answer.
            type: float
            default: 2.0
      prometheus:
        description: Ask for the alerts that fire.
        type: dict
        suboptions:
          alertmanager_url:
            description: Where Alertmanager answers.
            type: str
            default: http://127.0.0.1:9093
          prometheus_url:
            description: Where Prometheus answers, asked when Alertmanager does not.
            type: str
            default: http://127.0.0.1:9090
          timeout:
            description: Seconds to wait for an answer.
            type: float
            default: 1.5
seealso:
  - module: flotilla.django.status_report
"""

EXAMPLES = r"""
- name: Ask a balancer
  flotilla.django.status_info:
    tiers:
      haproxy: {}
  register: __status_seen
"""

RETURN = r"""
answers:
  description:
    - What was found out, by the name of the tier, and V(host) for the host itself (addresses, disks, units).
    - A part that did not answer has nothing but C(error).
  type: dict
  returned: success
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _status_io as io


def argument_spec() -> dict[str, Any]:
    def options(**found: dict[str, Any]) -> dict[str, Any]:
        return {"type": "dict", "options": found}

    def units(*names: str) -> dict[str, Any]:
        return {"type": "list", "elements": "str", "default": list(names)}

    health: dict[str, Any] = {
        "address": {"type": "str", "required": True},
        "health_path": {"type": "str", "default": "/-/health"},
        "timeout": {"type": "float"},
    }
    tiers = {
        "haproxy": options(
            units=units("haproxy.service", "keepalived.service"),
            socket={"type": "str", "default": "/run/haproxy/admin.sock"},
            master_socket={"type": "str", "default": "/run/haproxy-master.sock"},
        ),
        "django": options(
            home={"type": "path", "default": "/srv/django"},
            port={"type": "int", "default": 8000},
            ca_file={"type": "path", "default": "/etc/django/ca.pem"},
            **health,
        ),
        "nginx_static": options(units=units("nginx.service"), port={"type": "int", "default": 8080}, **health),
        "postgresql": options(
            cluster={"type": "str", "default": "main"},
            port={"type": "int", "default": 5432},
            socket_directory={"type": "path", "default": "/var/run/postgresql"},
        ),
        "redis": options(
            name={"type": "str", "required": True},
            address={"type": "str", "required": True},
            port={"type": "int", "default": 6379},
            sentinel_port={"type": "int", "default": 26379},
            user={"type": "str", "required": True},
            password={"type": "str", "required": True, "no_log": True},
            ca_file={"type": "path", "default": "/etc/redis/flotilla-ca.pem"},
            timeout={"type": "float", "default": 2.0},
        ),
        "prometheus": options(
            alertmanager_url={"type": "str", "default": "http://127.0.0.1:9093"},
            prometheus_url={"type": "str", "default": "http://127.0.0.1:9090"},
            timeout={"type": "float", "default": 1.5},
        ),
    }
    return {
        "timeout": {"type": "float", "default": 5.0},
        "part_timeout": {"type": "float"},
        "tiers": {"type": "dict", "default": {}, "options": tiers},
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
    tiers = {tier: params["tiers"].get(tier) for tier in io.READERS}
    asked = {tier: options for tier, options in tiers.items() if options is not None}
    patience = io.Patience(params["timeout"], params["part_timeout"])
    module.exit_json(changed=False, answers=io.read(asked, patience))


if __name__ == "__main__":
    main()
