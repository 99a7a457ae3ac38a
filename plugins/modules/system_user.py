#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: system_user
short_description: Create the user that a service runs as
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - A system user that nobody logs in as. Asks the host over the shell whether it has this user, and runs
    M(ansible.builtin.user) where it has not, or where home or shell differ.
attributes:
  check_mode:
    support: full
    description: That of M(ansible.builtin.user).
  diff_mode:
    support: none
    description: That of M(ansible.builtin.user).
  idempotent:
    support: full
    description: A second run changes nothing.
  action:
    support: full
    description: All of it.
options:
  name:
    description: Name of the user, and of its group.
    type: str
    required: true
  home:
    description: The home directory. It is not created.
    type: path
    required: true
seealso:
  - module: ansible.builtin.user
"""

EXAMPLES = r"""
- name: Create the service user
  flotilla.django.system_user:
    name: django
    home: /var/cache/django
"""

RETURN = r"""
uid:
  description: The number of the user.
  type: int
  returned: when it was created or changed
"""
