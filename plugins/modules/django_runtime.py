#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: django_runtime
short_description: Make a node run a staged release
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Makes C(current) point at a release that is already on the node, restarts the services that belong to it and waits
    until the deep health address answers with that release.
  - What is needed is read from the running system - the link, the directory each process runs in, when it was started
    and when its configuration changed. A run that was interrupted anywhere is finished by the next.
  - The services are stopped before the link moves and started after it, so no process sees two releases.
  - When the new release does not become healthy in O(start_timeout) seconds, the former release is put back and
    started, and the module fails with the last lines of the journal. Without a former one the services are stopped.
attributes:
  action:
    support: partial
    description: >-
      One command of the shell finds out whether there is anything to do; only then the module is started on the host.
  check_mode:
    support: full
    description: Tells whether, and why, something would be done. So a play finds the nodes that need activation.
  diff_mode:
    support: full
    description: Shows the release and the reasons.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  home:
    description: Directory that holds C(releases/), C(current) and C(previous).
    type: path
    default: /srv/django
  release:
    description: Id of the release to run, the name of its directory below C(releases/).
    type: str
    required: true
  units:
    description: The service units that run the release, the web service first.
    type: list
    elements: str
    required: true
  stray_units:
    description:
      - Pattern of unit files in C(/etc/systemd/system). Those that match, carry a section C([X-Flotilla]) and are not
        in O(units) are stopped and removed. Not set, nothing is removed.
    type: str
    default: ""
  restart_on:
    description: Files that the services read at their start. A unit started before one of them changed is restarted.
    type: list
    elements: path
    default: []
  health_address:
    description: Address the web service listens on.
    type: str
    required: true
  health_port:
    description: Port the web service listens on.
    type: int
    required: true
  health_path:
    description: Path of the deep health address.
    type: str
    default: /-/health/deep
  health_ca_file:
    description: File with the authority's certificate, where the web service speaks TLS. Empty is plain HTTP.
    type: str
    default: ""
  start_timeout:
    description: Seconds the release may take to become healthy.
    type: int
    default: 60
  previous:
    description:
      - The release that C(previous) points at after a switch. The default is the one that ran until then.
      - A way back after a failure names the one from before the deploy, because what failed is nothing to go back to.
    type: str
    default: ""
  warm_up_paths:
    description:
      - Paths of the site that are asked for when the release is healthy, before anybody else is served, so that the
        first visitors do not wait for what is loaded with the first request. Each is asked for twice for each worker
        process, all at the same time. An answer with 5xx is a failure.
    type: list
    elements: str
    default: []
  warm_up_host:
    description: Host name of these requests.
    type: str
    default: localhost
  journal_lines:
    description:
      - Number of lines of the journal in the message of a failure.
      - They are the last ones, or the last ones that end with an exception where the very last hold none, since a
        failing service is started again at once.
    type: int
    default: 30
"""

EXAMPLES = r"""
- name: Run the release
  flotilla.django.django_runtime:
    release: 2026-05-01-1a2b3c4
    units: [django.service, django-worker.service]
    stray_units: django-*.service
    restart_on: [/etc/django/environment]
    health_address: 192.0.2.11
    health_port: 8000
"""

RETURN = r"""
reasons:
  description: Why something was done, or would be in check mode.
  type: list
  elements: str
  returned: always
  sample: ["release 1 -> 2"]
activation:
  description: Whether a service was, or would be in check mode, interrupted.
  type: bool
  returned: success
release:
  description: The release the node runs now. After a failure the one it was put back to, empty when there was none.
  type: str
  returned: always
previous:
  description: The release C(previous) points at.
  type: str
  returned: success
former_previous:
  description: The release C(previous) pointed at when the module began.
  type: str
  returned: success
restarted:
  description: The units that were restarted, or would be in check mode.
  type: list
  elements: str
  returned: success
health:
  description: The answer of the deep health address.
  type: dict
  returned: when services were restarted
seconds:
  description: How long it took.
  type: float
  returned: success
journal:
  description: The last lines of the journal of the services.
  type: str
  returned: on failure to start
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils._django_runtime_io import Node, RuntimeFailure, run
from ansible_collections.flotilla.django.plugins.module_utils._django_runtime_plan import (
    Observed,
    Plan,
    make_plan,
    validate,
)


def activate(node: Node, plan: Plan, seen: Observed, params: dict[str, Any]) -> dict[str, Any]:
    """Carry the plan out and return the answer of the health address; puts the former release back on failure."""
    started = time.time()
    release, units = params["release"], params["units"]
    if plan.remove:
        node.remove_units(plan.remove)
    if plan.daemon_reload:
        run("systemctl", "daemon-reload")
    if not plan.restart:
        if plan.enable:
            run("systemctl", "enable", "--quiet", *plan.enable)
        return {}
    run("systemctl", "stop", *plan.restart)
    if plan.switch:
        node.switch("previous", params["previous"] or plan.previous)
        node.switch("current", release)
    run("systemctl", "daemon-reload")
    if plan.enable:
        run("systemctl", "enable", "--quiet", *plan.enable)
    address, port, path = params["health_address"], params["health_port"], params["health_path"]
    timeout = params["start_timeout"]
    try:
        run("systemctl", "reset-failed", *plan.restart, check=False)
        run("systemctl", "start", *plan.restart)
        health = node.wait_healthy(address, port, path, release, timeout)
        times = 2 * node.workers(units[0])
        node.warm_up(address, port, params["warm_up_host"], params["warm_up_paths"] * times, timeout)
        node.require_active(units)
        return health
    except RuntimeFailure as failure:
        journal = node.journal(units, params["journal_lines"], started)
        outcome, runs = f"The node stays with {release}.", release
        if plan.switch:
            outcome, runs = put_back(node, seen, params)
        # Said before the journal and after it: what stands last is what is still on the screen.
        reason = f"Release {release} does not run: {failure}"
        error = RuntimeFailure(f"{reason}. {outcome} Journal:\n{journal}\n{reason}")
        error.journal = journal  # type: ignore[attr-defined]
        error.release = runs  # type: ignore[attr-defined]
        raise error from failure


def put_back(node: Node, seen: Observed, params: dict[str, Any]) -> tuple[str, str]:
    """Undo a switch: what is said about it, and the release that runs now."""
    units, former = params["units"], seen.current
    run("systemctl", "stop", *units, check=False)
    node.switch("previous", seen.previous)
    if former not in seen.releases:
        node.switch("current", None)
        return "There was no release before it; the services are stopped.", ""
    node.switch("current", former)
    run("systemctl", "reset-failed", *units, check=False)
    try:
        run("systemctl", "start", *units)
        shallow = params["health_path"].removesuffix("/deep")
        node.wait_healthy(
            params["health_address"], params["health_port"], shallow, str(former), params["start_timeout"]
        )
    except RuntimeFailure as failure:
        return f"Release {former} was put back but does not run either: {failure}.", str(former)
    return f"Release {former} was put back and runs.", str(former)


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": {
            "home": {"type": "path", "default": "/srv/django"},
            "release": {"type": "str", "required": True},
            "units": {"type": "list", "elements": "str", "required": True},
            "stray_units": {"type": "str", "default": ""},
            "restart_on": {"type": "list", "elements": "path", "default": []},
            "health_address": {"type": "str", "required": True},
            "health_port": {"type": "int", "required": True},
            "health_path": {"type": "str", "default": "/-/health/deep"},
            "health_ca_file": {"type": "str", "default": ""},
            "start_timeout": {"type": "int", "default": 60},
            "previous": {"type": "str", "default": ""},
            "warm_up_paths": {"type": "list", "elements": "str", "default": []},
            "warm_up_host": {"type": "str", "default": "localhost"},
            "journal_lines": {"type": "int", "default": 30},
        },
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    params = module.params
    began = time.monotonic()
    reasons: list[str] = []
    try:
        validate(params["release"], params["units"], params["warm_up_paths"])
        node = Node(params["home"], params["stray_units"], ca_file=params["health_ca_file"])
        seen = node.observe(params["units"], params["restart_on"])
        plan = make_plan(params["release"], params["units"], params["restart_on"], seen)
        reasons = list(plan.reasons)
        if plan.switch and params["release"] not in seen.releases and not module.check_mode:
            raise ValueError(f"release {params['release']} is not in {params['home']}/releases")
        health = {} if module.check_mode else activate(node, plan, seen, params)
    except (ValueError, RuntimeFailure, OSError) as error:
        module.fail_json(
            msg=str(error),
            reasons=reasons,
            journal=getattr(error, "journal", ""),
            release=getattr(error, "release", ""),
        )
    module.exit_json(
        changed=plan.changed,
        activation=plan.interrupts,
        reasons=reasons,
        release=seen.current or "" if module.check_mode else params["release"],
        previous=(params["previous"] if plan.switch else "") or plan.previous or "",
        former_previous=seen.previous or "",
        restarted=list(plan.restart),
        health=health,
        seconds=round(time.monotonic() - began, 2),
        diff={
            "before": f"release {seen.current}\n",
            "after": f"release {params['release']}\n" + "".join(f"# {reason}\n" for reason in reasons),
        },
    )


if __name__ == "__main__":
    main()
