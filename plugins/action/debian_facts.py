# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads the release of the distribution over the shell. See the module of the same name."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.flotilla.django.plugins.module_utils import _debian_plan as plan


class ActionModule(ActionBase):
    """All of the module: one command of the shell."""

    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        self.validate_argument_spec(argument_spec={})
        return {"changed": False, "ansible_facts": plan.facts(self._low_level_execute_command(plan.COMMAND)["stdout"])}
