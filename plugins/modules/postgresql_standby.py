#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_standby
short_description: Make a data directory follow the primary
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Makes an empty data directory a standby by cloning the primary with C(pg_basebackup). The server is neither
    started nor
    stopped.
  - Among the sources the one that accepts writes is found by libpq itself (C(target_session_attrs=read-write)).
  - Data is never destroyed. A data directory that holds a primary, or something that is no complete cluster, is
    refused.
    One that is a standby already is left as it is.
  - The clone is made in a directory beside the data directory and renamed when it is complete, so an interrupted run
    leaves
    nothing that could be started, and the next run begins anew. Two runs at the same time exclude each other.
  - The member's physical slot on the primary is made anew and holds the WAL from before the clone on. A slot that is
    in use is refused.
  - C(primary_conninfo) and C(primary_slot_name) are those of the configuration files. Nothing about them is written
    into
    C(postgresql.auto.conf), and what the source had there is removed.
attributes:
  check_mode:
    support: full
    description: Decides, and does nothing.
  diff_mode:
    support: none
    description: The content of a database is no useful diff.
  idempotent:
    support: full
    description: A standby is left as it is.
options:
  version:
    description: Major version of PostgreSQL, as in Debian's directory names.
    type: int
    required: true
  cluster:
    description: Name of the cluster in Debian's layout.
    type: str
    default: main
  data_directory:
    description: The data directory. The default is Debian's, C(/var/lib/postgresql/VERSION/CLUSTER).
    type: path
  port:
    description: TCP port of the sources.
    type: int
    default: 5432
  sources:
    description: Addresses of the members that may be the primary.
    type: list
    elements: str
    required: true
  user:
    description: The replication user.
    type: str
    required: true
  passfile:
    description: libpq's password file with its password, readable by C(postgres). No password is given on a command
      line.
    type: path
    required: true
  slot:
    description: Name of this member's physical slot.
    type: str
    required: true
  methods:
    description: What may be done to reach the goal.
    type: list
    elements: str
    choices: [clone]
    default: [clone]
  max_rate:
    description: Upper limit of the transfer, in KiB/s, so that a clone does not starve the primary. V(0) is no limit.
    type: int
    default: 0
  timeout:
    description: How long the clone may take, in seconds.
    type: int
    default: 86400
notes:
  - Must run as root.
"""

EXAMPLES = r"""
- name: Clone the primary into the empty data directory
  flotilla.django.postgresql_standby:
    version: 17
    sources: [192.0.2.31, 192.0.2.33]
    user: replication
    passfile: /etc/postgresql/17/main/replication.pgpass
    slot: db2
"""

RETURN = r"""
method:
  description: What was done, or would be in check mode. V(none) where the data directory is a standby already.
  type: str
  returned: success
  sample: clone
data_directory:
  description: The data directory.
  type: str
  returned: success
source:
  description: Address of the primary it was cloned from.
  type: str
  returned: when something was done
system_identifier:
  description: What all copies of the cluster have in common.
  type: str
  returned: when something was done
timeline:
  description: The primary's timeline when the clone began.
  type: int
  returned: when something was done
seconds:
  description: How long it took.
  type: float
  returned: when something was done
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_clone_io as clone_io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_clone_plan as clone_plan
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io


def argument_spec() -> dict[str, Any]:
    return {
        "version": {"type": "int", "required": True},
        "cluster": {"type": "str", "default": "main"},
        "data_directory": {"type": "path"},
        "port": {"type": "int", "default": 5432},
        "sources": {"type": "list", "elements": "str", "required": True},
        "user": {"type": "str", "required": True},
        "passfile": {"type": "path", "required": True, "no_log": False},  # a path, not a password
        "slot": {"type": "str", "required": True},
        "methods": {"type": "list", "elements": "str", "choices": ["clone"], "default": ["clone"]},
        "max_rate": {"type": "int", "default": 0},
        "timeout": {"type": "int", "default": 86400},
    }


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    cluster = io.Cluster(params["version"], params["cluster"], params["data_directory"], params["port"], "")
    data = cluster.data_directory
    method = clone_plan.choose(
        io.data_state(data),
        io.server_process(data) is not None,
        (data / "standby.signal").exists(),
        params["methods"],
    )
    result: dict[str, Any] = {"changed": method != "none", "method": method, "data_directory": str(data)}
    if method == "none" or module.check_mode:
        return result
    begin = time.monotonic()
    source = clone_io.Source(tuple(params["sources"]), params["port"], params["user"], params["passfile"])
    result.update(clone_io.clone(cluster, source, params["slot"], params["max_rate"], params["timeout"]))
    result["seconds"] = round(time.monotonic() - begin, 2)
    return result


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module))
    except (io.PostgresqlError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
