# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs a module of this collection without bringing Ansible's library to the host. meta/runtime.yml says which ones.

See _program_plan.py for why, and how. What a module gets and returns is the same. It leaves no line of its own in the
host's journal, and cannot be run with `async`.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.errors import UnsupportedError
from ansible.plugins.action import ActionBase
from ansible_collections.flotilla.django.plugins.module_utils import _program_plan as plan

PYTHON = "/usr/bin/python3"
# How much nicer a module is than what answers requests on the same host (nice(2)). What it has systemd start is not.
BEHIND_REQUESTS = 10
ROOT = Path(__file__).resolve().parents[1]


def source(name: str) -> str:
    """The content of a file of this collection by the name under which it is imported."""
    return ROOT.joinpath(*name.removeprefix(f"{plan.PLUGINS}.").split(".")).with_suffix(".py").read_text("utf-8")


def words(error: Exception) -> str:
    """What is wrong with the arguments, as Ansible's library says it on a host."""
    return f"unsupported parameters: {error}" if isinstance(error, UnsupportedError) else str(error)


class ActionModule(ActionBase):
    """Takes the place of Ansible's own way to start a module."""

    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        return self.answer(dict(self._task.args), task_vars or {})

    def answer(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """The task's result. Actions that can do without the module look first."""
        return self.start(arguments, task_vars)

    def start(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """The module's result."""
        module = self._task.resolved_action.rpartition(".")[2]
        rules: dict[str, Any] = import_module(f"{plan.PLUGINS}.modules.{module}").specification()
        rules.pop("supports_check_mode")  # all do
        checked = ArgumentSpecValidator(**rules).validate(arguments)
        if checked.error_messages:
            return {"failed": True, "msg": f"{module}: {'; '.join(map(words, checked.errors))}"}
        for name, option in rules["argument_spec"].items():
            if option["type"] == "path" and name in arguments and checked.validated_parameters[name] != arguments[name]:
                # It was completed with what this machine has.
                return {"failed": True, "msg": f"{module}: {name}: {arguments[name]}: wants an absolute path"}
        program = plan.program(
            module, checked.validated_parameters, source, bool(self._task.check_mode), bool(self._task.diff)
        )
        python = str(self._templar.template(task_vars.get("ansible_python_interpreter", PYTHON)))
        command = f"nice -n {BEHIND_REQUESTS} {python if python.startswith('/') else PYTHON} -I -"
        environment = self._compute_environment_string()
        done = self._low_level_execute_command(f"{environment} {command}".strip(), in_data=program.encode())
        try:
            result = json.loads(done["stdout"])
        except ValueError:
            said = (done["stderr"] or done["stdout"]).strip()[-4000:]
            result = {"failed": True, "msg": f"{module} ended with {done['rc']} and no result: {said}"}
        # A module says no secret; should one slip into a message, it goes no further.
        cleaned: dict[str, Any] = remove_values(result, checked._no_log_values)
        return cleaned
