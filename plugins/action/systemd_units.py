# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asks the host with one command of its shell how the units are, and runs the module when there is something to do.

As with config_files: most runs change nothing, and starting a module costs more than asking.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.flotilla.django.plugins.action.lean import ActionModule as Lean
from ansible_collections.flotilla.django.plugins.module_utils import _systemd_units_listing as listing
from ansible_collections.flotilla.django.plugins.module_utils import _systemd_units_plan as plan

SWITCHES = ("enabled", "masked")


class ActionModule(Lean):
    """The first look; the rest is the module's."""

    def answer(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        units = self._as_wanted(arguments)
        if units is not None:
            return {"changed": False, "units": plan.report(units, []), "daemon_reloaded": False}
        return self.start(arguments, task_vars)

    def _as_wanted(self, arguments: dict[str, Any]) -> dict[str, plan.Unit] | None:
        """The units when nothing is to be done about them. What the module refuses, it refuses in its own words."""
        if arguments.get("changed_paths"):
            return None
        try:
            # A word such as "yes" is read as the module's argument spec reads it, which is not here.
            if any(type(unit.get(key)) not in (bool, type(None)) for unit in arguments["units"] for key in SWITCHES):
                return None
            wishes = plan.parse(arguments["units"])
            command = listing.command(wishes)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        if command is None:
            return None
        return listing.as_wanted(wishes, self._low_level_execute_command(command)["stdout"])
