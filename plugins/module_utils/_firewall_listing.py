# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Whether the rules are in force, kept and loaded at boot, asked with a shell's tools. Pure: no I/O, no Ansible."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _config_files_listing as files
from ansible_collections.flotilla.django.plugins.module_utils import _firewall_io as io
from ansible_collections.flotilla.django.plugins.module_utils._config_files_plan import Desired, parse

UNIT = "UnitFileState=enabled\nNeedDaemonReload=no\n"


def entries(arguments: Mapping[str, Any]) -> list[Desired]:
    """The files that are there when there is nothing to do; ValueError when these are no arguments."""
    contents = {arguments["path"]: arguments["content"], **arguments["boot_files"]}
    return parse([{"path": path, "content": content} for path, content in contents.items()])


def command(arguments: Mapping[str, Any]) -> str:
    """The question: one line for sh.

    As the module does, it lists the kept rules where they are in force, and in a network that nothing is connected to.
    """
    table = f"{io.NFT} --stateless list table inet {shlex.quote(arguments['table'])}"
    alone = (
        f"unshare --net -- sh -c {shlex.quote(f'{io.NFT} --file ' + shlex.quote(arguments['path']) + f' && {table}')}"
    )
    units = f"{io.ROLLBACK}.timer {io.ROLLBACK}.service"
    unit = f"systemctl show --property=UnitFileState,NeedDaemonReload -- {shlex.quote(arguments['boot_unit'])}"
    return (
        f'export LC_ALL=C.UTF-8; test "$({table} 2>/dev/null)" = "$({alone} 2>/dev/null || echo none)" '
        f'&& test "$({unit} | sort)" = "$(printf %s {shlex.quote(UNIT)} | sort)" '
        # It prints a line for each unit, and says with its status whether one of them is active.
        f"&& ! systemctl is-active {units} | grep --quiet --extended-regexp '^(active|activating)$' "
        f"&& {files.command(entries(arguments))}"
    )


def nothing_to_do(arguments: Mapping[str, Any], answer: str) -> bool:
    """Whether the host answered that the rules are as wanted, and nothing is on trial."""
    return files.nothing_to_do(entries(arguments), answer)
