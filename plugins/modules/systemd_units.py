#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: systemd_units
short_description: Bring all systemd units of a role to their state in one run
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Enables, starts, stops, restarts and reloads a list of units, in the order in which they are listed.
  - Takes the place of handlers. A unit is restarted or reloaded when a file that it depends on changed after the unit
    was last started or reloaded. That is read from the running system, so a run that was interrupted between writing
    a file and restarting the daemon is finished by the next run.
  - Reads the unit files again (daemon-reload) when systemd says that they changed on disk, when a unit is not known
    yet, or when a unit file is among O(changed_paths).
  - A unit that was started, restarted or reloaded must be active and stay so for O(settle) seconds. One that was
    started and says by itself when that is done (C(Type=notify)), or has then ended its work (C(Type=oneshot)), need
    not be watched.
  - First everything is enabled, disabled and masked, then everything is started and stopped.
attributes:
  check_mode:
    support: full
    description: >-
      Predicts from O(changed_paths) and the times of the files. A unit that does not exist yet would be started.
  diff_mode:
    support: full
    description: Shows each step and its reason.
  idempotent:
    support: full
    description: A second run changes nothing.
  action:
    support: partial
    description: >-
      One command of the shell finds out whether there is anything to do; only then the module is started on the host.
options:
  units:
    description: The units, in the order in which they are handled.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: >-
          Name of the unit; C(.service) is added when it has no suffix. Instances of templates work, templates don't.
        type: str
        required: true
      enabled:
        description: Whether the unit starts at boot. Left alone when not set.
        type: bool
      state:
        description:
          - Whether the unit runs. The default is V(started), or V(stopped) for a unit with O(units[].masked=true).
          - A unit of type oneshot needs C(RemainAfterExit=yes) to be V(started), because systemd forgets that it ran
            otherwise.
        type: str
        choices: [started, stopped]
      masked:
        description: Whether the unit is masked, so that nothing can start it. Left alone when not set.
        type: bool
      restart_on:
        description:
          - Absolute paths; the unit is restarted when one of them changed (content, owner or mode) after the unit
            started.
          - A directory stands for itself and everything in it, a glob for what it matches. A symbolic link counts by
            itself and not by what it points to, so that switching a link restarts the unit.
          - Don't name files here that the daemon itself writes.
        type: list
        elements: str
        default: []
      reload_on:
        description:
          - Like O(units[].restart_on), but the unit is reloaded. A restart makes the reload unnecessary.
          - A unit that cannot be reloaded is restarted instead. A reload that failed is tried again by the next run.
        type: list
        elements: str
        default: []
  changed_paths:
    description:
      - The paths that this play changed, as returned by M(flotilla.django.config_files). They count also where the
        time of a file cannot tell (a removed file, check mode).
    type: list
    elements: str
    default: []
  settle:
    description:
      - How long, in seconds, a unit must stay active after it was started, restarted or reloaded.
      - Services of the types notify, notify-reload, dbus and oneshot, and units that are no services, are watched only
        after a reload.
    type: float
    default: 1.0
  timeout:
    description: How long, in seconds, to wait until a unit is active after systemd says that it was started.
    type: float
    default: 30.0
seealso:
  - module: flotilla.django.config_files
"""

EXAMPLES = r"""
- name: Run the balancer
  flotilla.django.systemd_units:
    units:
      - name: haproxy.service
        enabled: true
        restart_on:
          - /etc/systemd/system/haproxy.service.d
        reload_on:
          - /etc/haproxy/haproxy.cfg
          - /etc/haproxy/certs/*.pem
    changed_paths: "{{ __haproxy_config['changed_paths'] }}"

- name: Keep a unit of the distribution from ever running
  flotilla.django.systemd_units:
    units:
      - name: redis-server.service
        masked: true
"""

RETURN = r"""
units:
  description: What was done to each unit and how it is now. Also returned on failure.
  type: dict
  returned: always
  contains:
    actions:
      description: The steps, such as V(enable), V(start), V(restart) or V(reload), in their order.
      type: list
      elements: str
    reasons:
      description: Why, one for each action.
      type: list
      elements: str
    active_state:
      description: The state as systemd calls it, such as V(active).
      type: str
    sub_state:
      description: The state in more detail, such as V(running).
      type: str
    file_state:
      description: Whether it starts at boot, as systemd calls it, such as V(enabled).
      type: str
  sample:
    haproxy.service:
      actions: [reload]
      reasons: [/etc/haproxy/haproxy.cfg was changed]
      active_state: active
      sub_state: running
      file_state: enabled
daemon_reloaded:
  description: Whether systemd read the unit files again (or would have, in check mode). This alone is no change.
  type: bool
  returned: always
failed_unit:
  description: The unit that failed.
  type: str
  returned: when a unit failed
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _systemd_units_io as io
from ansible_collections.flotilla.django.plugins.module_utils._systemd_units_plan import (
    Step,
    Unit,
    Wish,
    calls,
    parse,
    plan,
    report,
    wants_daemon_reload,
)


def argument_spec() -> dict[str, Any]:
    paths: dict[str, Any] = {"type": "list", "elements": "str", "default": []}
    return {
        "units": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {
                "name": {"type": "str", "required": True},
                "enabled": {"type": "bool"},
                "state": {"type": "str", "choices": ["started", "stopped"]},
                "masked": {"type": "bool"},
                "restart_on": paths,
                "reload_on": paths,
            },
        },
        "changed_paths": paths,
        "settle": {"type": "float", "default": 1.0},
        "timeout": {"type": "float", "default": 30.0},
    }


def execute(steps: Sequence[Step], units: Mapping[str, Unit]) -> None:
    """One call of systemctl; UnitFailed with the unit's own words when it fails."""
    step, unit = steps[0], units[steps[0].unit]
    if step.verb in ("start", "restart") and unit.active_state == "failed":
        # Otherwise a unit that failed too often stays refused although its configuration is right now.
        io.systemctl("reset-failed", "--", step.unit)
    try:
        io.systemctl(step.verb, "--", *[one.unit for one in steps])
    except io.SystemctlFailed as error:
        if step.verb not in ("start", "restart", "reload", "stop"):
            raise
        raise io.failure(io.show([step.unit])[step.unit], f"failed to {step.verb}") from error


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": argument_spec(),
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    changed_paths: list[str] = module.params["changed_paths"]
    units: dict[str, Unit] = {}
    done: list[Step] = []
    daemon_reloaded = False
    try:
        wishes: list[Wish] = parse(module.params["units"])
        names = [wish.name for wish in wishes]
        units = io.show(names)
        daemon_reloaded = wants_daemon_reload(units.values(), changed_paths)
        if daemon_reloaded and not module.check_mode:
            io.systemctl("daemon-reload")
            units = io.show(names)
        steps = plan(wishes, units, io.look_at_paths(wishes, changed_paths), module.check_mode)
        if module.check_mode:
            done = steps
        else:
            for together in calls(steps):
                done.extend(together)
                execute(together, units)
            brought_up = [step.unit for step in steps if step.verb in ("start", "restart", "reload")]
            reloaded = [step.unit for step in steps if step.verb == "reload"]
            io.wait_until_settled(brought_up, module.params["settle"], module.params["timeout"], reloaded)
            if steps:
                units = io.show(names)
    except io.UnitFailed as error:
        units[error.unit.name] = error.unit
        module.fail_json(
            msg=str(error),
            failed_unit=error.unit.name,
            units=report(units, done),
            daemon_reloaded=daemon_reloaded,
            changed=bool(done),
        )
    except (ValueError, io.SystemctlFailed) as error:
        module.fail_json(msg=str(error), units=report(units, done), daemon_reloaded=daemon_reloaded, changed=bool(done))
    result: dict[str, Any] = {
        "changed": bool(done),
        "units": report(units, done),
        "daemon_reloaded": daemon_reloaded,
    }
    if module._diff:
        result["diff"] = [
            {
                "before_header": step.unit,
                "after_header": step.unit,
                "before": "",
                "after": f"{step.verb}: {step.reason}\n",
            }
            for step in done
        ]
    module.exit_json(**result)


if __name__ == "__main__":
    main()
