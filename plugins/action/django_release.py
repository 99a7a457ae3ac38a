# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asks the host with one command of its shell whether the release is there, and runs the module when it is not."""

from __future__ import annotations

from typing import Any

from ansible_collections.flotilla.django.plugins.action.lean import ActionModule as Lean
from ansible_collections.flotilla.django.plugins.module_utils import _django_release_listing as listing
from ansible_collections.flotilla.django.plugins.module_utils._django_release_plan import is_release_id

# As in the module's argument spec.
HOME = "/srv/django"
KEEP = 5


class ActionModule(Lean):
    """The first look; the rest is the module's."""

    def answer(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        home, name, keep = arguments.get("home", HOME), arguments.get("release_id"), arguments.get("keep", KEEP)
        if isinstance(home, str) and isinstance(name, str) and is_release_id(name) and str(keep).isdecimal():
            answer = self._low_level_execute_command(listing.command(home, name))["stdout"]
            release = listing.installed(name, int(keep), answer)
            if release is not None:
                return {
                    "changed": False,
                    "path": f"{home}/releases/{name}",
                    "release": release,
                    "installed": False,
                    "source": "",
                    "removed": [],
                    "durations": {},
                }
        return self.start(arguments, task_vars)
