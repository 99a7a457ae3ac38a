# SPDX-License-Identifier: GPL-3.0-or-later
"""Every template of every role renders for every topology, on every host of it, under both Debian releases.

Nothing is listed here: a template is tested from the moment it exists. What other templates include, and no task names,
is a part, and renders inside them.
"""

from __future__ import annotations

import re
import subprocess
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


def _named_in(role: str, name: str, *globs: str) -> bool:
    """Whether one of the role's files speaks of the template."""
    found = [path for glob in globs for path in (ROOT / "roles" / role).glob(glob)]
    word = re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])")
    return any(word.search(path.read_text(encoding="utf-8")) for path in found)


TEMPLATES = list(_templates())
WHOLE = [item for item in TEMPLATES if _named_in(*item, "tasks/**/*.yml", "vars/*.yml", "defaults/*.yml")]
PARTS = [item for item in TEMPLATES if item not in WHOLE]


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
    """Also before a task of the role has run: with any --tags its arguments are checked, but not all tasks run."""
    for variable in load(ROOT / "roles" / role / "defaults" / "main.yml"):
        for host in hosts(role, topology):
            evaluate(role, variable, topology=topology, host=host)
            evaluate(role, variable, topology=topology, host=host, registered=False)


@pytest.mark.parametrize(("role", "name"), WHOLE, ids=lambda value: str(value))
def test_template_says_who_wrote_it(role: str, name: str) -> None:
    lines = (ROOT / "roles" / role / "templates" / name).read_text(encoding="utf-8").splitlines()
    # Further down in a script or a document, whose first line has to stay first. Where the format knows no comments, or
    # the daemon rewrites the file, the template says so at the top.
    excused = lines[0].startswith("{#") or "rewrites this file" in lines[0]
    assert "ansible_managed" in "\n".join(lines[:5]) or excused, f"roles/{role}/templates/{name}"


def test_every_template_is_used() -> None:
    unused = [item for item in PARTS if not _named_in(*item, "templates/**/*.j2")]
    assert not unused, "named by no task and included by no template"
    assert WHOLE


@pytest.mark.parametrize(("role", "name"), [item for item in WHOLE if item[1].endswith(".service.j2")])
def test_units_may_do_little(role: str, name: str, tmp_path: Path) -> None:
    """systemd's own measure of what a unit is exposed to: 0 to 10, and 3.0 at most. The threshold is in tenths."""
    unit = tmp_path / name.removesuffix(".j2")
    unit.write_text(render(role, name), encoding="utf-8")
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=30", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
