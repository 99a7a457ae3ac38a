# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Has the host's own Python read what the module of the same name reads. See that module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.flotilla.django.plugins.module_utils import _program_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils._status_host_plan import argument_spec

# Debian's: python3-psycopg belongs to it.
PYTHON = "/usr/bin/python3"


class ActionModule(ActionBase):
    """All of the module."""

    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(argument_spec=argument_spec())
        program = plan.program("_status_io", "answers", arguments, source)
        done = self._low_level_execute_command(f"{PYTHON} -I -", in_data=program.encode())
        if done["rc"]:
            return {"failed": True, "msg": f"{PYTHON} ended with {done['rc']}: {done['stderr'].strip()[-2000:]}"}
        return {"changed": False, "answers": json.loads(done["stdout"])}


def source(name: str) -> str:
    """The content of a file of module_utils."""
    return (Path(plan.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
