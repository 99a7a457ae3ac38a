# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""In check mode, asks the host with one command of its shell what it runs, and the module where that is to change."""

from __future__ import annotations

from typing import Any

from ansible_collections.flotilla.django.plugins.action.lean import ActionModule as Lean
from ansible_collections.flotilla.django.plugins.module_utils import _django_runtime_listing as listing
from ansible_collections.flotilla.django.plugins.module_utils._django_runtime_plan import make_plan, validate

# As in the module's argument spec.
HOME = "/srv/django"


class ActionModule(Lean):
    """The first look; the rest is the module's."""

    def answer(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        # Outside of check mode somebody has found something to do already.
        seen = self._as_wanted(arguments) if self._task.check_mode else None
        return seen or self.start(arguments, task_vars)

    def _as_wanted(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """What the module returns when nothing is to be done. What it refuses, it refuses in its own words."""
        try:
            home, release, units = str(arguments.get("home", HOME)), str(arguments["release"]), list(arguments["units"])
            restart_on = list(arguments.get("restart_on") or ())
            validate(release, units, arguments.get("warm_up_paths") or ())
            command = listing.command(home, units, restart_on, arguments.get("stray_units") or "")
            answer = self._low_level_execute_command(command)["stdout"]
            seen = listing.read(home, units, restart_on, answer)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return None
        plan = make_plan(release, units, [str(path) for path in restart_on], seen)
        if plan.changed or plan.reasons:
            return None
        return {
            "changed": False,
            "activation": False,
            "reasons": [],
            "release": seen.current or "",
            "previous": plan.previous or "",
            "former_previous": seen.previous or "",
            "restarted": [],
            "health": {},
            "seconds": 0.0,
        }
