# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who runs this playbook, and in which process."""

from __future__ import annotations

DOCUMENTATION = r"""
name: deploy_controller
short_description: Who runs this playbook, and in which process
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - The owner of a deploy's lock (M(flotilla.django.deploy_lock)), precise enough to tell later whether the process
    still lives. Each call makes a new C(id), so ask once.
options: {}
"""

EXAMPLES = r"""
- name: Say who deploys
  ansible.builtin.set_fact:
    deploy_owner: "{{ lookup('flotilla.django.deploy_controller') }}"
"""

RETURN = r"""
_raw:
  description:
    - A dictionary with a new C(id), made of the time and some random digits, C(began) (seconds since the epoch),
      C(user), C(host) (the controller's name), C(pid) of the ansible-playbook process and C(process_started), its
      start in clock ticks since boot.
  type: list
  elements: dict
"""

import getpass
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name of the program: state, parent ..."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()


def playbook_process() -> int:
    """The topmost process above this one that runs a playbook: tasks are templated in short-lived children of it."""
    found = pid = os.getpid()
    while pid > 1:
        if b"ansible-playbook" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found = pid
        pid = int(_stat(pid)[1])
    return found


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        pid = playbook_process()
        began = time.time()
        return [
            {
                "id": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(began)) + "-" + secrets.token_hex(2),
                "began": round(began, 1),
                "user": os.environ.get("SUDO_USER") or getpass.getuser(),
                "host": socket.gethostname(),
                "pid": pid,
                "process_started": int(_stat(pid)[19]),
            }
        ]
