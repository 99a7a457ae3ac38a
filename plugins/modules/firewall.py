#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall
short_description: Put a table of nftables in force without locking anybody out
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Loads one table of the family C(inet) and keeps it in a file. No other table is touched.
  - Rules that do not admit the SSH connection by which Ansible is on the host are refused before anything is changed.
  - The kernel checks the rules (C(nft --check)) before they are loaded. Before that a timer of systemd is started that
    restores the former rules. Only a fresh connection, which the new rules admitted, stops it and keeps the rules.
    A run that is interrupted before that leaves the former rules behind, and the next run begins anew.
  - What is in force is compared, not what was written once. A table that was flushed or edited by hand is put right.
  - Also writes and enables the unit of systemd that loads the rules at boot, once they are kept.
attributes:
  check_mode:
    support: full
    description: Compares and checks, and loads nothing.
  diff_mode:
    support: full
    description: Shows the table as nftables lists it, before and after.
  idempotent:
    support: full
    description: A second run changes nothing.
  action:
    support: full
    description: Half of it runs on the controller, which makes the fresh connection.
options:
  state:
    description: V(absent) removes the table, what is on trial, the unit and the files.
    type: str
    choices: [present, absent]
    default: present
  table:
    description: Name of the table.
    type: str
    required: true
  path:
    description: The file in which the rules are kept, for the unit that loads them at boot.
    type: path
    required: true
  content:
    description:
      - The whole file. It must replace the table in one go, which takes the lines C(table inet NAME) and
        C(delete table inet NAME) before the table itself.
      - Needed with O(state=present).
    type: str
  rules:
    description: What O(content) lets through, as the filter P(flotilla.django.firewall_rules#filter) gives it.
    type: list
    elements: dict
    default: []
  keep_open:
    description:
      - Whether the openings of the file that is there stay open besides the new ones. So a cluster can first open what
        its new members need, and close what its former members needed when nobody uses that any more.
      - They are the lines of the chain C(openings).
    type: bool
    default: false
  trial_seconds:
    description: How long a fresh connection may take, before the former rules are restored.
    type: int
    default: 30
  boot_unit:
    description: The unit of systemd that loads O(path) at boot. It is enabled.
    type: str
    required: true
  boot_files:
    description: The unit's files, a dictionary from path to content.
    type: dict
    required: true
  confirm:
    description: Used by the action plugin. What the first half returned as RV(trial).
    type: str
notes:
  - Must run as root.
  - Over a connection that is not SSH there is nobody to lock out, and the rules are kept at once.
seealso:
  - module: flotilla.django.config_files
"""

EXAMPLES = r"""
- name: Put the rules in force
  flotilla.django.firewall:
    table: flotilla_firewall
    path: /etc/flotilla/firewall.nft
    content: "{{ lookup('ansible.builtin.template', 'firewall.nft.j2') }}"
    rules: "{{ rules }}"
    boot_unit: flotilla-firewall.service
    boot_files: "{{ boot_files }}"
  vars:
    boot_files:
      /etc/systemd/system/flotilla-firewall.service: "{{ lookup('ansible.builtin.template', 'firewall.service.j2') }}"

- name: Open everything again
  flotilla.django.firewall:
    state: absent
    table: flotilla_firewall
    path: /etc/flotilla/firewall.nft
    boot_unit: flotilla-firewall.service
    boot_files: "{{ boot_files }}"
"""

RETURN = r"""
to_close:
  description: Whether something is open only because of O(keep_open).
  type: bool
  returned: with O(state=present)
missing:
  description: Whether nftables is not installed. Then nothing was done, and the module has to run again.
  type: bool
  returned: with O(state=present)
trial:
  description: The connection by which the rules were put on trial; used by the action plugin.
  type: str
  returned: when the rules wait for a fresh connection
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _firewall_io as io
from ansible_collections.flotilla.django.plugins.module_utils import _firewall_plan as plan


def argument_spec() -> dict[str, Any]:
    return {
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "table": {"type": "str", "required": True},
        "path": {"type": "path", "required": True},
        "content": {"type": "str"},
        "rules": {"type": "list", "elements": "dict", "default": []},
        "keep_open": {"type": "bool", "default": False},
        "trial_seconds": {"type": "int", "default": 30},
        "boot_unit": {"type": "str", "required": True},
        "boot_files": {"type": "dict", "required": True},
        "confirm": {"type": "str"},
    }


class Refused(Exception):
    """What is not done, and why."""

    def __init__(self, message: str, **result: Any) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Wanted:
    """What the module is asked for."""

    table: str
    path: str
    content: str
    rules: list[dict[str, Any]]
    keep_open: bool
    seconds: int
    boot_unit: str
    boot_files: dict[str, str]
    check_mode: bool

    def answer(self, before: str | None, after: str | None, **result: Any) -> dict[str, Any]:
        if before != after:
            header = f"table inet {self.table}"
            result["diff"] = [
                {"before_header": header, "after_header": header, "before": before or "", "after": after or ""}
            ]
        return result


def absent(wanted: Wanted) -> dict[str, Any]:
    before = io.live(wanted.table) if io.installed() else None
    pending = io.installed() and io.pending()
    files = [path for path in (*wanted.boot_files, wanted.path) if Path(path).exists()]
    if not wanted.check_mode:
        if before is not None or pending:
            io.stop_timer()
            io.remove(wanted.table)
        if files:
            io.forget_at_boot(wanted.boot_unit, wanted.boot_files, wanted.path)
    return wanted.answer(before, None, changed=before is not None or pending or bool(files))


def confirm(wanted: Wanted, trial: str) -> dict[str, Any]:
    """The second half, over a fresh connection."""
    by = io.ssh_connection()
    if by is not None and by.token == trial:
        raise Refused(
            f"this is still the connection from {by.token}, which proves nothing: the SSH settings hold on to it. "
            "Nothing was confirmed, and the former rules come back"
        )
    text = io.read(str(io.CANDIDATE))
    if text is None or not io.pending():
        raise Refused("came too late", too_late=True)
    io.keep(wanted.path, text)
    if io.live(wanted.table) != io.listing(text, wanted.table):
        raise Refused("came too late", too_late=True)
    at_boot(wanted)
    return {"changed": True}


def at_boot(wanted: Wanted) -> bool:
    """See to it that the rules that are kept are loaded at boot. Whether something was to be done."""
    if io.loaded_at_boot(wanted.boot_unit, wanted.boot_files):
        return False
    if not wanted.check_mode:
        io.load_at_boot(wanted.boot_unit, wanted.boot_files)
    return True


def present(wanted: Wanted) -> dict[str, Any]:
    by = io.ssh_connection()
    problem = plan.lockout(wanted.rules, by) if by else None
    if problem:
        raise Refused(problem)
    kept = io.read(wanted.path)
    text = plan.union(kept, wanted.content) if kept and wanted.keep_open else wanted.content
    to_close = text != wanted.content
    if not io.installed():
        return wanted.answer(None, text, changed=wanted.check_mode, to_close=to_close, missing=True)
    io.check(text)
    before, after = io.live(wanted.table), io.listing(text, wanted.table)
    if before == after and not io.pending():
        if text != kept and not wanted.check_mode:
            io.keep(wanted.path, text)
        return wanted.answer(kept, text, changed=at_boot(wanted) or text != kept, to_close=to_close)
    found = wanted.answer(before, after, changed=True, to_close=to_close)
    if wanted.check_mode:
        return found
    io.begin(text, wanted.table, wanted.seconds)
    if by:
        return {**found, "trial": by.token}
    io.keep(wanted.path, text)
    at_boot(wanted)
    return found


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": argument_spec(),
        "supports_check_mode": True,
        "required_if": [("state", "present", ("content",))],
    }


def main() -> None:
    module = AnsibleModule(**specification())
    given = module.params
    wanted = Wanted(
        table=given["table"],
        path=given["path"],
        content=given["content"] or "",
        rules=given["rules"],
        keep_open=given["keep_open"],
        seconds=given["trial_seconds"],
        boot_unit=given["boot_unit"],
        boot_files=given["boot_files"],
        check_mode=module.check_mode,
    )
    try:
        if given["state"] == "absent":
            result = absent(wanted)
        elif given["confirm"] is not None:
            result = confirm(wanted, given["confirm"])
        else:
            result = {"missing": False, **present(wanted)}
    except Refused as error:
        module.fail_json(msg=str(error), **error.result)
    except (io.CommandFailed, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    if not module._diff:
        result.pop("diff", None)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
