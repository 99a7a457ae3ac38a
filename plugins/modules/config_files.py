#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: config_files
short_description: Write all configuration files of a role in one run
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Writes, links and removes a list of files and directories in the order in which they are listed.
  - A file is replaced by a rename, complete and with its owner and mode already right, after it was written to disk.
  - All or nothing. When one step or one of the commands in O(validate) fails, everything that this run changed is put
    back as it was (content, owner, group, mode; removed when it was new) and the module fails.
  - An unknown owner, a missing parent directory and the like are found before anything is written.
attributes:
  check_mode:
    support: full
    description: >-
      Predicts exactly what would change. Owners, groups and parent directories may be missing in check mode, because
      the package that brings them was not installed either. No validation command is run.
  diff_mode:
    support: full
    description: Shows content, owner, group and mode; of a file with O(files[].secret_content) only that it differs.
  idempotent:
    support: full
    description: A second run changes nothing.
  action:
    support: partial
    description: >-
      One command of the shell finds out whether there is anything to do; only then the module is started on the host.
options:
  files:
    description: The files, directories and links, in the order in which they are made.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description:
          - Absolute path.
          - A symbolic link found here is itself replaced by the file or link; nothing is ever written through a link.
            Only with O(files[].state=directory) a link that leads to a directory counts as that directory.
        type: str
        required: true
      state:
        description:
          - V(file) is a regular file with exactly the given content.
          - V(directory) is a directory. Its parent must exist or be listed before.
          - V(link) is a symbolic link to O(files[].target).
          - V(absent) removes a file, a link or an empty directory.
        type: str
        choices: [file, directory, absent, link]
        default: file
      content:
        description:
          - What is in the file, shown in diffs. No line end is added.
          - A file needs either this or O(files[].secret_content).
        type: str
      secret_content:
        description:
          - What is in the file, never shown in diffs, results, logs or error messages, and neither is what was in it
            before.
        type: str
      target:
        description: Where the link points. Needed with, and only with, O(files[].state=link).
        type: str
      owner:
        description: Name or number of the user that owns the file. Not used for links.
        type: str
        default: root
      group:
        description: Name or number of the group of the file. Not used for links.
        type: str
        default: root
      mode:
        description:
          - Four octal digits in quotes.
          - The default is V("0644") for files and V("0755") for directories.
        type: str
      validate:
        description:
          - Command that must accept the new content before the file is replaced, run without a shell and with C(%s)
            for the name of a temporary file in the same directory. Its name ends like that of the real file.
        type: str
  validate:
    description:
      - Commands that are run, without a shell, when all files are in place. When one ends with another status than 0
        all files are put back and the module fails with what the command printed.
      - They are run when nothing changed, too. A run that was killed between writing and validating leaves files that
        nobody has checked, and this finds them before a daemon is restarted.
    type: list
    elements: str
    default: []
notes:
  - C(changed_paths) is what M(flotilla.django.systemd_units) wants to have.
seealso:
  - module: flotilla.django.systemd_units
"""

EXAMPLES = r"""
- name: Write the configuration of the balancer
  flotilla.django.config_files:
    files:
      - path: /etc/haproxy/errors
        state: directory
      - path: /etc/haproxy/errors/503.http
        content: "{{ lookup('ansible.builtin.template', '503.http.j2') }}"
      - path: /etc/haproxy/haproxy.cfg
        content: "{{ lookup('ansible.builtin.template', 'haproxy.cfg.j2') }}"
        group: haproxy
        mode: "0640"
        validate: haproxy -c -f %s
      - path: /etc/haproxy/tls.pem
        secret_content: "{{ haproxy_tls_certificate ~ haproxy_tls_key }}"
        mode: "0600"
    validate:
      - haproxy -c -f /etc/haproxy/haproxy.cfg
  register: __haproxy_config
"""

RETURN = r"""
changed_paths:
  description: The paths that were changed, or would be in check mode, in the order of O(files).
  type: list
  elements: str
  returned: success
  sample: [/etc/haproxy/haproxy.cfg]
command:
  description: The validation command that refused the files.
  type: list
  elements: str
  returned: when a validation command failed
output:
  description: What the validation command printed, without words that occur in secret files.
  type: str
  returned: when a validation command failed
"""

import shlex
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _config_files_io as io
from ansible_collections.flotilla.django.plugins.module_utils._config_files_plan import (
    Action,
    Desired,
    parse,
    plan,
    scrub,
)


def argument_spec() -> dict[str, Any]:
    return {
        "files": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {
                "path": {"type": "str", "required": True},
                "state": {"type": "str", "choices": ["file", "directory", "absent", "link"], "default": "file"},
                "content": {"type": "str"},
                "secret_content": {"type": "str", "no_log": True},
                "target": {"type": "str"},
                "owner": {"type": "str", "default": "root"},
                "group": {"type": "str", "default": "root"},
                "mode": {"type": "str"},
                "validate": {"type": "str"},
            },
        },
        "validate": {"type": "list", "elements": "str", "default": []},
    }


def apply(actions: list[Action], validate: list[str]) -> None:
    """Do all of it, or leave everything as it was and raise."""
    transaction = io.Transaction()
    try:
        for action in actions:
            transaction.apply(action)
        transaction.finish()
        kept = "all files are as they were" if actions else "this run changed no file: what is on disk is refused"
        for command in validate:
            io.run(shlex.split(command), f"validation failed; {kept}")
    except BaseException as error:
        failures = transaction.put_back()
        if failures:
            raise OSError(f"{error}; not all files could be put back: {'; '.join(failures)}") from error
        raise


class QuietModule(AnsibleModule):
    """Keeps its arguments out of the host's journal, where Ansible does not recognise secrets of several lines."""

    def _log_invocation(self) -> None:
        pass


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": argument_spec(),
        "supports_check_mode": True,
    }


def main() -> None:
    module = QuietModule(**specification())
    entries: list[Desired] = []
    try:
        entries = parse(module.params["files"])
        observed = {entry.path: io.observe(entry.path) for entry in entries}
        actions = plan(entries, observed, io.look_up_names(entries, observed.values()), module.check_mode)
        if not module.check_mode:
            apply(actions, module.params["validate"])
    except io.CommandFailed as error:
        output = scrub(error.output, entries)
        status = "" if error.status is None else f" (exit status {error.status})"
        message = f"{error.what}: {shlex.join(error.command)}{status}: {output.strip()}"
        module.fail_json(msg=message, command=error.command, output=output)
    except (ValueError, OSError) as error:
        module.fail_json(msg=scrub(str(error), entries))
    result: dict[str, Any] = {"changed": bool(actions), "changed_paths": [action.path for action in actions]}
    if module._diff:
        result["diff"] = [diff for action in actions for diff in action.diff]
    module.exit_json(**result)


if __name__ == "__main__":
    main()
