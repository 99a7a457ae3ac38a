# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles keep the conventions of CONTRIBUTING.md: what they document, how they name things, what they may look at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import pytest
import yaml
from render import ROOT

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
SECRET = re.compile(r"(password|secret|secret_key|token|tls_key|private_key)$")
# Set by Ansible itself; everything else that starts like this is an injected fact or the inventory's affair.
ANSIBLE = {
    "ansible_check_mode",
    "ansible_diff_mode",
    "ansible_facts",
    "ansible_managed",
    "ansible_play_batch",
    "ansible_play_hosts",
    "ansible_play_hosts_all",
    "ansible_python_interpreter",
    "ansible_run_tags",
}


class _Anything(dict[str, Any]):
    """Every filter and test exists: only variables are looked for."""

    def get(self, key: str, default: Any = None) -> Any:
        return str


JINJA = jinja2.Environment(extensions=["jinja2.ext.do", "jinja2.ext.loopcontrols"])
JINJA.filters = JINJA.tests = _Anything()
# Keywords whose value is an expression without braces.
BARE = {"when", "failed_when", "changed_when", "until", "that", "var"}

pytestmark = pytest.mark.parametrize("role", ROLES)


@cache
def load(role: str, path: str) -> Any:
    """A YAML file of the role; None when it does not exist."""
    file = ROOT / "roles" / role / path
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None


def defaults(role: str) -> dict[str, Any]:
    return load(role, "defaults/main.yml") or {}


def entry_points(role: str) -> dict[str, Any]:
    return dict(load(role, "meta/argument_specs.yml")["argument_specs"])


def options(role: str) -> dict[str, Any]:
    return entry_points(role)["main"].get("options") or {}


def public(role: str) -> set[str]:
    return {*defaults(role), *(name for spec in entry_points(role).values() for name in spec.get("options") or {})}


def is_static(value: Any) -> bool:
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, dict):
        return all(map(is_static, [*value, *value.values()]))
    return all(map(is_static, value)) if isinstance(value, list) else True


def files(role: str, *globs: str) -> list[Path]:
    return sorted(path for glob in globs for path in (ROOT / "roles" / role).glob(glob) if path.is_file())


def walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of a YAML document with the key it stands under."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from walk(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from walk(item, key)
    else:
        yield key, value


def names(source: str) -> set[str]:
    """The variables that a template takes from outside."""
    return jinja2.meta.find_undeclared_variables(JINJA.parse(source))


def names_in_yaml(path: Path) -> set[str]:
    found: set[str] = set()
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        for key, value in walk(document):
            if isinstance(value, str):
                bare = key in BARE and "{{" not in value and "{%" not in value
                found |= names("{{ " + value + " }}" if bare else value)
    return found


@cache
def used(role: str, where: str) -> dict[str, set[str]]:
    """Variable -> the files of the role that read it. `where` is a part of the role."""
    globs = {
        "defaults": ["defaults/*.yml"],
        "work": ["tasks/**/*.yml", "handlers/**/*.yml", "vars/**/*.yml", "templates/**/*.j2"],
    }[where]
    result: dict[str, set[str]] = {}
    for path in files(role, *globs):
        read = names_in_yaml(path) if path.suffix == ".yml" else names(path.read_text(encoding="utf-8"))
        for name in read:
            result.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return result


@cache
def made(role: str) -> set[str]:
    """Variables that the role's tasks make: registered, set, looped over, or handed to an included file."""
    found: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                look(item)
        elif isinstance(value, dict):
            if isinstance(value.get("register"), str):
                found.add(value["register"])
            for key in ("vars", "set_fact", "ansible.builtin.set_fact"):
                if isinstance(value.get(key), dict):
                    found.update(value[key])
            control = value.get("loop_control")
            if isinstance(control, dict):
                found.update(str(control[key]) for key in ("loop_var", "index_var") if key in control)
            for item in value.values():
                look(item)

    for path in files(role, "tasks/**/*.yml", "handlers/**/*.yml"):
        look(yaml.safe_load(path.read_text(encoding="utf-8")))
    return found


def constants(role: str) -> set[str]:
    found: set[str] = set()
    for path in files(role, "vars/**/*.yml"):
        found.update(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    return found


def test_role_is_whole(role: str) -> None:
    missing = [
        path
        for path in ("README.md", "defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml")
        if not (ROOT / "roles" / role / path).exists()
    ]
    assert not missing


def test_defaults_and_specs_name_the_same_variables(role: str) -> None:
    undocumented = defaults(role).keys() - options(role).keys()
    assert not undocumented, "not in meta/argument_specs.yml"
    required = {name for name, spec in options(role).items() if spec.get("required")}
    assert not options(role).keys() - defaults(role).keys() - required, "neither required nor in defaults/main.yml"
    assert not required & defaults(role).keys(), "required, and yet in defaults/main.yml"


def test_spec_defaults_equal_the_defaults(role: str) -> None:
    wrong = {}
    for name, spec in options(role).items():
        if spec.get("required"):
            if "default" in spec:
                wrong[name] = "required, and yet has a default"
        elif is_static(defaults(role).get(name)):
            actual = defaults(role).get(name)
            if "default" not in spec:
                wrong[name] = f"no default in the spec, defaults/main.yml has {actual!r}"
            elif spec["default"] != actual or type(spec["default"]) is not type(actual):
                wrong[name] = f"the spec says {spec['default']!r}, defaults/main.yml has {actual!r}"
        elif "default" in spec:
            wrong[name] = "computed in defaults/main.yml: say how in the description, not in `default`"
    assert not wrong


def test_every_option_is_described(role: str) -> None:
    wrong = []

    def look(where: str, found: dict[str, Any]) -> None:
        for name, spec in found.items():
            if not spec.get("description") or not spec.get("type"):
                wrong.append(f"{where}{name} lacks a description or a type")
            if spec.get("type") == "list" and "elements" not in spec:
                wrong.append(f"{where}{name} is a list without elements")
            if spec.get("type") in ("str", "raw") and SECRET.search(name):
                if spec.get("no_log") is not True:
                    wrong.append(f"{where}{name} is a secret without no_log")
                if "choices" in spec:
                    wrong.append(f"{where}{name} is a secret with choices: a failed check prints it")
            look(f"{where}{name}.", spec.get("options") or {})

    for point, spec in entry_points(role).items():
        if not spec.get("short_description"):
            wrong.append(f"{point} lacks a short_description")
        look(f"{point}: ", spec.get("options") or {})
    assert not wrong


def test_secrets_have_no_default(role: str) -> None:
    literal = {
        name: value
        for name, value in defaults(role).items()
        if SECRET.search(name) and isinstance(value, str) and value and is_static(value)
    }
    assert not literal


def test_public_names_start_with_the_role(role: str) -> None:
    public = defaults(role).keys() | {
        name for spec in entry_points(role).values() for name in spec.get("options") or {}
    }
    assert not {name for name in public if not name.startswith(f"{role}_")}


def test_internal_names_start_with_two_underscores(role: str) -> None:
    internal = constants(role) | made(role)
    assert not {name for name in internal if not name.startswith(f"__{role}_") and name not in defaults(role)}


def test_readme_names_every_public_variable(role: str) -> None:
    text = (ROOT / "roles" / role / "README.md").read_text(encoding="utf-8")
    assert not {name for name in public(role) if not re.search(rf"\b{name}\b", text)}
    stale = set(re.findall(rf"`({role}_[a-z0-9_]+)`", text)) - public(role)
    modules = {path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")}
    groups = {path.name for path in (ROOT / "roles").iterdir()}
    assert not stale - modules - groups, "the README speaks of variables that do not exist"


def test_every_default_is_used(role: str) -> None:
    read = used(role, "work").keys() | used(role, "defaults").keys()
    # Also by name, as in lookup('vars', ...) or a spec that is handed on.
    assert not defaults(role).keys() - read


# hostvars is not only the inventory: it also holds what the other hosts of the play have just found out. That no member
# of a database cluster holds data can be known from all of them only, so this one file reads that, by their names.
FINDINGS_OF_THE_PLAY = {"hostvars": {"roles/postgresql/vars/main.yml"}}


def test_topology_enters_by_parameters(role: str) -> None:
    everything = {**used(role, "work"), **used(role, "defaults")}
    found = {
        name: places
        for name in ("groups", "hostvars", "group_names", "play_hosts")
        if (places := everything.get(name, set()) - FINDINGS_OF_THE_PLAY.get(name, set()))
    }
    assert not found, "roles know no inventory: playbooks/vars/topology.yml does"


def test_cluster_variables_are_read_in_the_defaults_only(role: str) -> None:
    assert not {name: where for name, where in used(role, "work").items() if name.startswith("cluster_")}


def test_no_role_reads_the_variables_of_another(role: str) -> None:
    others = tuple(f"{prefix}{other}_" for other in ROLES if other != role for prefix in ("", "__"))
    everything = {**used(role, "work"), **used(role, "defaults")}
    own = (f"{role}_", f"__{role}_")
    assert not {
        name: where for name, where in everything.items() if name.startswith(others) and not name.startswith(own)
    }


def test_no_injected_facts(role: str) -> None:
    found = {name: where for name, where in used(role, "work").items() if name.startswith("ansible_")}
    assert not {name: where for name, where in found.items() if name not in ANSIBLE}


def test_every_variable_comes_from_somewhere(role: str) -> None:
    known = public(role) | constants(role) | made(role)
    prefixes = (f"{role}_", f"__{role}_")
    assert not {
        name: where for name, where in used(role, "work").items() if name.startswith(prefixes) and name not in known
    }
