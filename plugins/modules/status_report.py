#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: status_report
short_description: Judge what all hosts said about themselves, and show it
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Runs on the controller alone. Takes what M(flotilla.django.status_info) found on each host of the play, says what is
    wrong and what to do about it, and fails when something is.
attributes:
  check_mode:
    support: full
    description: Shows as always, and writes O(output).
  diff_mode:
    support: none
    description: There is nothing to show.
  idempotent:
    support: full
    description: Changes nothing.
  action:
    support: full
    description: All of it.
options:
  seen:
    description: The name under which the results of M(flotilla.django.status_info) were registered.
    type: str
    required: true
  format:
    description:
      - V(table) prints a screen for people.
      - V(json) prints one line, the only one that begins with a brace.
    type: str
    choices: [table, json]
    default: table
  output:
    description:
      - A file on the controller into which the report is written as JSON, whatever O(format) is. It is replaced in one
        step.
      - Nothing is written when it is empty.
    type: str
    default: ''
  limits:
    description: From where on something is a problem. See C(playbooks/vars/status.yml).
    type: dict
    default: {}
  about:
    description:
      - Fail only for what is wrong with these hosts; everything is shown all the same.
      - Without it anything that is wrong counts.
    type: list
    elements: str
seealso:
  - module: flotilla.django.status_info
"""

EXAMPLES = r"""
- name: Say how the cluster is
  flotilla.django.status_report:
    seen: __status_seen
  run_once: true
"""

RETURN = r"""
msg:
  description: One sentence.
  type: str
  returned: always
  sample: "2 problems, see above: app2, db1"
"""
