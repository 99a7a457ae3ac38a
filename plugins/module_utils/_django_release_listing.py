# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Whether a release is installed and none is too many, asked with the tools of a shell. Pure: no I/O, no Ansible."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _shell_plan as shell
from ansible_collections.flotilla.django.plugins.module_utils._django_release_plan import environment_of, is_release_id


def command(home: str, name: str) -> str:
    """The question: one line for sh."""
    releases = shlex.quote(f"{home}/releases")
    release = shlex.quote(f"{home}/releases/{name}")
    environments = shlex.quote(f"{home}/environments")
    return shell.command(
        f"ls -A {releases}",
        f"cd {releases} && ls -d */release.json",
        f"test -e {release}/venv/bin/python && cat {release}/release.json",
        f"cd {releases} && for link in */venv; do readlink $link; done",
        f"cd {environments} && {{ ls -A; ls -d */environment.json; }}",
    )


def installed(name: str, keep: int, answer: str) -> dict[str, Any] | None:
    """The release's own description when there is nothing to do, None when there is, or when that cannot be judged."""
    try:
        entries, marks, text, links, places = shell.answers(answer, 5)
        release = json.loads(text)
    except ValueError:
        return None
    found = set(entries.split())
    complete = {mark.removesuffix("/release.json") for mark in marks.split()}
    # Which ones go when there are more than `keep`, and what is left of an interrupted run, is the module's to say.
    if found != complete or len(found) > keep or not all(map(is_release_id, found)):
        return None
    # Each environment by its name, and by the mark that it is complete.
    shared = {environment_of(link) for link in links.split()} - {""}
    if set(places.split()) != shared | {f"{environment}/environment.json" for environment in shared}:
        return None
    return release if isinstance(release, dict) and release.get("id") == name else None
