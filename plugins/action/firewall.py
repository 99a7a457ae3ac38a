# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Puts rules on trial, comes back by a fresh connection, and only then keeps them. See the module of the same name."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible_collections.flotilla.django.plugins.action.lean import ActionModule as Lean
from ansible_collections.flotilla.django.plugins.module_utils import _firewall_listing as listing

# Seconds, after the time of the trial, until the former rules admit a connection again.
GRACE = 30
PAUSE = 1.0


class ActionModule(Lean):
    """A first look, and both halves of the module."""

    def answer(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        if self._as_wanted(arguments):
            return {"changed": False, "missing": False, "to_close": False}
        result: dict[str, Any] = self.start(arguments, task_vars)
        trial = result.pop("trial", None)
        if result.get("failed") or trial is None:
            return result
        seconds = int(arguments.get("trial_seconds", 30))
        second = self._confirm({**arguments, "confirm": trial}, task_vars, time.monotonic() + seconds + GRACE)
        if second.get("failed"):
            result.update(failed=True, changed=False, msg=self._why(second, seconds))
        return result

    def _as_wanted(self, arguments: dict[str, Any]) -> bool:
        """Whether one command of the host's shell says that there is nothing to do, which is most of the time."""
        if arguments.get("state", "present") != "present":
            return False
        try:
            command = listing.command(arguments)
        except (ValueError, TypeError, KeyError, AttributeError):
            # What the module refuses, it refuses in its own words.
            return False
        return listing.nothing_to_do(arguments, self._low_level_execute_command(command)["stdout"])

    def _confirm(self, arguments: dict[str, Any], task_vars: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Try until the host says yes or no; the connection is made anew each time."""
        refused = ""
        while True:
            try:
                self._connection.reset()
                found: dict[str, Any] = self.start(arguments, task_vars)
            except AnsibleConnectionFailure as error:
                refused = str(error).strip().splitlines()[-1]
                if time.monotonic() > deadline:
                    return {"failed": True, "msg": "the host does not answer", "refused": refused}
                time.sleep(PAUSE)
            else:
                return {**found, "refused": refused}

    def _why(self, second: dict[str, Any], seconds: int) -> str:
        said = str(second.get("msg", "")).strip()
        if not second.get("refused") and not second.get("too_late"):
            return f"the new rules were not confirmed: {said}"
        return (
            f"firewall_admin_networks: with the new rules no fresh connection came through within {seconds} "
            f"seconds, so the host took them back ({said}). {second.get('refused', '')}".strip()
        )
