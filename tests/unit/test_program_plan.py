# SPDX-License-Identifier: GPL-3.0-or-later
"""A program for a host's Python: holds what it needs, and runs without Ansible."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.action import status_info
from ansible_collections.flotilla.django.plugins.module_utils import _program_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils import _status_io

FILES = {
    "_a": f"from {plan.PACKAGE}._b import double\n\ndef answer(params):\n    return double(params['number'])\n",
    "_b": f"def double(number):\n    from {plan.PACKAGE} import _c as other\n    return [number * 2, other.NAME]\n",
    "_c": "NAME = 'it\\'s {braces} and ü'\n",
    "_d": "raise SystemExit('nobody asked for this')\n",
}


def run(program: str) -> Any:
    done = subprocess.run(["/usr/bin/python3", "-I", "-"], input=program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_what_is_needed_is_what_is_imported_also_in_functions() -> None:
    assert [name.rpartition(".")[2] for name in plan.needed("_a", FILES.__getitem__)] == ["_a", "_b", "_c"]


def test_it_calls_the_function_and_prints_what_it_returns() -> None:
    assert run(plan.program("_a", "answer", {"number": 21}, FILES.__getitem__)) == [42, "it's {braces} and ü"]


def test_the_files_of_the_status_run_without_ansible_and_without_each_other() -> None:
    """Every reader is imported by a Python that has neither Ansible nor this collection."""
    parameters: dict[str, Any] = dict.fromkeys(_status_io.READERS)
    parameters |= {"units": [], "timeout": 5.0, "part_timeout": 4.5}
    parameters["nginx_static"] = {"address": "127.0.0.1", "port": 9, "health_path": "/", "timeout": 1.0}
    parameters["haproxy"] = {"socket": "/nowhere/socket", "master_socket": "/nowhere/master"}
    found = run(plan.program("_status_io", "answers", parameters, status_info.source))
    assert set(found) == {"host", "haproxy", "nginx_static"}
    assert "error" not in found["host"]
    assert "/nowhere/socket" in found["haproxy"]["error"]
    assert found["nginx_static"]["health"]["status"] == 0


@pytest.mark.parametrize("name", sorted(plan.needed("_status_io", status_info.source)))
def test_nothing_of_ansible_is_in_it(name: str) -> None:
    text = status_info.source(name.rpartition(".")[2])
    assert "ansible.module_utils" not in text and "import ansible\n" not in text
