# SPDX-License-Identifier: GPL-3.0-or-later
"""What must, and what must never, stand in the repository. Looked at: every file that Git knows or would add."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import yaml
from jinja2 import Environment
from jinja2.meta import find_undeclared_variables
from render import ROOT

LICENCE = "SPDX-License-Identifier: GPL-3.0-or-later"
LINK = "collections/ansible_collections/flotilla/django"


@cache
def listed() -> tuple[str, ...]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = tuple(sorted(name for name in output.split("\0") if name and (ROOT / name).is_file()))
    assert len(found) > 20
    return found


@cache
def texts() -> dict[str, str]:
    """The files that are text, without the licence."""
    result = {}
    for name in listed():
        data = (ROOT / name).read_bytes()
        if b"\0" not in data and name != "LICENSE":
            result[name] = data.decode("utf-8")
    return result


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts().items()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def shebang(name: str) -> str | None:
    first = texts().get(name, "").partition("\n")[0]
    return first if first.startswith("#!") else None


def is_ours(name: str) -> bool:
    """The example is somebody's Django project, which knows nothing of this collection."""
    return not name.startswith("examples/")


# The patterns are put together from parts, so that this file does not match itself.
@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"^\s*-----BEGIN [A-Z ]*PRIVATE" + " KEY-----$", id="private-key"),
        pytest.param(r"\$ANSIBLE" + r"_VAULT;", id="vault"),
        pytest.param(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b", id="cloud-key"),
        pytest.param(r"\b(gh[pousr]|glpat|xox[abp])[_-][0-9A-Za-z_-]{16,}", id="token"),
        pytest.param(r"\b(ssh-(rsa|ed25519)|ecdsa-sha2-\S+) AAAA[0-9A-Za-z+/]{40,}", id="ssh-key"),
        pytest.param(r"\beyJ[0-9A-Za-z_-]{20,}\.eyJ", id="json-web-token"),
    ],
)
def test_no_secret_is_committed(pattern: str) -> None:
    assert not lines_with(re.compile(pattern))


def test_no_password_in_a_url() -> None:
    found = lines_with(re.compile(r"://[^/\s:@{}<>$*'\"]+:(?!\*)[^/\s:@{}<>$'\"]+@"))
    assert not [line for line in found if not line.startswith("tests/")]


def test_inventories_hold_no_secret() -> None:
    """A secret is a lookup, a reference to the vault's variable, or a word that says to replace it."""
    wrong = []
    for name, text in texts().items():
        if not name.startswith("inventories/") or not name.endswith((".yml", ".yaml")):
            continue
        for key, value in re.findall(r"^\s*(\w*(?:password|secret_key|secret)):[ ]+(\S.*)$", text, re.MULTILINE):
            if "{{" not in value and not re.search(r"change|replace|^[>|]", value, re.IGNORECASE):
                wrong.append(f"{name}: {key}: {value}")
    assert not wrong


@pytest.mark.parametrize(
    "host",
    [
        "pypi" + ".org",
        "pythonhosted" + ".org",
        "galaxy.ansible" + ".com",
        "npmjs" + ".org",
        "docker" + ".io",
        "ghcr" + ".io",
        "quay" + ".io",
        "deb.debian" + ".org",
        "security.debian" + ".org",
    ],
)
def test_no_registry_is_named(host: str) -> None:
    """Where packages come from is the machine's own setting: mirrors, proxies and closed networks are common."""
    assert not lines_with(re.compile(re.escape(host)))


MACHINE_PATHS = ["/work" + "/", "/home" + "/[a-z]", "/opt/" + "wheels", "/opt/" + "pypi", "/tmp/" + "brief"]


@pytest.mark.parametrize("path", MACHINE_PATHS)
def test_no_path_of_a_machine_is_named(path: str) -> None:
    assert not lines_with(re.compile(rf"(?<![\w.{{}}*])(?<!\w/){path}"))


def test_the_link_to_itself_is_relative() -> None:
    assert str((ROOT / LINK).readlink()) == "../../.."
    mode = subprocess.run(["git", "ls-files", "-s", LINK], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert mode.startswith("120000 "), "collections/ must come with a plain clone"


def test_scripts_and_python_files_name_the_licence() -> None:
    ours = [name for name in texts() if is_ours(name) and texts()[name].strip()]
    found = [name for name in ours if name.endswith((".py", ".sh")) or shebang(name)]
    assert len(found) > 10
    assert not [name for name in found if LICENCE not in "\n".join(texts()[name].splitlines()[:4])]


def test_python_files_postpone_annotations() -> None:
    ours = [name for name in texts() if is_ours(name) and name.endswith(".py") and texts()[name].strip()]
    assert not [name for name in ours if "from __future__ import annotations" not in texts()[name]]


def test_scripts_are_executable() -> None:
    """What has a first line for the shell can be started; what a role copies gets its mode there."""
    wrong = []
    for name in texts():
        executable = os.access(ROOT / name, os.X_OK)
        # Ansible starts modules through the interpreter that it finds on the host.
        if not re.search(r"/(files|templates|modules)/", name) and executable != (shebang(name) is not None):
            wrong.append(name)
    assert not wrong


def test_text_files_end_well() -> None:
    wrong = [name for name, text in texts().items() if "\r" in text or (text and not text.endswith("\n"))]
    assert not wrong


def test_no_big_or_built_file() -> None:
    assert not [name for name in listed() if (ROOT / name).stat().st_size > 1024 * 1024]
    built = (".deb", ".gz", ".whl", ".pyc", ".log", ".pem", ".key", ".retry")
    assert not [name for name in listed() if name.endswith(built)]


MODULES = sorted(path.name for path in (ROOT / "plugins" / "modules").glob("*.py"))


def constants(body: Sequence[ast.stmt]) -> dict[str, str]:
    """The texts that statements give a name."""
    found: dict[str, str] = {}
    for node in body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Constant):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                found[target.id] = node.value.value
    return found


def fragment_options(name: str) -> set[str]:
    """The options that a documentation fragment of the collection, or a part of one (file.part), adds."""
    name, _dot, part = name.removeprefix("flotilla.django.").partition(".")
    file = ROOT / "plugins" / "doc_fragments" / f"{name}.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
    return set(yaml.safe_load(constants(body)[part.upper() or "DOCUMENTATION"])["options"])


@pytest.mark.parametrize("name", MODULES)
def test_module_is_documented(name: str) -> None:
    found = constants(ast.parse((ROOT / "plugins" / "modules" / name).read_text(encoding="utf-8")).body)
    assert {"DOCUMENTATION", "EXAMPLES", "RETURN"} <= found.keys()
    documentation = yaml.safe_load(found["DOCUMENTATION"])
    assert documentation["module"] == name.removesuffix(".py")
    for part in ("short_description", "description", "author", "attributes"):
        assert documentation.get(part), f"DOCUMENTATION has no {part}"
    examples = yaml.safe_load(found["EXAMPLES"])
    fqcn = f"flotilla.django.{documentation['module']}"
    assert any(fqcn in task for task in examples), f"no example calls {fqcn}"
    options = set(documentation.get("options", {}))
    options = options.union(*map(fragment_options, documentation.get("extends_documentation_fragment", [])))
    for task in examples:
        unknown = (task.get(fqcn) or {}).keys() - options
        assert not unknown, f"an example passes {unknown}"
    returned = yaml.safe_load(found["RETURN"])
    assert returned
    # With such a word, whatever it holds, Ansible takes a host for unreachable, or a task for failed or skipped.
    assert not {"unreachable", "failed", "skipped"} & returned.keys()


PLANS = sorted(path.name for path in (ROOT / "plugins" / "module_utils").glob("_*_plan.py"))


@pytest.mark.parametrize("name", PLANS)
def test_plan_is_pure(name: str) -> None:
    """Decisions import nothing that could look at the world, so that tables can test them."""
    tree = ast.parse((ROOT / "plugins" / "module_utils" / name).read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    outside = {"subprocess", "socket", "shutil", "tempfile", "urllib.request", "http.client", "time"}
    outside |= {"psycopg", "psycopg2"}
    assert not imported & outside
    assert not [module for module in imported if module.startswith("ansible.") or module.endswith("_io")]


def test_versions_agree() -> None:
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert galaxy["version"] == project["project"]["version"]
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text(encoding="utf-8"))
    assert runtime["requires_ansible"] == ">=2.19.0"


# Debian's packages are not among them: the release pins those.
PINNED = [path for path in sorted((ROOT / "requirements").glob("*.txt")) if not path.name.startswith("system-")]


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.name)
def test_python_requirements_are_pinned(path: Path) -> None:
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if line and not line.startswith("-r ") and "==" not in line]


def test_playbooks_can_be_called_by_name() -> None:
    names = [path.stem for path in (ROOT / "playbooks").glob("*.yml")]
    assert names
    assert not [name for name in names if not re.fullmatch(r"[a-z][a-z0-9_]*", name)]


# What Ansible knows when it looks for the hosts of a play: no host yet, so no variable of the inventory. The words of
# vars/topology.yml that are made of nothing else count, too.
KNOWN_TO_PATTERNS = {"groups", "scale_in_host", "ansible_limit", "cluster_monitors", "cluster_but"}


@pytest.mark.parametrize("path", sorted((ROOT / "playbooks").glob("*.yml")), ids=lambda path: path.stem)
def test_the_hosts_of_a_play_are_found_without_the_inventorys_variables(path: Path) -> None:
    """A variable of the inventory is undefined there, whatever it says: `default(false)` would hide that."""
    parser = Environment()
    parser.filters["flotilla.django.cluster_but"] = str
    patterns = [play["hosts"] for play in yaml.safe_load(path.read_text()) if "hosts" in play]
    topology = yaml.safe_load((ROOT / "playbooks/vars/topology.yml").read_text())
    patterns += [topology[name] for name in ("cluster_monitors", "cluster_but")]
    for pattern in patterns:
        assert find_undeclared_variables(parser.parse(pattern)) <= KNOWN_TO_PATTERNS, pattern


def variables_of_tasks(node: object) -> set[str]:
    """The names that `vars:` of tasks set, at any depth of a file of tasks."""
    if isinstance(node, list):
        return set().union(*map(variables_of_tasks, node))
    if not isinstance(node, dict):
        return set()
    return set(node.get("vars", {})).union(*map(variables_of_tasks, node.values()))


def test_no_task_sets_what_stands_above_the_variables_of_tasks() -> None:
    """What include_vars read would win, and the task's value be ignored without a word."""
    (read,) = yaml.safe_load((ROOT / "playbooks/tasks/deploy/settings.yml").read_text(encoding="utf-8"))
    files = [ROOT / "playbooks/tasks/deploy" / name for name in read["loop"]]
    names = set().union(*(yaml.safe_load(file.read_text(encoding="utf-8")) for file in files))
    assert {"__deploy_batch", "__silence_minutes", "__status_timeout"} <= names
    for path in (*(ROOT / "playbooks/tasks").rglob("*.yml"), *(ROOT / "roles").glob("*/tasks/*.yml")):
        assert not names & variables_of_tasks(yaml.safe_load(path.read_text(encoding="utf-8"))), path
