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
  - Makes a stopped data directory a standby of the primary, by what its timelines and its WAL say. A directory that
    is not beyond the place where the primary left their common timeline just follows. One that is beyond it is
    rewound with C(pg_rewind). An empty one is cloned with C(pg_basebackup).
  - The server is neither started nor stopped. A running standby is left as it is, a running primary is refused.
  - Among the sources the one that accepts writes is found by libpq itself (C(target_session_attrs=read-write)).
  - What is in a data directory is given up only where the primary's history shows that it was left behind, or with
    O(replace_damaged). Refused in any case are another cluster (system identifier) and a timeline that is newer than
    the primary's. A directory that was a primary on the same timeline as the primary, one whose last WAL is not the
    primary's, one that needs WAL that nobody keeps, and one that cannot be read, are replaced only with
    O(replace_damaged).
  - Clones and rewinds are made in a directory beside the data directory (C(.cloning), C(.rewinding)) that is renamed
    when it is complete and a standby. An interrupted run leaves nothing that could be started as a second primary.
    The next run begins a clone anew and resumes a rewind, for which the WAL that the directory had before is kept in
    C(.rewinding.wal) until it is done. Two runs at the same time exclude each other. The data directory must not be a
    mount point itself.
  - A server that was not stopped in good order and must be rewound is recovered first, in single-user mode.
  - Before a rewind the primary's control file is brought to its timeline (C(CHECKPOINT)), without which C(pg_rewind)
    of version 15 sees no need on a server that has diverged. After it another C(CHECKPOINT) writes the WAL that the
    rewound server needs to become consistent.
  - The member's physical slot on the primary holds the WAL from before a clone or rewind on. One that is in use is
    refused.
  - C(primary_conninfo) and C(primary_slot_name) are those of the configuration files. They and C(recovery_*) are
    removed from C(postgresql.auto.conf).
attributes:
  check_mode:
    support: full
    description: Decides on the same evidence, and does nothing.
  diff_mode:
    support: none
    description: The content of a database is no useful diff.
  idempotent:
    support: full
    description: A standby that can follow is left as it is.
options:
  config_file:
    description: The server's configuration file, for crash recovery. The default is Debian's,
      C(/etc/postgresql/VERSION/CLUSTER/postgresql.conf).
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
    description:
      - The replication user. To follow and to clone it needs C(REPLICATION).
      - To rewind it must be let into the database C(postgres), be a member of C(pg_checkpoint), and have C(EXECUTE)
        there on C(pg_ls_dir(text, boolean, boolean)), C(pg_stat_file(text, boolean)), C(pg_read_binary_file(text))
        and C(pg_read_binary_file(text, bigint, bigint, boolean)). The role C(flotilla.django.postgresql) sees to
        that.
    type: str
    required: true
  passfile:
    description: libpq's password file with its password, readable by C(postgres). No password is given on a command
      line.
    type: path
    required: true
  ca_file:
    description:
      - File with the certificate of the authority that signed those of the sources. With it the connection is
        encrypted, and made only to a server whose certificate is for its address (C(sslmode=verify-full)).
      - Without it libpq decides.
    type: path
  slot:
    description: Name of this member's physical slot.
    type: str
    required: true
  methods:
    description: What may be done to reach the goal. V(clone) alone never touches a directory that holds something.
    type: list
    elements: str
    choices: [follow, rewind, clone]
    default: [follow, rewind, clone]
  replace_damaged:
    description:
      - Whether a clone may take the place of a directory that can neither be followed nor rewound, also when the
        rewind fails.
      - The old directory is kept beside the new one, named C(.kept-) and the time in UTC. Removing it is yours to do.
    type: bool
    default: false
  max_rate:
    description: Upper limit of a clone's transfer, in KiB/s, so that it does not starve the primary. V(0) is no
      limit.
    type: int
    default: 0
  timeout:
    description: How long a clone, a rewind or crash recovery may take, in seconds.
    type: int
    default: 86400
extends_documentation_fragment:
  - flotilla.django.postgresql
notes:
  - Must run as root.
seealso:
  - module: flotilla.django.postgresql_replication_info
"""

EXAMPLES = r"""
- name: Make this member follow the primary
  flotilla.django.postgresql_standby:
    version: 17
    sources: [192.0.2.31, 192.0.2.33]
    user: replication
    passfile: /etc/postgresql/17/main/replication.pgpass
    slot: db2

- name: The same, and clone it where there is nothing left to rewind
  flotilla.django.postgresql_standby:
    version: 17
    sources: [192.0.2.31, 192.0.2.33]
    user: replication
    passfile: /etc/postgresql/17/main/replication.pgpass
    slot: db2
    replace_damaged: true
  register: standby

- name: Tell where the old data is
  ansible.builtin.debug:
    msg: "{{ standby['kept_directory'] }}"
  when: standby['kept_directory'] is not none
"""

RETURN = r"""
method:
  description:
    - What was done, or would be in check mode.
    - V(none) where the data directory is a standby already and can follow as it is.
  type: str
  returned: success
  sample: rewind
reason:
  description: Why this method, in one sentence.
  type: str
  returned: success
  sample: the primary left timeline 1 at 0/3000148, and the data directory is beyond it
data_directory:
  description: The data directory.
  type: str
  returned: success
source:
  description: Address of the primary.
  type: str
  returned: when a primary was asked
system_identifier:
  description: What all copies of the cluster have in common.
  type: str
  returned: when a primary was asked
timelines:
  description: Timelines of the data directory.
  type: dict
  returned: success
  contains:
    before:
      description: The one it was on, or null where it was empty or could not be read.
      type: int
    after:
      description: The primary's, which it follows, or null where no primary was asked.
      type: int
divergence_lsn:
  description: Where the primary left the last timeline that both have in common; null where they are on the same one.
  type: str
  returned: success
rewind:
  description: What became of rewinding.
  type: dict
  returned: success
  contains:
    needed:
      description: Whether the data directory was beyond the place where the primary left it.
      type: bool
    performed:
      description: Whether C(pg_rewind) was run, or would be in check mode.
      type: bool
    resumed:
      description: Whether an interrupted one was gone on with.
      type: bool
    recovered:
      description: Whether crash recovery was run before.
      type: bool
kept_directory:
  description: Where the replaced data directory was kept, or null. In check mode a name like the one it would get.
  type: str
  returned: success
seconds:
  description: How long it took.
  type: float
  returned: success
"""

import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_clone_io as clone_io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_standby_io as standby_io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_standby_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_wal_plan as wal


def argument_spec() -> dict[str, Any]:
    methods = ["follow", "rewind", "clone"]
    return {
        **io.cluster_options(),
        "config_file": {"type": "path"},
        "port": {"type": "int", "default": 5432},
        "sources": {"type": "list", "elements": "str", "required": True},
        "user": {"type": "str", "required": True},
        "passfile": {"type": "path", "required": True, "no_log": False},  # a path, not a password
        "ca_file": {"type": "path"},
        "slot": {"type": "str", "required": True},
        "methods": {"type": "list", "elements": "str", "choices": methods, "default": methods},
        "replace_damaged": {"type": "bool", "default": False},
        "max_rate": {"type": "int", "default": 0},
        "timeout": {"type": "int", "default": 86400},
    }


class Run:
    """One run: read, decide, carry out."""

    def __init__(self, params: dict[str, Any], check_mode: bool) -> None:
        self.params = params
        self.check_mode = check_mode
        self.cluster = io.Cluster(params["version"], params["cluster"], params["data_directory"], params["port"], "")
        self.data = self.cluster.data_directory
        self.allowed = plan.Allowed(params["methods"], params["replace_damaged"])
        self.any_source = self._source(params["sources"])
        self.source = self.any_source
        self.described: plan.Source | None = None
        self.relation = plan.Relation(None)
        self.lock = -1

    def _source(self, addresses: list[str]) -> clone_io.Source:
        login = (self.params["port"], self.params["user"], self.params["passfile"])
        return clone_io.Source(tuple(addresses), *login, self.params["ca_file"] or "")

    def __call__(self) -> dict[str, Any]:
        begin = time.monotonic()
        with clone_io.exclusive(self.data, self.check_mode) as self.lock:
            if not self.check_mode:
                standby_io.settle(self.data)
            local, place = standby_io.read_local(self.cluster)
            decision = plan.decide_alone(local, self.allowed)
            if decision is None or not (decision.method == "none" or self.check_mode):
                decision = self._ask(local, place, decision)
            result = self._result(local, decision)
            if not self.check_mode:
                self._carry_out(local, decision, result)
        result["seconds"] = round(time.monotonic() - begin, 2)
        return result

    def _ask(self, local: plan.Local, place: Path, decision: plan.Decision | None) -> plan.Decision:
        """Ask the primary. All that follows is done with this one server."""
        if not self.cluster.installed or io.driver_version() is None:
            raise io.PostgresqlError(f"PostgreSQL {self.cluster.version} and python3-psycopg must be installed first")
        connection = clone_io.ReplicationConnection(self.any_source)
        try:
            self.source = self._source([connection.address])
            self.described = connection.describe()
            if decision is None:
                self.relation = plan.relate(local, self.described)
                same = local.system_identifier == self.described.system_identifier
                evidence = plan.Evidence()
                if same and local.timeline <= self.described.timeline:
                    evidence = standby_io.gather(self.cluster, self.source, place, local, self.relation)
                decision = plan.decide(local, self.described, self.relation, evidence, self.allowed)
            if decision.method == "follow":
                ready = local.standby_signal and not decision.trim and clone_io.follows_its_files(place)
                if ready and connection.slot_holds_wal(self.params["slot"]):
                    decision = plan.Decision("none", decision.reason)
        finally:
            connection.close()
        return decision

    def _result(self, local: plan.Local, decision: plan.Decision) -> dict[str, Any]:
        divergence = self.relation.divergence
        rewind = decision.method == "rewind"
        keep = standby_io.keep_name(self.data, time.time())
        result: dict[str, Any] = {
            "changed": decision.method != "none",
            "method": decision.method,
            "reason": decision.reason,
            "data_directory": str(self.data),
            "timelines": {
                "before": local.timeline or None,
                "after": self.described.timeline if self.described else None,
            },
            "divergence_lsn": None if divergence is None else wal.lsn_text(divergence),
            "rewind": {
                "needed": rewind,
                "performed": rewind,
                "resumed": decision.resume,
                "recovered": decision.recover,
            },
            "kept_directory": str(keep) if decision.replace else None,
        }
        if self.described:
            result.update(source=self.source.addresses[0], system_identifier=self.described.system_identifier)
        return result

    def _carry_out(self, local: plan.Local, decision: plan.Decision, result: dict[str, Any]) -> None:
        if decision.method == "follow":
            self._follow(local, decision)
        if decision.method == "rewind":
            try:
                self._rewind(decision)
            except standby_io.DamagedError as error:
                # Raises where that is not allowed.
                decision = plan.damaged(self.allowed, str(error))
                result.update(method="clone", reason=decision.reason)
                result["rewind"]["performed"] = False
                result["kept_directory"] = str(standby_io.keep_name(self.data, time.time()))
        if decision.method == "clone":
            self._clone(result["kept_directory"])
        elif decision.method == "rewind" or local.rewound:
            self._write_wal()

    def _follow(self, local: plan.Local, decision: plan.Decision) -> None:
        # First what keeps it from coming up as a primary.
        clone_io.make_standby(self.data)
        if decision.trim and self.relation.divergence is not None:
            standby_io.trim(self.data, local, self.relation.divergence)
        self._hold_wal()

    def _rewind(self, decision: plan.Decision) -> None:
        assert self.described is not None  # a rewind is never decided without a primary
        timeline, timeout = self.described.timeline, self.params["timeout"]
        # Before the checkpoint, which removes WAL that nobody holds.
        self._hold_wal()
        standby_io.checkpoint(self.source, timeline, always=False, timeout=timeout)
        config_file = f"/etc/postgresql/{self.cluster.version}/{self.cluster.name}/postgresql.conf"
        standby_io.rewind(
            self.cluster,
            self.source,
            self.described,
            self.relation.divergence or 0,
            self.params["config_file"] or config_file,
            decision.recover,
            timeout,
            self.lock,
        )

    def _clone(self, kept: str | None) -> None:
        keep = Path(kept) if kept else None
        if keep:
            standby_io.set_aside(self.data, keep)
        params = self.params
        clone_io.clone(
            self.cluster, self.source, params["slot"], params["max_rate"], params["timeout"], self.lock, keep
        )

    def _write_wal(self) -> None:
        """Let the primary write WAL: until it does, a rewound server accepts no connections."""
        if self.described:
            standby_io.checkpoint(self.source, self.described.timeline, always=True, timeout=self.params["timeout"])

    def _hold_wal(self) -> None:
        """Let the slot on the primary keep WAL from now on, or from earlier where it already does."""
        connection = clone_io.ReplicationConnection(self.source)
        try:
            if not connection.slot_holds_wal(self.params["slot"]):
                connection.renew_slot(self.params["slot"], patience=15)
        finally:
            connection.close()


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**Run(module.params, module.check_mode)())
    except (io.PostgresqlError, io.DriverError, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    except subprocess.TimeoutExpired as error:
        module.fail_json(msg=f"{Path(error.cmd[0]).name} took longer than {error.timeout} s and was given up")


if __name__ == "__main__":
    main()
