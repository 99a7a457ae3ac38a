# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs the module of the same name as lean.py does, with less work for the controller.

Ansible loads the action that has a task's own name before it makes a process for each host, and lean.py only in those.
So the module, whose options each of them checks, is compiled once here, and not once for each host.
"""

from __future__ import annotations

from ansible_collections.flotilla.django.plugins.action.lean import ActionModule as Lean
from ansible_collections.flotilla.django.plugins.modules import status_info

MODULE = status_info


class ActionModule(Lean):
    """Nothing of its own: what counts is when it is loaded."""
