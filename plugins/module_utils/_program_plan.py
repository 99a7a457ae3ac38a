# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""A module of this collection as a program for a host's Python. Pure: no I/O, no Ansible.

Starting a module costs a host a quarter of a second of its processor, most of it for Ansible's own library, which
comes along and is compiled anew each time. Our modules want little of it: somebody who holds their parameters and
prints their result. So they come with a stand-in for that library, and their parameters are checked by the library
itself before they leave.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable
from typing import Any

PLUGINS = "ansible_collections.flotilla.django.plugins"
UTILS = f"{PLUGINS}.module_utils"
# from UTILS import _name, and from UTILS._name import something; also inside of functions. One name in a line.
IMPORT = re.compile(rf"^\s*from {re.escape(UTILS)}(?: import |\.)(_\w+)", re.MULTILINE)

STAND_IN = '''
import json
import sys


class AnsibleModule:
    """What our modules want of ansible.module_utils.basic."""

    def __init__(self, **specification):
        self.params, self.check_mode, self._diff = given["parameters"], given["check_mode"], given["diff"]
        self._warnings = []

    def warn(self, warning):
        self._warnings.append(warning)

    def exit_json(self, **result):
        if self._warnings:
            result["warnings"] = self._warnings
        print(json.dumps(result, default=list))
        sys.exit()

    def fail_json(self, msg, **result):
        self.exit_json(failed=True, msg=msg, **result)


given = {}
'''

# A file is compiled when it is imported, which not all are.
START = """
import base64, json, sys, zlib
from importlib import import_module
from importlib.machinery import ModuleSpec

given = json.loads(zlib.decompress(base64.b64decode({packed!r})))
files = given["files"]
packages = {{name.rsplit(".", count)[0] for name in files for count in range(1, name.count(".") + 1)}}


class Files:
    def find_spec(self, name, path=None, target=None):
        known = name in files or name in packages
        return ModuleSpec(name, self, is_package=name in packages) if known else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(files.get(module.__name__, ""), module.__name__, "exec"), module.__dict__)


sys.meta_path.insert(0, Files())
import_module("ansible.module_utils.basic").given = given
import_module(given["module"]).main()
"""


def files(module: str, read: Callable[[str], str]) -> dict[str, str]:
    """The content of a module's file and of all that it imports of this collection, by their names in Python.

    read gives the content for such a name.
    """
    found: dict[str, str] = {"ansible.module_utils.basic": STAND_IN}
    waiting = [f"{PLUGINS}.modules.{module}"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = read(name)
            waiting += [f"{UTILS}.{one}" for one in IMPORT.findall(found[name])]
    return found


def program(
    module: str, parameters: dict[str, Any], read: Callable[[str], str], check_mode: bool = False, diff: bool = False
) -> str:
    """A program that runs the module with these parameters, which nobody checks any more.

    It goes to the host's Python by standard input, because there may be secrets among the parameters.
    """
    given = {
        "module": f"{PLUGINS}.modules.{module}",
        "files": files(module, read),
        "parameters": parameters,
        "check_mode": check_mode,
        "diff": diff,
    }
    # The quickest level: the controller does this for each host and task.
    return START.format(packed=base64.b64encode(zlib.compress(json.dumps(given).encode(), 1)).decode())
