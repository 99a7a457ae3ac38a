# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs ansible.builtin.user where the user is not there as wanted. See the module of the same name."""

from __future__ import annotations

import shlex
from typing import Any

from ansible.plugins.action import ActionBase

SHELL = "/usr/sbin/nologin"


class ActionModule(ActionBase):
    """All of the module: the shell tells what is there, and ansible.builtin.user does the rest."""

    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "name": {"type": "str", "required": True},
                "home": {"type": "path", "required": True},
            }
        )
        name, home = arguments["name"], arguments["home"]
        found = self._low_level_execute_command(f"getent passwd {shlex.quote(name)}")["stdout"].strip().split(":")
        if [found[0], *found[5:]] == [name, home, SHELL]:
            return {"changed": False}
        user = {"name": name, "home": home, "shell": SHELL, "system": True, "create_home": False}
        return self._execute_module(module_name="ansible.builtin.user", module_args=user, task_vars=task_vars)
