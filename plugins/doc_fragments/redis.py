# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How the modules for Redis name the members of a tier, and what they want of its Sentinels.

The argument specifications are member_options() in _redis_io and sentinel_options() in _redis_sentinel_io.
"""

from __future__ import annotations


class ModuleDocFragment:
    """See member_options() in plugins/module_utils/_redis_io.py, sentinel_options() in _redis_sentinel_io.py."""

    DOCUMENTATION = r"""
options:
  members:
    description: All members of the tier, in the order of the inventory.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the member.
        type: str
        required: true
      address:
        description: IP address at which the others reach it.
        type: str
        required: true
  port:
    description: TCP port of Redis on every member.
    type: int
    default: 6379
  sentinel_port:
    description: TCP port of Sentinel on every member. 0 means that there is no Sentinel.
    type: int
    default: 0
  login_user:
    description: User of Redis, and of Sentinel where there is one.
    type: str
    required: true
  login_password:
    description: Its password.
    type: str
    required: true
  timeout:
    description: Seconds after which a member that has not answered counts as unreachable.
    type: float
    default: 2.0
  ca_file:
    description:
      - File with the certificate of the authority that signed those of all members. With it the members are asked over
        TLS and have to prove their addresses. Without it no TLS is spoken.
    type: path
  plain_too:
    description:
      - Ask members that do not speak TLS without it, and do without O(ca_file) where there is no such file. For the
        time in which TLS is being turned on or off.
    type: bool
    default: false
"""

    SENTINEL = r"""
options:
  sentinel:
    description: How the Sentinel of this host should be.
    type: dict
    suboptions:
      path:
        description: Its configuration file, which it rewrites itself. Only read.
        type: path
        required: true
      acl_path:
        description: File with the users that it should have. Users that are not in it are deleted.
        type: path
        required: true
      user:
        description: User with which Sentinels log in at Redis and at each other.
        type: str
        required: true
      password:
        description: Its password.
        type: str
        required: true
      down_after_ms:
        description: A member that has not answered for so many milliseconds counts as down.
        type: int
        default: 5000
"""
