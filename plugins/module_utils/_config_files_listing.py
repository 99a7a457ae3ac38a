# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Whether a list of files is already as wanted, asked with the tools of a shell. Pure: no I/O, no Ansible.

The host lists what is there and answers with one checksum of that list. It is compared with the checksum of the list
that is wanted, so no content and no checksum of a secret leaves the host or is on a command line.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence

from ansible_collections.flotilla.django.plugins.module_utils._config_files_plan import Desired

# What stat prints before the mode, as in st_mode.
TYPE_BITS = {"file": 0o100000, "directory": 0o040000}
# Seconds. As long as the module itself lets a validation command run.
VALIDATE_TIMEOUT = 120
VALID = "valid"


def command(entries: Sequence[Desired], validate: Sequence[str] = ()) -> str:
    """The question: one line for sh. All tools are from coreutils, besides the validation commands."""
    seen = [entry.path for entry in entries if entry.state != "link"]
    parts = [
        # One call each, not one for each file. Without a path sha256sum would read its standard input.
        ("stat --format='%f %U %G %n' --", seen),
        ("sha256sum --", [entry.path for entry in entries if entry.state == "file"]),
        ("readlink --", [entry.path for entry in entries if entry.state == "link"]),
    ]
    asked = [f"{tool} {shlex.join(paths)}" for tool, paths in parts if paths]
    checks = [
        f"timeout {VALIDATE_TIMEOUT} {shlex.join(shlex.split(one))} </dev/null >/dev/null 2>&1" for one in validate
    ]
    listed = f"{{ {'; '.join([*asked, ':'])}; }} 2>/dev/null | sha256sum"
    return " && ".join([listed, *checks, f"echo {VALID}"])


def wanted(entries: Sequence[Desired]) -> str:
    """The list as it is when there is nothing to do. An owner given as a number or a link in place of a directory never
    comes out equal, and config_files itself looks at it.
    """
    lines = [
        f"{TYPE_BITS[entry.state] | (entry.mode or 0):x} {entry.owner} {entry.group} {entry.path}"
        for entry in entries
        if entry.state in TYPE_BITS
    ]
    lines += [f"{_sha256(entry.content or b'')}  {entry.path}" for entry in entries if entry.state == "file"]
    lines += [entry.target or "" for entry in entries if entry.state == "link"]
    return "".join(f"{line}\n" for line in lines)


def nothing_to_do(entries: Sequence[Desired], answer: str) -> bool:
    """Whether the host answered that all entries are as wanted and valid."""
    # The dash is the standard input that the checksum is of.
    return answer.split() == [_sha256(wanted(entries).encode("utf-8", "surrogateescape")), "-", VALID]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
