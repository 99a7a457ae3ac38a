# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""How a data directory becomes a standby. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Settings of the source that must not follow its data: this member's own come from its own files.
_OWN = re.compile(
    r"^\s*(primary_conninfo|primary_slot_name|recovery_\w+|restore_command|archive_cleanup_command)\b", re.IGNORECASE
)


def choose(data: str, running: bool, standby_signal: bool, methods: Sequence[str]) -> str:
    """Return the method: none (it is a standby already) or clone. Raises ValueError where data would be lost."""
    if data == "absent":
        if "clone" not in methods:
            raise ValueError("the data directory is empty and a clone is not among the allowed methods")
        return "clone"
    if data == "foreign":
        raise ValueError(
            "the data directory is not empty, but it is no complete cluster: nothing was touched, move it away"
        )
    if standby_signal:
        return "none"
    state = "runs as" if running else "holds"
    raise ValueError(
        f"the data directory {state} a primary: it is never overwritten. Bring a former primary back with "
        "playbooks/rejoin.yml, "
        "or move its data directory away"
    )


def auto_conf(content: str) -> str:
    """Return postgresql.auto.conf of a clone: that of its source, without what says whom the source followed."""
    return "".join(line for line in content.splitlines(keepends=True) if not _OWN.match(line))
