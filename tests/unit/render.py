# SPDX-License-Identifier: GPL-3.0-or-later
"""Renders the roles' templates in this process, with Ansible's own engine, without a host.

A test says what it wants to vary, everything else is the role's own defaults::

    from render import evaluate, render

    text = render("haproxy", "haproxy.cfg.j2")                                  # three hosts per tier
    text = render("haproxy", "haproxy.cfg.j2", {"haproxy_algorithm": "leastconn"}, topology="plain")
    text = render("redis", "redis.conf.j2", host="cache2")                      # as seen by that host
    servers = evaluate("haproxy", "haproxy_django_servers", topology="single")  # any expression

``render(role, template, variables=None, topology="three", host=None, debian=13) -> str``
    ``template`` is a path below ``roles/<role>/templates``. ``variables`` win over everything, like ``-e``;
    they may hold templates. The text is what ``lookup('ansible.builtin.template', ...)`` gives the role:
    that very lookup is called. An undefined variable raises ``AnsibleUndefinedVariable``.
``evaluate(role, expression, variables=None, topology="three", host=None, debian=13, registered=True) -> Any``
    The value of a Jinja expression in the same context; or in that of a role of which no task has run.
``hosts(role, topology) -> list[str]``
    The hosts on which the role runs there.

Topologies are the inventories in ``tests/unit/inventories``: ``single`` (all tiers on one host), ``plain`` (a host
per tier, no replicas) and ``three`` (three hosts per tier); ``common.yml`` holds what a user must say in each. In
``alone`` the role runs by itself: there is no ``cluster_x`` and no topology, only what the role requires.

Variables are layered as in a play: the role's defaults, the inventory, ``playbooks/vars/topology.yml``, the facts
that ``site.yml`` gathers, the role's vars (``vars/main.yml``, ``vars/debian_<release>.yml``), the role's fixture,
``variables``. Nested values are resolved only when something reads them.

What a role's tasks would have registered before they render stands in ``tests/unit/fixtures/<role>.yml``::

    variables:                      # for all templates of the role
      __postgresql_info: {...}
    templates:                      # for one template, for example what is passed as `template_vars`
      process.service.j2: {process: {name: worker, command: celery worker}}
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TOPOLOGIES = ("alone", "single", "plain", "three")
# Roles that run on the hosts of another role's group.
GROUP_OF_ROLE = {"keepalived": "haproxy"}
RELEASES = {12: "bookworm", 13: "trixie"}


@cache
def _loader() -> DataLoader:
    loader = DataLoader()
    loader.set_basedir(str(ROOT))
    return loader


@cache
def _inventory(topology: str) -> tuple[InventoryManager, VariableManager]:
    if topology not in TOPOLOGIES:
        raise ValueError(f"topology {topology!r} is unknown; there are {', '.join(TOPOLOGIES)}")
    names = ("alone",) if topology == "alone" else ("common", topology)
    sources = [str(HERE / "inventories" / f"{name}.yml") for name in names]
    inventory = InventoryManager(loader=_loader(), sources=sources)
    return inventory, VariableManager(loader=_loader(), inventory=inventory)


@cache
def load(path: Path) -> dict[str, Any]:
    """A YAML file of the repository as Ansible reads it; empty when it does not exist. Nobody changes what is in it."""
    return (_loader().load_from_file(str(path), trusted_as_template=True) or {}) if path.exists() else {}


def _trust(value: Any) -> Any:
    """A test's own strings may be templates, as those of a playbook may."""
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: _trust(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_trust(item) for item in value]
    return value


def hosts(role: str, topology: str) -> list[str]:
    """The hosts of the topology on which the role runs: those of its group, or all for a role without one."""
    inventory, _ = _inventory(topology)
    group = inventory.groups.get(GROUP_OF_ROLE.get(role, role))
    return [host.name for host in (group.get_hosts() if group else inventory.get_hosts())]


def facts(debian: int) -> dict[str, Any]:
    """The facts of the `distribution` subset, which is all that site.yml gathers."""
    return {
        "distribution": "Debian",
        "distribution_major_version": str(debian),
        "distribution_release": RELEASES[debian],
        "distribution_version": str(debian),
        "os_family": "Debian",
    }


def role_variables(role: str, topology: str, host: str | None, debian: int = 13) -> dict[str, Any]:
    """Everything that the role's templates see on the host, unresolved."""
    directory = ROOT / "roles" / role
    if not directory.is_dir():
        raise ValueError(f"there is no role {role!r}")
    inventory, manager = _inventory(topology)
    name = host or hosts(role, topology)[0]
    known = inventory.get_host(name)
    if known is None:
        raise ValueError(f"there is no host {name!r} in the topology {topology!r}")
    gathered = facts(debian)
    return {
        **load(directory / "defaults" / "main.yml"),
        **manager.get_vars(host=known, include_hostvars=False),
        "hostvars": HostVars(inventory=inventory, variable_manager=manager, loader=_loader()),
        "playbook_dir": str(ROOT / "playbooks"),
        "ansible_play_hosts": [item.name for item in inventory.get_hosts()],
        "ansible_check_mode": False,
        **({} if topology == "alone" else load(ROOT / "playbooks" / "vars" / "topology.yml")),
        "ansible_facts": gathered,
        **load(directory / "vars" / "main.yml"),
        **load(directory / "vars" / f"debian_{debian}.yml"),
        "role_name": role,
        "role_path": str(directory),
        "ansible_search_path": [str(directory), str(ROOT / "playbooks")],
    }


def _templar(
    role: str,
    template: str | None,
    variables: dict[str, Any] | None,
    topology: str,
    host: str | None,
    debian: int,
    registered: bool = True,
) -> Templar:
    fixture = load(HERE / "fixtures" / f"{role}.yml") if registered else {}
    layered = {
        **role_variables(role, topology, host, debian),
        **(fixture.get("variables") or {}),
        **((fixture.get("templates") or {}).get(template) or {}),
        **_trust(variables or {}),
    }
    return Templar(loader=_loader(), variables=layered)


def evaluate(
    role: str,
    expression: str,
    variables: dict[str, Any] | None = None,
    topology: str = "three",
    host: str | None = None,
    debian: int = 13,
    registered: bool = True,
) -> Any:
    """
    The value of the expression, seen from the role on the host (the first of the role's group unless named).

    Without `registered` no task of the role has run yet, as when Ansible checks its arguments.
    """
    templar = _templar(role, None, variables, topology, host, debian, registered)
    return templar.template(trust_as_template("{{ " + expression + " }}"))


def render(
    role: str,
    template: str,
    variables: dict[str, Any] | None = None,
    topology: str = "three",
    host: str | None = None,
    debian: int = 13,
) -> str:
    """The text that the role would write on the host (the first of the role's group unless named)."""
    if not (ROOT / "roles" / role / "templates" / template).is_file():
        # The lookup would go on searching in other places.
        raise ValueError(f"the role {role!r} has no template {template!r}")
    templar = _templar(role, template, variables, topology, host, debian)
    text = templar.template(trust_as_template("{{ lookup('ansible.builtin.template', " + repr(template) + ") }}"))
    assert isinstance(text, str), f"{role}/{template} renders to {type(text).__name__}"
    return text
