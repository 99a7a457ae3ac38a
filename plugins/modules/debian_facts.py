#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: debian_facts
short_description: Read which release of Debian a host runs
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Three of the facts of M(ansible.builtin.setup), under the same names and for a tenth of its time. The host needs no
    Python for it.
attributes:
  check_mode:
    support: full
    description: Reads as always.
  diff_mode:
    support: none
    description: There is nothing to show.
  facts:
    support: full
    description: Returns them.
  idempotent:
    support: full
    description: Changes nothing.
  action:
    support: full
    description: All of it.
options: {}
seealso:
  - module: ansible.builtin.setup
"""

EXAMPLES = r"""
- name: Ask for the distribution
  flotilla.django.debian_facts:
"""

RETURN = r"""
ansible_facts:
  description: What the host says of itself. Empty where it does not.
  type: dict
  returned: always
  contains:
    distribution:
      description: The name, V(Debian) on Debian.
      type: str
    distribution_major_version:
      description: The release.
      type: str
    distribution_version:
      description: The point release on Debian, otherwise what C(/etc/os-release) has.
      type: str
  sample: {distribution: Debian, distribution_major_version: '13', distribution_version: '13.1'}
"""
