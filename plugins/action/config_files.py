# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asks the host with one command of its shell whether all files are as wanted, and runs the module when they are not.

To start a module costs a host several times as much as that command: most runs change nothing.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.flotilla.django.plugins.action.lean import ActionModule as Lean
from ansible_collections.flotilla.django.plugins.module_utils import _config_files_listing as listing
from ansible_collections.flotilla.django.plugins.module_utils._config_files_plan import parse


class ActionModule(Lean):
    """The first look; the rest is the module's."""

    def answer(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        if self._unchanged(arguments):
            return {"changed": False, "changed_paths": []}
        return self.start(arguments, task_vars)

    def _unchanged(self, arguments: dict[str, Any]) -> bool:
        try:
            entries = parse(arguments["files"])
            # Like the module: what is on disk is validated even when nothing changed, but not in check mode.
            command = listing.command(entries, () if self._task.check_mode else arguments.get("validate") or ())
        except (ValueError, TypeError, KeyError, AttributeError):
            # What the module refuses, it refuses in its own words.
            return False
        found = self._low_level_execute_command(command)
        return listing.nothing_to_do(entries, found["stdout"])
