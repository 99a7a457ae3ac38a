#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_objects
short_description: Roles, databases and replication slots of a PostgreSQL cluster in one run
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Waits until the server answers SQL, then makes roles, databases and physical slots what they are said to be.
  - On a standby roles and databases come from the primary, there only the slots are looked after.
  - Roles get exactly the rights that are named. Superuser, create database, create role and bypass row level security
    are
    taken away where they are found.
  - Passwords are stored as SCRAM verifiers made on this host, so no statement and no server log ever holds one. A
    stored password that
    fits is left alone.
  - A database belongs to one role, and nobody else may connect but those that are named.
  - Slots are made without reserving WAL, so a slot for a standby that never came costs nothing. On the primary a slot
    that
    lost its WAL is made anew, and on a standby one that still holds WAL from the time it was the primary.
  - Commits here do not wait for synchronous standbys, which may not exist yet.
attributes:
  check_mode:
    support: full
    description: Reads and plans, writes nothing.
  diff_mode:
    support: full
    description: Shows the steps, without passwords.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  roles:
    description: The roles, all of which may log in.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the role.
        type: str
        required: true
      password:
        description: Its password. Without one there is none, and the role can only log in where the server trusts the
          system's user.
        type: str
      replication:
        description: Whether it may replicate.
        type: bool
        default: false
      member_of:
        description: Roles whose rights it has.
        type: list
        elements: str
        default: []
      execute:
        description:
          - PostgreSQL's own functions that it may execute besides those everybody may, with the types of their
            arguments.
          - The right is given in the database C(postgres) alone.
        type: list
        elements: str
        default: []
  databases:
    description: The databases.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the database.
        type: str
        required: true
      owner:
        description: The role that owns it.
        type: str
        required: true
      connect:
        description: Further roles that may connect.
        type: list
        elements: str
        default: []
  slots:
    description: The physical slots for the other members.
    type: list
    elements: str
    default: []
  absent_slots:
    description: Slots of members that left for good. They are dropped; one that is in use is an error.
    type: list
    elements: str
    default: []
  start_timeout:
    description: How long to wait until the server answers SQL, in seconds. Crash recovery takes time.
    type: int
    default: 60
  streaming_timeout:
    description: How long a standby may take until it streams, in seconds. With V(0) it is not waited for.
    type: int
    default: 0
extends_documentation_fragment:
  - flotilla.django.postgresql
  - flotilla.django.postgresql.server
notes:
  - Runs as root (it acts as C(postgres) only while it connects) or as C(postgres).
"""

EXAMPLES = r"""
- name: Make the application's role and database, and a slot for each of the other members
  flotilla.django.postgresql_objects:
    version: 17
    roles:
      - {name: shop, password: "{{ shop_database_password }}"}
      - {name: replication, password: "{{ postgresql_replication_password }}", replication: true}
      - {name: monitoring, member_of: [pg_monitor]}
    databases:
      - {name: shop, owner: shop, connect: [monitoring]}
    slots: [db2, db3]
"""

RETURN = r"""
steps:
  description: What was changed, or would be in check mode.
  type: list
  elements: str
  returned: success
  sample: [create role shop, create database shop, close database shop to everybody else, create slot db2]
node:
  description: >-
    The node afterwards, as M(flotilla.django.postgresql_replication_info) says it: among others C(role), and
    C(settings_pending_restart), the settings that need a restart.
  type: dict
  returned: success
warnings:
  description: What was seen and left alone.
  type: list
  elements: str
  returned: when there is something to say
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_objects_io as objects_io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_objects_plan as objects_plan


def argument_spec() -> dict[str, Any]:
    return {
        **io.cluster_options(),
        **io.server_options(),
        "roles": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "name": {"type": "str", "required": True},
                "password": {"type": "str", "no_log": True},
                "replication": {"type": "bool", "default": False},
                "member_of": {"type": "list", "elements": "str", "default": []},
                "execute": {"type": "list", "elements": "str", "default": []},
            },
        },
        "databases": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "name": {"type": "str", "required": True},
                "owner": {"type": "str", "required": True},
                "connect": {"type": "list", "elements": "str", "default": []},
            },
        },
        "slots": {"type": "list", "elements": "str", "default": []},
        "absent_slots": {"type": "list", "elements": "str", "default": []},
        "start_timeout": {"type": "int", "default": 60},
        "streaming_timeout": {"type": "int", "default": 0},
    }


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    cluster = io.cluster_from(params)
    with objects_io.wait_for_sql(cluster, params["start_timeout"]) as connection:
        in_recovery = objects_io.in_recovery(connection)
        steps: list[objects_plan.Step] = []
        if not in_recovery:
            steps += objects_plan.plan_roles(
                params["roles"], objects_io.read_roles(connection), objects_io.verifier_maker(connection)
            )
            steps += objects_plan.plan_databases(params["databases"], objects_io.read_databases(connection))
        slots = io.read_slots(connection)
        steps += objects_plan.plan_absent_slots(params["absent_slots"], slots)
        kept = {name: slot for name, slot in slots.items() if name not in params["absent_slots"]}
        slot_steps, warnings = objects_plan.plan_slots(params["slots"], kept, in_recovery)
        steps += slot_steps
        if not module.check_mode:
            objects_io.execute(connection, steps)
        if in_recovery and params["streaming_timeout"] and not module.check_mode:
            objects_io.wait_for_streaming(cluster, connection, params["streaming_timeout"])
    for warning in warnings:
        module.warn(warning)
    told = [step.description for step in steps]
    diff = {"before": "", "after": "".join(f"{line}\n" for line in told)}
    return {"changed": bool(steps), "steps": told, "node": io.read_node(cluster), "diff": diff}


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module))
    except (io.PostgresqlError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
