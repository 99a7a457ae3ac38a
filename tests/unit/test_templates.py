# SPDX-License-Identifier: GPL-3.0-or-later
"""Every template of every role renders for every topology, on every host of it, under both Debian releases.

Nothing is listed here: a template is tested from the moment it exists. Templates whose name starts with an underscore
are parts of others and render inside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from render import RELEASES, ROOT, TOPOLOGIES, evaluate, hosts, load, render


def _templates() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "roles").glob("*/templates/**/*.j2")):
        role = path.relative_to(ROOT / "roles").parts[0]
        yield role, str(path.relative_to(ROOT / "roles" / role / "templates"))


def _roles() -> list[str]:
    return sorted(path.parent.parent.name for path in (ROOT / "roles").glob("*/defaults/main.yml"))


TEMPLATES = list(_templates())
WHOLE = [(role, name) for role, name in TEMPLATES if not Path(name).name.startswith("_")]
PARTS = [(role, name) for role, name in TEMPLATES if Path(name).name.startswith("_")]


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(("role", "name"), WHOLE, ids=lambda value: str(value))
def test_template_renders(role: str, name: str, topology: str) -> None:
    for debian in RELEASES:
        for host in hosts(role, topology):
            text = render(role, name, topology=topology, host=host, debian=debian)
            assert text.strip(), f"{name} is empty on {host}"
            for leftover in ("{{", "{%", "{#", "AnsibleUndefined", "<generator object"):
                assert leftover not in text, f"{leftover} is left in {name} on {host}"


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("role", _roles())
def test_every_default_has_a_value(role: str, topology: str) -> None:
    for variable in load(ROOT / "roles" / role / "defaults" / "main.yml"):
        for host in hosts(role, topology):
            evaluate(role, variable, topology=topology, host=host)


@pytest.mark.parametrize(("role", "name"), WHOLE, ids=lambda value: str(value))
def test_template_says_who_wrote_it(role: str, name: str) -> None:
    lines = (ROOT / "roles" / role / "templates" / name).read_text(encoding="utf-8").splitlines()
    # A script's first line and a document's declaration have to stay first.
    start = 1 if lines and lines[0].startswith(("#!", "<!DOCTYPE", "HTTP/")) else 0
    assert "ansible_managed" in "\n".join(lines[start : start + 4]), f"roles/{role}/templates/{name}"


@pytest.mark.parametrize(("role", "name"), PARTS, ids=lambda value: str(value))
def test_part_is_included(role: str, name: str) -> None:
    others = [ROOT / "roles" / role / "templates" / other for _role, other in TEMPLATES if _role == role]
    assert any(Path(name).name in path.read_text(encoding="utf-8") for path in others), f"nothing includes {name}"
