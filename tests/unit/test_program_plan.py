# SPDX-License-Identifier: GPL-3.0-or-later
"""A module as a program for a host's Python: holds what it needs, runs without Ansible, says what a module says."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.loader import action_loader
from ansible_collections.flotilla.django.plugins.action import lean
from ansible_collections.flotilla.django.plugins.module_utils import _program_plan as plan

ROOT = Path(__file__).resolve().parents[2]
ROUTED = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["plugin_routing"]["modules"]
RESTING = [path.stem for path in sorted((ROOT / "plugins/action").glob("*.py")) if "(Lean)" in path.read_text("utf-8")]
MODULE = """
from ansible.module_utils.basic import AnsibleModule
from {utils}._b import double


class Quiet(AnsibleModule):
    def _log_invocation(self):
        pass


def main():
    module = Quiet(argument_spec={{}}, supports_check_mode=True)
    if module.params["number"] < 0:
        module.fail_json(msg="it's {{negative}} and ü", changed=False)
    if module.params["number"] > 100:
        module.warn("that is a lot")
    module.exit_json(changed=not module.check_mode, number=double(module.params["number"]), diff=module._diff)
"""
FILES = {
    f"{plan.PLUGINS}.modules.example": MODULE.format(utils=plan.UTILS),
    f"{plan.UTILS}._b": f"def double(number):\n    from {plan.UTILS} import _c as c\n    return number * c.TWO\n",
    f"{plan.UTILS}._c": "TWO = 2\n",
    f"{plan.UTILS}._d": "raise SystemExit('nobody asked for this')\n",
}


def run(program: str) -> Any:
    done = subprocess.run(["/usr/bin/python3", "-I", "-"], input=program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("number", "options", "result"),
    [
        (21, {}, {"changed": True, "number": 42, "diff": False}),
        (21, {"check_mode": True, "diff": True}, {"changed": False, "number": 42, "diff": True}),
        (101, {}, {"changed": True, "number": 202, "diff": False, "warnings": ["that is a lot"]}),
        (-1, {}, {"failed": True, "msg": "it's {negative} and ü", "changed": False}),
    ],
)
def test_it_says_what_the_module_says(number: int, options: dict[str, bool], result: dict[str, Any]) -> None:
    assert run(plan.program("example", {"number": number}, FILES.__getitem__, **options)) == result


def test_it_holds_what_is_imported_also_in_functions_and_nothing_else() -> None:
    assert list(plan.files("example", FILES.__getitem__)) == [
        "ansible.module_utils.basic",
        f"{plan.PLUGINS}.modules.example",
        f"{plan.UTILS}._b",
        f"{plan.UTILS}._c",
    ]


@pytest.mark.parametrize("module", [*ROUTED, *RESTING])
def test_each_module_that_is_run_so_is_complete_and_wants_no_more_than_there_is(module: str) -> None:
    files = plan.files(module, lean.source)
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ansible"):
                found = {node.module, *(f"{node.module}.{item.name}" for item in node.names)}
                assert found & set(files), f"{name} imports {node.module}"
    # Imported by a Python that has neither Ansible nor this collection.
    program = plan.program(module, {}, lean.source)
    assert program.count(".main()") == 1
    run(program.replace(".main()", "") + "\nprint(json.dumps('imported'))\n")


@pytest.mark.parametrize("module", [*ROUTED, *RESTING])
def test_what_the_action_reads_of_a_specification_is_there(module: str) -> None:
    rules = import_module(f"{plan.PLUGINS}.modules.{module}").specification()
    assert rules["supports_check_mode"] is True
    assert all("type" in option for option in rules["argument_spec"].values())


@pytest.mark.parametrize("module", ROUTED)
def test_who_is_routed_has_no_action_of_its_own(module: str) -> None:
    assert ROUTED[module] == {"action_plugin": "flotilla.django.lean"}
    assert (ROOT / f"plugins/modules/{module}.py").is_file()
    assert not (ROOT / f"plugins/action/{module}.py").exists()


def test_what_every_host_runs_is_compiled_before_each_of_them_gets_a_process() -> None:
    # Ansible asks for the action of a task's own name first, and makes the processes then.
    action = action_loader.get("flotilla.django.status_info", class_only=True)
    assert sys.modules[action.__module__].MODULE is import_module(f"{plan.PLUGINS}.modules.status_info")
