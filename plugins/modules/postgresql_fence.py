#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_fence
short_description: Put a PostgreSQL primary out of action, with proof
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Two locks are put on before the server is stopped. C(standby.signal) makes any start come up read-only, whoever
    starts it and how. C(start.conf) says C(disabled), so that neither a boot nor C(systemctl start) nor
    C(pg_ctlcluster) starts it at all.
  - The server is stopped in fast mode, which ends all sessions. What counts is the control file, not systemd. A server
    that has written C(shut down) there and hangs on (a hung archive command, a hung standby) is killed.
  - With O(force=true) a server that does not stop in time is stopped in immediate mode, and then killed.
  - With O(handover_token) it is the planned way. A checkpoint is made first, and the token is written into the WAL
    right before the stop, for the standby that waits for it with M(flotilla.django.postgresql_promote).
  - What cannot be carried out is taken back. When the server could not be told to stop, the locks are off again.
  - One run at a time does this to a server; another waits for it, for O(stop_timeout) at most.
attributes:
  check_mode:
    support: full
    description: Decides, and does nothing.
  diff_mode:
    support: none
    description: The state of a server is no useful diff.
  idempotent:
    support: full
    description: A member that is stopped and locked is left so.
options:
  state:
    description:
      - V(fenced) puts the member out of action.
      - V(released) takes the locks off, so that it starts as the primary again. That is refused when a peer is a
        primary, is on a newer timeline, or does not answer. The server is not started.
    type: str
    choices: [fenced, released]
    default: fenced
  handover_token:
    description: >-
      Written into the WAL before the stop. 8 to 64 letters and digits. The server must be a primary that answers.
      With O(state=released), a member that anything but the hand-over with this token has put out of action is left so.
    type: str
  handover_to:
    description: >-
      Name (C(application_name)) of the standby that waits for the token. The server is stopped only when it sees it
      stream and answer, no more than 1 MiB behind; until then, for up to 10 seconds, it serves.
    type: str
  force:
    description: Stop it whatever it takes. Otherwise only in order.
    type: bool
    default: false
  stop_timeout:
    description: How long the stop may take, in seconds, before it is given up or forced.
    type: int
    default: 30
  checkpoint_timeout:
    description: How long the checkpoint before the stop may take, in seconds. Until then the server serves.
    type: int
    default: 300
  accept:
    description: V(split_brain) releases although a peer does not answer.
    type: list
    elements: str
    choices: [split_brain]
    default: []
extends_documentation_fragment:
  - flotilla.django.postgresql
  - flotilla.django.postgresql.server
  - flotilla.django.postgresql.peers
notes:
  - Must run as root.
seealso:
  - module: flotilla.django.postgresql_promote
  - module: flotilla.django.postgresql_standby
"""

EXAMPLES = r"""
- name: Put the former primary out of action, whatever it takes
  flotilla.django.postgresql_fence:
    version: 17
    force: true
  register: postgresql_fenced

- name: Hand over to the standby that waits for the token
  flotilla.django.postgresql_fence:
    version: 17
    handover_token: "{{ token }}"
"""

RETURN = r"""
fenced:
  description: Whether the member is out of action now, proven on the spot. False with O(state=released).
  type: bool
  returned: always
method:
  description: How it was stopped, V(none) when it was stopped already.
  type: str
  returned: always
  sample: fast
shut_down:
  description: Whether the control file says that it was stopped in order, so that nothing is missing in its WAL.
  type: bool
  returned: when there is a cluster
checkpoint_lsn:
  description: The control file's latest checkpoint, which is the very last record when it was stopped in order.
  type: str
  returned: when there is a cluster
end_lsn:
  description: >-
    Where its WAL ends. What a standby has less is lost when that one is promoted. Null when it cannot be read.
  type: str
  returned: when it is fenced and was a primary
timeline:
  description: The timeline of its latest checkpoint.
  type: int
  returned: when there is a cluster
system_identifier:
  description: What all copies of one cluster have in common.
  type: str
  returned: when there is a cluster
locks:
  description: The two locks, C(start_disabled) and C(standby_signal).
  type: dict
  returned: always
seconds:
  description: How long the checkpoint and the stop took.
  type: dict
  returned: when it was stopped
"""

import signal
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_primary_io as primary_io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_promote_plan as promote_plan
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_wal_plan as wal

# How long a server whose control file says "shut down" may take to send the rest of its WAL and end.
LINGER = 3.0
# What a standby must still receive and replay when nobody can write any more costs time, so it must be little.
MAX_LAG_BYTES = 1024 * 1024


def argument_spec() -> dict[str, Any]:
    return {
        "state": {"type": "str", "choices": ["fenced", "released"], "default": "fenced"},
        **io.cluster_options(),
        **io.server_options(),
        "handover_token": {"type": "str", "no_log": False},  # unique, not secret
        "handover_to": {"type": "str"},
        "force": {"type": "bool", "default": False},
        "stop_timeout": {"type": "int", "default": 30},
        "checkpoint_timeout": {"type": "int", "default": 300},
        **io.peer_options(),
        "accept": {"type": "list", "elements": "str", "choices": ["split_brain"], "default": []},
    }


class Fence:
    """One run; what it found out is in result, also when it fails."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.cluster = io.cluster_from(self.params)
        self.seconds: dict[str, float] = {}
        self.result: dict[str, Any] = {"changed": False, "fenced": False, "method": "none", "seconds": self.seconds}

    def run(self) -> None:
        io.check_peer_options(self.params)
        if self.module.check_mode:
            self.decide_and_do()
            return
        with primary_io.one_at_a_time(self.cluster, self.params["stop_timeout"]):
            self.decide_and_do()

    def decide_and_do(self) -> None:
        node = io.read_node(self.cluster)
        self.result["locks"] = primary_io.locks(self.cluster)
        if self.params["state"] == "released":
            decision = self.decide_release(node)
        else:
            decision = promote_plan.decide_fence(node, self.locked, bool(self.params["handover_token"]))
        self.result["changed"] = decision.action != "none"
        if self.module.check_mode:
            return
        if decision.action == "stop_and_lock":
            self.stop_and_lock()
        elif decision.action == "lock":
            primary_io.lock(self.cluster)
        elif decision.action == "stop_and_unlock":
            self.stop_whatever_it_takes(self.server())
        if decision.action in ("unlock", "stop_and_unlock"):
            primary_io.unlock(self.cluster)
        self.report(node)

    @property
    def locked(self) -> bool:
        """Whether all locks that there can be are on: outside of Debian's layout there is no start.conf."""
        found = primary_io.locks(self.cluster)
        return found["standby_signal"] and (found["start_disabled"] or not self.cluster.start_conf.parent.is_dir())

    def decide_release(self, node: dict[str, Any]) -> promote_plan.FenceDecision:
        peers = io.ask_peers(self.params)
        locked = any(primary_io.locks(self.cluster).values())
        token = self.params["handover_token"]
        foreign = bool(token) and primary_io.locked_by(self.cluster) not in (None, token)
        return promote_plan.decide_release(node, locked, peers, self.params["accept"], foreign)

    def server(self) -> int:
        pid = io.server_process(self.cluster.data_directory)
        if pid is None:
            raise io.PostgresqlError("the server ended by itself in this moment: run again")
        return pid

    def stop_and_lock(self) -> None:
        pid = self.server()
        token = self.params["handover_token"]
        began = primary_io.clock()
        if token:
            wal.check_token(token)
            with io.connect(self.cluster) as connection:
                connection.execute(f"SET statement_timeout = '{int(self.params['checkpoint_timeout'])}s'")
                connection.execute("CHECKPOINT")
                self.seconds["checkpoint"] = round(primary_io.clock() - began, 3)
                if self.params["handover_to"]:
                    primary_io.wait_for_standby(connection, self.params["handover_to"], MAX_LAG_BYTES, 10)
                before = primary_io.locks(self.cluster)
                try:
                    primary_io.lock(self.cluster, token)
                    # After the locks: who finds the message knows that they are on.
                    connection.execute(
                        "SELECT pg_logical_emit_message(false, %s, %s::text)", (wal.MESSAGE_PREFIX, token)
                    )
                except Exception:
                    if not any(before.values()):
                        primary_io.unlock(self.cluster)
                    raise
                began = primary_io.clock()
                primary_io.send(pid, signal.SIGINT)
        else:
            primary_io.lock(self.cluster)
            primary_io.send(pid, signal.SIGINT)
        self.result["method"] = "fast"
        if primary_io.wait_shut_down(self.cluster, self.params["stop_timeout"]):
            if not primary_io.wait_gone(self.cluster, LINGER):
                self.result["method"] = "fast, then killed when it hung after the shutdown"
                primary_io.kill_all(pid)
        elif io.server_process(self.cluster.data_directory) is not None:
            if not self.params["force"]:
                raise io.PostgresqlError(
                    f"the server has not shut down within {self.params['stop_timeout']} s. It is locked, and accepts "
                    "no more sessions"
                )
            self.stop_whatever_it_takes(pid)
        if not primary_io.wait_gone(self.cluster, 5):
            raise io.PostgresqlError(f"the server process {pid} cannot be ended")
        self.seconds["stop"] = round(primary_io.clock() - began, 3)

    def stop_whatever_it_takes(self, pid: int) -> None:
        self.result["method"] = "immediate"
        primary_io.send(pid, signal.SIGQUIT)
        if not primary_io.wait_gone(self.cluster, 5):
            self.result["method"] = "kill"
            primary_io.kill_all(pid)
            if not primary_io.wait_gone(self.cluster, 5):
                raise io.PostgresqlError(f"the server process {pid} cannot be ended")

    def report(self, node: dict[str, Any]) -> None:
        self.result["locks"] = primary_io.locks(self.cluster)
        stopped = io.server_process(self.cluster.data_directory) is None
        if node["data"] != "present":
            self.result["fenced"] = stopped and self.params["state"] == "fenced"
            return
        control = io.control_data(self.cluster)
        self.result.update(
            fenced=stopped and self.locked and self.params["state"] == "fenced",
            shut_down=stopped and control["Database cluster state"] == "shut down",
            checkpoint_lsn=control["Latest checkpoint location"],
            timeline=int(control["Latest checkpoint's TimeLineID"]),
            system_identifier=control["Database system identifier"],
        )
        if stopped and self.params["state"] == "fenced" and "recovery" not in control["Database cluster state"]:
            self.result["end_lsn"] = primary_io.end_of_wal(self.cluster, control)


def main() -> None:
    module = AnsibleModule(
        argument_spec=argument_spec(),
        supports_check_mode=True,
        required_together=[("replication_user", "replication_password")],
        required_by={"handover_to": ("handover_token",)},
    )
    fence = Fence(module)
    try:
        fence.run()
    except (io.PostgresqlError, io.DriverError, ValueError, OSError) as error:
        module.fail_json(msg=str(error), **{**fence.result, "locks": primary_io.locks(fence.cluster)})
    module.exit_json(**fence.result)


if __name__ == "__main__":
    main()
