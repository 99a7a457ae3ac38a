# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs ansible.builtin.apt when dpkg misses a package. See the module of the same name."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.flotilla.django.plugins.module_utils import _packages_plan as plan

# Seconds for which the list of packages is not asked for again.
CACHE_VALID = 86400
# The fact that holds what this run found installed, or installed itself.
KNOWN = "flotilla_packages"


class ActionModule(ActionBase):
    """All of the module: dpkg is asked over the shell, and apt does the rest."""

    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "name": {"type": "list", "elements": "str", "required": True},
                "policy_rc_d": {"type": "int"},
            }
        )
        names: list[str] = arguments["name"]
        # A delegated task has the facts of another host than the one it runs on.
        delegated = bool(self._task.delegate_to)
        known: list[str] = [] if delegated else (task_vars or {}).get("ansible_facts", {}).get(KNOWN, [])
        if plan.all_named(names, known):
            return {"changed": False}
        result: dict[str, Any] = {"changed": False}
        if plan.missing(names, self._low_level_execute_command(plan.command(names))["stdout"]):
            apt = {
                "name": names,
                "update_cache": True,
                "cache_valid_time": CACHE_VALID,
                "install_recommends": False,
                "policy_rc_d": arguments["policy_rc_d"],
            }
            result = self._execute_module(module_name="ansible.builtin.apt", module_args=apt, task_vars=task_vars)
            if result.get("failed") or self._task.check_mode:
                return result
        return result if delegated else {**result, "ansible_facts": {KNOWN: sorted({*known, *names})}}
