# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""A program for a host's Python, made of files of this directory. Pure: no I/O, no Ansible.

Starting a module costs a host a quarter of a second of its processor, most of it for Ansible's own library, which comes along
and is compiled anew each time. What only reads can do without that library.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

PACKAGE = "ansible_collections.flotilla.django.plugins.module_utils"
# from PACKAGE import _name, and from PACKAGE._name import something; also inside of functions.
IMPORT = re.compile(rf"^\s*from {re.escape(PACKAGE)}(?: import |\.)(_\w+)", re.MULTILINE)

# The files are compiled when they are imported: a host needs those of its tiers.
START = """\
import base64, json, sys, zlib
from importlib.machinery import ModuleSpec

given = json.loads(zlib.decompress(base64.b64decode({packed!r})))


class Files:
    def find_spec(self, name, path=None, target=None):
        if f"{package}.".startswith(f"{{name}}."):
            return ModuleSpec(name, self, is_package=True)
        return ModuleSpec(name, self) if name in given["files"] else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        name = module.__name__
        exec(compile(given["files"].get(name, ""), name, "exec"), module.__dict__)


sys.meta_path.insert(0, Files())
from {package} import {file}

print(json.dumps({file}.{function}(given["parameters"])))
"""


def needed(file: str, read: Callable[[str], str]) -> dict[str, str]:
    """The content of a file of this directory and of all that it imports from here, by module name."""
    found: dict[str, str] = {}
    waiting = [file]
    while waiting:
        name = waiting.pop()
        if f"{PACKAGE}.{name}" not in found:
            found[f"{PACKAGE}.{name}"] = read(name)
            waiting += IMPORT.findall(found[f"{PACKAGE}.{name}"])
    return found


def program(file: str, function: str, parameters: Mapping[str, Any], read: Callable[[str], str]) -> str:
    """A program that calls the file's function with the parameters and prints in JSON what it returns.

    It goes to the host's Python by standard input: there may be secrets among the parameters.
    """
    given = {"files": needed(file, read), "parameters": parameters}
    packed = base64.b64encode(zlib.compress(json.dumps(given).encode())).decode()
    return START.format(packed=packed, package=PACKAGE, file=file, function=function)
