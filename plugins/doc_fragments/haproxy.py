# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How the modules for HAProxy reach a balancer. The argument specification is connection_options() in _haproxy_io."""

from __future__ import annotations


class ModuleDocFragment:
    """See plugins/module_utils/_haproxy_io.py."""

    DOCUMENTATION = r"""
options:
  sockets:
    description:
      - "The runtime API of each balancer: an absolute path, C(HOST:PORT) or C([IPV6]:PORT). All of them are one
        cluster."
    type: list
    elements: str
    default: [/run/haproxy/admin.sock]
  master_socket:
    description:
      - The socket of HAProxy's master process (option C(-S)) on this host, over which workers from before a reload are
        asked for their sessions. It is used with the unix sockets in O(sockets).
      - When it does not exist, RV(notes) say that these sessions were not counted. Empty means that they are not asked
        for.
    type: str
    default: /run/haproxy-master.sock
  connect_timeout:
    description: >-
      How long, in seconds, to try again when a socket is missing or nobody listens, because HAProxy may be restarting.
    type: float
    default: 5.0
"""
