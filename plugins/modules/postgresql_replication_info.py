#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_replication_info
short_description: Tell what a PostgreSQL node is, and what its peers say they are
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Reads the truth of one node in one run. A running server is asked over its local socket as C(postgres), a stopped
    one
    through C(pg_controldata).
  - Never assumes who the primary is. With O(peers) each of them is asked over the network, by a replication connection,
    which needs no more than the rights of the replication user.
  - Does not fail because nothing is installed, because there is no cluster, or because the server is down. That is
    what it reports.
attributes:
  check_mode:
    support: full
    description: Reads only.
  diff_mode:
    support: none
    description: Changes nothing.
  idempotent:
    support: full
    description: Changes nothing.
extends_documentation_fragment:
  - flotilla.django.postgresql
  - flotilla.django.postgresql.server
  - flotilla.django.postgresql.peers
notes:
  - Runs as root (it acts as C(postgres) only while it connects) or as C(postgres).
"""

EXAMPLES = r"""
- name: Ask who is the primary
  flotilla.django.postgresql_replication_info:
    version: 17
    peers:
      - {name: db2, address: 192.0.2.32}
      - {name: db3, address: 192.0.2.33}
    replication_user: replication
    replication_password: "{{ postgresql_replication_password }}"
  register: postgresql_info

- name: Show the lag of the replicas in bytes, as the primary sees it
  ansible.builtin.debug:
    msg: "{{ postgresql_info['node']['downstreams'] | items2dict(key_name='name', value_name='lag_bytes') }}"
  when: postgresql_info['node']['role'] == 'primary'
"""

RETURN = r"""
node:
  description: This node.
  type: dict
  returned: success
  contains:
    installed:
      description: Whether the server's programs of this version are there.
      type: bool
    driver:
      description: Version of psycopg, null where it is not installed.
      type: str
    version:
      description: The major version that was asked for.
      type: int
    data_directory:
      description: The data directory.
      type: str
    data:
      description: V(absent) (nothing, or an empty directory), V(present), or V(foreign) (not empty, but no complete
        cluster).
      type: str
    standby_signal:
      description: Whether C(standby.signal) is there, so that the node starts as a standby.
      type: bool
    running:
      description: Whether a server process runs on the data directory.
      type: bool
    accepting:
      description: Whether it answers SQL.
      type: bool
    error:
      description: Why it does not, when it runs.
      type: str
    role:
      description:
        - V(primary) or V(standby), null without data. Of a stopped node, what it would start as.
      type: str
    in_recovery:
      description: What C(pg_is_in_recovery()) says, null when SQL is not answered.
      type: bool
    database_cluster_state:
      description: The state in the control file, for example C(shut down).
      type: str
    system_identifier:
      description: What all copies of one cluster have in common. A string, it does not fit into every JSON number.
      type: str
    timeline:
      description: The newest timeline the node knows of.
      type: int
    lsn:
      description: Last position written (primary), or replayed (standby), or of the last checkpoint (stopped).
      type: str
    receive_lsn:
      description: Last position received and flushed by a running standby.
      type: str
    start:
      description:
        - What Debian's C(start.conf) says, null without the file. V(auto) starts at boot, V(manual) by hand only.
        - V(disabled) cannot be started; that is how M(flotilla.django.postgresql_fence) leaves a member.
      type: str
    disk_free_bytes:
      description: Free space where the WAL is written. Null without data.
      type: int
    replay_paused:
      description: Whether somebody has paused the replay of a running standby.
      type: bool
    apply_delay_seconds:
      description: C(recovery_min_apply_delay), for which a standby waits before it replays a commit.
      type: int
    max_wal_senders:
      description: How many standbys and clones can be served.
      type: int
    max_replication_slots:
      description: How many slots there can be.
      type: int
    running_backups:
      description: Base backups and clones that are being taken from this node.
      type: int
    sessions:
      description: Sessions of clients, this module's own not among them.
      type: int
    oldest_transaction_seconds:
      description: Age of the oldest transaction of a client.
      type: int
    program_replaced:
      description: Whether the server runs an older program than is installed, because it was not restarted since.
      type: bool
    archiver:
      description: V(off), V(ok), or V(failing) when the last attempt to archive a WAL file failed.
      type: str
    checksums:
      description: Whether data checksums are on.
      type: bool
    upstream:
      description: What C(pg_stat_wal_receiver) says on a running standby, null when it does not receive.
      type: dict
      contains:
        status:
          description: V(streaming) when all is well.
          type: str
        host:
          description: Address of the sender.
          type: str
        port:
          description: Port of the sender.
          type: int
        slot:
          description: Slot used there.
          type: str
        timeline:
          description: Timeline being received.
          type: int
    downstreams:
      description: Who streams from this node.
      type: list
      elements: dict
      contains:
        name:
          description: Their C(application_name), which is the C(cluster_name) of a member.
          type: str
        address:
          description: Their address.
          type: str
        state:
          description: V(streaming) when all is well.
          type: str
        sync_state:
          description: V(async), V(potential), V(sync) or V(quorum).
          type: str
        replay_lsn:
          description: What they have replayed.
          type: str
        lag_bytes:
          description: How many bytes they have not replayed yet, seen from here.
          type: int
        silent_seconds:
          description: How long ago they last said what they have.
          type: int
    slots:
      description: Replication slots by name.
      type: dict
    synchronous_standby_names:
      description: The setting in force.
      type: str
    settings_pending_restart:
      description: Settings that were changed and need a restart.
      type: list
      elements: str
    settings_errors:
      description: Lines of the configuration files that the server refuses.
      type: list
      elements: str
    memory_bytes:
      description: Memory this host may use.
      type: int
    other_managers:
      description: Running programs that manage PostgreSQL themselves (Patroni, repmgr, pg_auto_failover).
      type: list
      elements: str
    other_versions:
      description: Other major versions whose cluster of this name holds data.
      type: list
      elements: str
peers:
  description: What the peers answered, by name.
  type: dict
  returned: success
  contains:
    state:
      description:
        - V(primary) or V(standby) as it said itself.
        - V(starting) when it starts up or shuts down.
        - V(rejected) when a server answered but did not let this host in.
        - V(unreachable) when nothing answered.
      type: str
    system_identifier:
      description: As of the node.
      type: str
    timeline:
      description: As of the node.
      type: int
    lsn:
      description: Position written or replayed.
      type: str
    error:
      description: What went wrong.
      type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_io as io


def argument_spec() -> dict[str, Any]:
    return {
        **io.cluster_options(),
        **io.server_options(),
        **io.peer_options(),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec=argument_spec(),
        supports_check_mode=True,
        required_together=[("replication_user", "replication_password")],
    )
    params = module.params
    cluster = io.cluster_from(params)
    try:
        io.check_peer_options(params)
        node = io.read_node(cluster)
        peers = io.ask_peers(params)
    except io.PostgresqlError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, node=node, peers=peers)


if __name__ == "__main__":
    main()
