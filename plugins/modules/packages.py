#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Install the Debian packages that are missing
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Asks dpkg with one command and runs M(ansible.builtin.apt) only where a package is missing. M(ansible.builtin.apt)
    by itself opens the database of all packages first, which takes a second of the host's processor each time.
  - What this run has found installed, or has installed, on the same host is not asked for again.
  - Packages come without those that Debian merely recommends, from a list of packages that is at most a day old.
attributes:
  check_mode:
    support: full
    description: That of M(ansible.builtin.apt).
  diff_mode:
    support: full
    description: That of M(ansible.builtin.apt).
  idempotent:
    support: full
    description: A second run changes nothing. A package that is there is not upgraded.
  action:
    support: full
    description: All of it.
options:
  name:
    description:
      - The packages. Nothing is done when it is empty.
      - What is more than a name (a version, a pattern, an architecture) is left to M(ansible.builtin.apt) each time.
    type: list
    elements: str
    required: true
  policy_rc_d:
    description:
      - As in M(ansible.builtin.apt), V(101) keeps a service from being started before it is configured.
      - Left to the host when not set.
    type: int
seealso:
  - module: ansible.builtin.apt
"""

EXAMPLES = r"""
- name: Install Redis
  flotilla.django.packages:
    name: [redis-server, redis-tools]
    policy_rc_d: 101
"""

RETURN = r"""
ansible_facts:
  description: The packages that this run knows to be installed. Not for a task that is delegated, nor in check mode.
  type: dict
  returned: when they are installed
stdout:
  description: What apt printed.
  type: str
  returned: when a package was missing
"""
