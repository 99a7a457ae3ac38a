# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How the modules for PostgreSQL name a cluster, its server and its peers.

The argument specifications are cluster_options(), server_options() and peer_options() in _postgresql_io.
"""

from __future__ import annotations


class ModuleDocFragment:
    """See cluster_options(), server_options() and peer_options() in plugins/module_utils/_postgresql_io.py."""

    DOCUMENTATION = r"""
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
"""

    SERVER = r"""
options:
  port:
    description: TCP port, also part of the name of the local socket.
    type: int
    default: 5432
  socket_directory:
    description: Directory of the local socket.
    type: path
    default: /var/run/postgresql
"""

    PEERS = r"""
options:
  peers:
    description: The other members, asked over the network whether one of them is the primary.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the member.
        type: str
        required: true
      address:
        description: Where this host reaches it.
        type: str
        required: true
  replication_user:
    description: User for asking the peers.
    type: str
  replication_password:
    description: Its password.
    type: str
  peer_timeout:
    description: How long to wait for peers, in seconds. All are asked at the same time. libpq waits at least 2.
    type: int
    default: 3
  peer_tls:
    description:
      - Ask over TLS alone, and believe only a peer that proves to know the password at its own end of that connection
        (C(channel_binding=require)).
      - No authority's certificate is needed for that, so it works also while certificates are being replaced.
    type: bool
    default: false
"""
