#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_promote
short_description: Make a standby the primary, when that is safe
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Promotes this host's standby after it has made sure that there is no other primary, that the standby has all there
    is, and that its replay is neither paused nor delayed. What is not known for sure is refused with the reason.
  - Each peer must answer as a standby, or be one of O(fenced). A standby that is alone in the world is not promoted
    without O(accept=split_brain).
  - What would be lost must be known and no more than O(max_lag_bytes). It is known from O(after_lsn) or
    O(upstream_lsn), or it is nothing with O(handover_token).
  - With O(handover_token) it waits for the primary O(handover_from) to end, while that one still serves, and promotes a
    moment later. While it waits the token stands in C(/run/lock/flotilla-promote-VERSION-CLUSTER). The primary is put
    out of action by M(flotilla.django.postgresql_fence), which writes the token into the WAL before it stops. The
    standby has then replayed the token and, as the last record, the shutdown checkpoint, which is all the proof there
    needs to be. No host asks another one in between.
  - The server is verified to accept writes on the next timeline, and a checkpoint is made, without which
    C(pg_rewind) of PostgreSQL 15 would take a diverged member for a good one.
attributes:
  check_mode:
    support: full
    description: Makes all checks, promotes nothing.
  diff_mode:
    support: full
    description: Shows the role before and after.
  idempotent:
    support: full
    description: A primary is left as it is.
options:
  state:
    description:
      - V(promoted) makes the standby the primary.
      - V(called_off) ends a run that waits with O(handover_token) on this host. When this returns, the standby will
        not be promoted by it any more, unless it says RV(promotion_pending). RV(role) says whether it was already.
        With O(handover_token) only the run that waits for this token is ended.
    type: str
    choices: [promoted, called_off]
    default: promoted
  fenced:
    description: >-
      Names of peers that were put out of action with proof, for example by M(flotilla.django.postgresql_fence). They
      need not answer, but they must not answer as a primary.
    type: list
    elements: str
    default: []
  handover_from:
    description: Name of the peer that is the primary and hands over.
    type: str
  handover_token:
    description: The token that M(flotilla.django.postgresql_fence) is given on that peer. 8 to 64 letters and digits.
    type: str
  patience:
    description: >-
      For how many seconds a run that waits may go on, and end by itself, before O(state=called_off) ends it. Somebody
      may just be moving the primary.
    type: int
    default: 0
  since_lsn:
    description: >-
      A position before the token, from which the WAL is searched. The default is what has been replayed when the
      module starts.
    type: str
  handover_timeout:
    description: How long to wait for the end of the primary, in seconds. After that it is not promoted any more.
    type: int
    default: 60
  after_lsn:
    description: >-
      C(Latest checkpoint location) of the former primary, which was shut down in order. The standby must have replayed
      more than that.
    type: str
  upstream_lsn:
    description: The last position that the former primary is known to have written, when it was not shut down in order.
    type: str
  max_lag_bytes:
    description: How many bytes of O(upstream_lsn) the standby may lack.
    type: int
    default: 0
  accept:
    description:
      - What is accepted.
      - V(data_loss) promotes a standby that lacks more than O(max_lag_bytes), or nobody knows how much.
      - V(split_brain) promotes although a peer that does not answer may be a primary.
      - V(paused_replay) promotes although replay is paused or delayed; what was received is replayed first.
    type: list
    elements: str
    choices: [data_loss, paused_replay, split_brain]
    default: []
  standbys:
    description:
      - Names of the members that will stream from this server. Where C(synchronous_standby_names) cannot be met with
        them, no commit would ever return; it is overridden with what can be met (C(ALTER SYSTEM)).
      - On a server that is the primary already an override is taken back when the configured value can be met again.
      - Without this option it is left alone.
    type: list
    elements: str
  start_timeout:
    description: How long a server that starts up may take until it answers, in seconds.
    type: int
    default: 30
  promote_timeout:
    description: >-
      How long the promotion may take, in seconds. It may be completed after that (RV(promotion_pending)); the former
      primary must not be started then.
    type: int
    default: 60
extends_documentation_fragment:
  - flotilla.django.postgresql
  - flotilla.django.postgresql.server
  - flotilla.django.postgresql.peers
notes:
  - Runs as root (it acts as C(postgres) only while it connects) or as C(postgres).
seealso:
  - module: flotilla.django.postgresql_fence
  - module: flotilla.django.postgresql_replication_info
"""

EXAMPLES = r"""
- name: Promote the standby, now that db1 has been stopped for good
  flotilla.django.postgresql_promote:
    version: 17
    peers:
      - {name: db1, address: 192.0.2.31}
      - {name: db3, address: 192.0.2.33}
    replication_user: replication
    replication_password: "{{ postgresql_replication_password }}"
    fenced: [db1]
    after_lsn: "{{ db1_fence['checkpoint_lsn'] }}"
    standbys: [db3]

- name: Wait for the primary to hand over
  flotilla.django.postgresql_promote:
    version: 17
    peers:
      - {name: db1, address: 192.0.2.31}
    replication_user: replication
    replication_password: "{{ postgresql_replication_password }}"
    handover_from: db1
    handover_token: "{{ token }}"
  async: 120
  poll: 0
"""

RETURN = r"""
promoted:
  description: Whether the server was promoted by this run (in check mode, would be).
  type: bool
  returned: always
promotion_pending:
  description: The promotion was begun and not completed in time. It may still be.
  type: bool
  returned: always
role_before:
  description: V(primary) or V(standby).
  type: str
  returned: when it is known
role:
  description: The role afterwards.
  type: str
  returned: when it is known
timeline_before:
  description: The timeline of the standby.
  type: int
  returned: when it is known
timeline:
  description: The timeline afterwards.
  type: int
  returned: when it is known
receive_lsn:
  description: The last position received before the promotion.
  type: str
  returned: when it is known
replay_lsn:
  description: The last position replayed before the promotion.
  type: str
  returned: when it is known
shutdown_checkpoint_lsn:
  description: The position of the former primary's shutdown checkpoint.
  type: str
  returned: with O(handover_token) or O(after_lsn)
lag_bytes:
  description: What the standby lacked. Null when it is not known.
  type: int
  returned: when it was decided
data_loss_bytes:
  description: >-
    How many bytes of WAL are lost, from where the new timeline begins to O(upstream_lsn). Null when it is not known.
  type: int
  returned: when it was decided
synchronous_standby_names:
  description: The setting afterwards.
  type: str
  returned: with O(standbys)
synchronous_overridden:
  description: Whether it is another than the configuration files say.
  type: bool
  returned: with O(standbys)
called_off:
  description: Whether a waiting run was ended.
  type: bool
  returned: with O(state=called_off)
node:
  description: The node as M(flotilla.django.postgresql_replication_info) says it, before anything was done.
  type: dict
  returned: when it could be read
peers:
  description: What the peers answered.
  type: dict
  returned: when they were asked
seconds:
  description: How long it waited for the hand-over, and how long the promotion and the checkpoint took.
  type: dict
  returned: when it was promoted
warnings:
  description: What was accepted.
  type: list
  elements: str
  returned: when there is something to say
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_primary_io as primary_io
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_promote_plan as promote_plan
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_wal_plan as wal


def argument_spec() -> dict[str, Any]:
    return {
        "state": {"type": "str", "choices": ["promoted", "called_off"], "default": "promoted"},
        **io.cluster_options(),
        **io.server_options(),
        **io.peer_options(),
        "fenced": {"type": "list", "elements": "str", "default": []},
        "handover_from": {"type": "str"},
        "handover_token": {"type": "str", "no_log": False},  # unique, not secret
        "since_lsn": {"type": "str"},
        "handover_timeout": {"type": "int", "default": 60},
        "patience": {"type": "int", "default": 0},
        "after_lsn": {"type": "str"},
        "upstream_lsn": {"type": "str"},
        "max_lag_bytes": {"type": "int", "default": 0},
        "accept": {"type": "list", "elements": "str", "choices": list(promote_plan.ACCEPT), "default": []},
        "standbys": {"type": "list", "elements": "str"},
        "start_timeout": {"type": "int", "default": 30},
        "promote_timeout": {"type": "int", "default": 60},
    }


class Promotion:
    """One run; what it found out is in result, also when it fails."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.cluster = io.cluster_from(self.params)
        self.result: dict[str, Any] = {"changed": False, "promoted": False, "promotion_pending": False}
        self.seconds: dict[str, float] = {}
        self.request = promote_plan.Request(
            fenced=tuple(self.params["fenced"]),
            handover_from=self.params["handover_from"],
            after_lsn=self.params["after_lsn"],
            upstream_lsn=self.params["upstream_lsn"],
            max_lag_bytes=self.params["max_lag_bytes"],
            accept=tuple(self.params["accept"]),
        )

    def run(self) -> None:
        io.check_peer_options(self.params)
        if self.params["state"] == "called_off":
            self.call_off()
            return
        decision = self.decide()
        for warning in decision.warnings:
            self.module.warn(warning)
        self.result.update(lag_bytes=decision.lag_bytes, data_loss_bytes=decision.data_loss_bytes)
        after = "primary" if decision.action == "promote" else self.result["role_before"]
        self.result["diff"] = {"before": f"{self.result['role_before']}\n", "after": f"{after}\n"}
        if self.module.check_mode:
            self.result.update(changed=decision.action == "promote", promoted=decision.action == "promote")
            return
        with io.connect(self.cluster) as connection:
            if decision.action == "promote":
                if self.params["handover_token"]:
                    self.wait_for_handover(connection)
                else:
                    self.wait_for_replay(connection)
                    self.promote(connection)
                self.verify(connection)
            elif self.params["standbys"] is not None:
                self.keep_commits_possible(connection)

    def call_off(self) -> None:
        if not self.module.check_mode:
            found, promoting = primary_io.call_off(self.cluster, self.params["handover_token"], self.params["patience"])
            self.result["called_off"] = self.result["changed"] = found
            if promoting:
                with io.connect(self.cluster) as connection:
                    pending = not primary_io.wait_for_promotion(connection, self.params["promote_timeout"])
                    self.result["promotion_pending"] = pending
        node = io.read_node(self.cluster)
        self.result.update(node=node, role=node["role"], timeline=node["timeline"])

    def decide(self) -> promote_plan.Decision:
        """Read and decide, and wait for a server that is starting up."""
        params = self.params
        deadline = primary_io.clock() + params["start_timeout"]
        while True:
            node = io.read_node(self.cluster)
            peers = io.ask_peers(params)
            self.result.update(
                node=node,
                peers=peers,
                role_before=node["role"],
                role=node["role"],
                timeline_before=node["timeline"],
                timeline=node["timeline"],
                receive_lsn=node["receive_lsn"],
                replay_lsn=node["lsn"],
            )
            decision = promote_plan.decide(node, peers, self.request)
            if decision.action != "wait":
                return decision
            if primary_io.clock() > deadline:
                raise io.PostgresqlError(
                    f"the server does not answer after {params['start_timeout']} s: {node['error']}\n"
                    f"The end of {self.cluster.log_file}:\n{self.cluster.log_tail()}"
                )
            time.sleep(0.5)

    def wait_for_handover(self, connection: Any) -> None:
        began = primary_io.clock()
        deadline = began + self.params["handover_timeout"]
        watch = primary_io.Handover(connection=connection, cluster=self.cluster, token=self.params["handover_token"],
                                    since=self.params["since_lsn"])  # fmt: skip
        with primary_io.waiting_lock(self.cluster, self.params["handover_token"]) as promoting:
            while (shutdown := watch.look()) is None:
                if primary_io.clock() > deadline:
                    what = "its shutdown" if watch.message else "its message"
                    raise io.PostgresqlError(
                        f"the primary has not handed over within {self.params['handover_timeout']} s: replayed up to "
                        f"{watch.replay}, without {what}. Nothing was promoted"
                    )
                time.sleep(primary_io.POLL)
            # The host may have been asleep in between.
            if primary_io.clock() > deadline:
                raise io.PostgresqlError("the hand-over came too late. Nothing was promoted")
            self.seconds["handover"] = round(primary_io.clock() - began, 3)
            promoting()
            self.promote(connection)
        self.result.update(shutdown_checkpoint_lsn=shutdown, replay_lsn=watch.replay, receive_lsn=watch.replay,
                           lag_bytes=0)  # fmt: skip

    def wait_for_replay(self, connection: Any) -> None:
        """Everything received is replayed by the promotion itself; of a shutdown in order it is known before."""
        after = self.params["after_lsn"]
        if not after:
            return
        self.result["shutdown_checkpoint_lsn"] = after
        deadline = primary_io.clock() + self.params["promote_timeout"]
        while self.result["data_loss_bytes"] == 0:
            replay = connection.execute("SELECT pg_last_wal_replay_lsn()::text AS value").fetchone()["value"]
            self.result["replay_lsn"] = replay
            if wal.lsn(replay) > wal.lsn(after):
                return
            if primary_io.clock() > deadline:
                raise io.PostgresqlError(f"replay has come to {replay} only, and must go beyond {after}")
            time.sleep(0.1)

    def promote(self, connection: Any) -> None:
        if self.params["standbys"] is not None:
            self.keep_commits_possible(connection)
        began = primary_io.clock()
        self.result["changed"] = True
        if not primary_io.promote(connection, self.params["promote_timeout"]):
            self.result["promotion_pending"] = True
            raise io.PostgresqlError(
                f"the promotion was begun and is not completed after {self.params['promote_timeout']} s. It may still "
                "be: do not start the former primary, and run again"
            )
        self.seconds["promote"] = round(primary_io.clock() - began, 3)
        self.result.update(promoted=True, role="primary")

    def verify(self, connection: Any) -> None:
        began = primary_io.clock()
        timeline = primary_io.wal_timeline(connection)
        self.result["timeline"] = timeline
        if timeline <= (self.result["timeline_before"] or 0):
            raise io.PostgresqlError(
                f"promoted, but the timeline is {timeline}, and was {self.result['timeline_before']}"
            )
        self.measure_loss(timeline)
        connection.execute("SET statement_timeout = 0")
        connection.execute("CHECKPOINT")
        self.seconds["checkpoint"] = round(primary_io.clock() - began, 3)
        self.result["seconds"] = self.seconds

    def measure_loss(self, timeline: int) -> None:
        """To the byte: what was received may end within a record, where the new timeline does not begin."""
        upstream = self.params["upstream_lsn"]
        begins = primary_io.switch_point(self.cluster, timeline)
        if upstream and begins is not None:
            self.result["data_loss_bytes"] = max(0, wal.lsn(upstream) - begins)

    def keep_commits_possible(self, connection: Any) -> None:
        setting = primary_io.read_synchronous(connection)
        wanted, warnings = promote_plan.synchronous(setting["configured"], setting["current"], self.params["standbys"])
        for warning in warnings:
            self.module.warn(warning)
        value = setting["current"] if wanted is None else wanted
        if value != setting["current"]:
            primary_io.write_synchronous(connection, None if value == setting["configured"] else value)
            self.result["changed"] = True
        self.result.update(synchronous_standby_names=value, synchronous_overridden=value != setting["configured"])


def main() -> None:
    module = AnsibleModule(
        argument_spec=argument_spec(),
        supports_check_mode=True,
        required_together=[
            ("replication_user", "replication_password"),
            ("handover_from", "handover_token"),
        ],
        mutually_exclusive=[("handover_token", "after_lsn", "upstream_lsn")],
        required_by={"since_lsn": ("handover_token",)},
    )
    promotion = Promotion(module)
    try:
        promotion.run()
    except (io.PostgresqlError, io.DriverError, ValueError) as error:
        module.fail_json(msg=str(error), **promotion.result)
    module.exit_json(**promotion.result)


if __name__ == "__main__":
    main()
