# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prints the report of all hosts and fails when something is wrong. See the module of the same name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.flotilla.django.plugins.filter import cluster as inventory
from ansible_collections.flotilla.django.plugins.filter import status
from ansible_collections.flotilla.django.plugins.filter.deploy import deploy_is_dead
from ansible_collections.flotilla.django.plugins.module_utils import _status_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils import _status_table as table
from ansible_collections.flotilla.django.plugins.module_utils._scale_plan import without


class ActionModule(ActionBase):
    """All of the module: nothing is done on a host."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "seen": {"type": "str", "required": True},
                "format": {"type": "str", "choices": ["table", "json"], "default": "table"},
                "output": {"type": "str", "default": ""},
                "limits": {"type": "dict", "default": {}},
                "about": {"type": "list", "elements": "str"},
            }
        )
        variables = task_vars or {}
        hostvars = variables["hostvars"]
        try:
            limits = plan.limits_from(inventory.plain(arguments["limits"]))
        except ValueError as error:
            raise AnsibleActionFail(str(error)) from error
        groups = without(variables["groups"], str(variables.get("scale_in_host", "")))
        cluster = status.cluster_of(groups, hostvars, variables["ansible_play_hosts_all"])
        answers = status.answers_of(hostvars, cluster.asked, arguments["seen"])
        report = plan.report(cluster, answers, limits, time.time(), deploy_is_dead)
        if arguments["output"]:
            write(Path(arguments["output"]).expanduser(), table.as_json(report) + "\n")
        lines = [table.as_json(report)] if arguments["format"] == "json" else ["", *table.render(report)]
        for line in lines:
            Display().display(line)
        bad = plan.concerns(report, arguments["about"])
        return {"changed": False, "failed": bad, "msg": table.summary(report)}


def write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise AnsibleActionFail(
            f"status_output: got {str(path)!r}, wants a file that can be written: {error}"
        ) from error
