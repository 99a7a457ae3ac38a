#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: static_releases
short_description: Publish the static files of releases on a static server
version_added: 0.1.0
author:
  - The Flotilla maintainers (@flotilla)
description:
  - Unpacks every pack C(<release>-static.tar.gz) in C(releases) below O(root) that is not published yet into
    C(files), the tree that Nginx serves.
  - Adds files and never empties or truncates one. A file comes in complete under another name and is renamed, so a
    request meets the old content or the new one. A file whose content is the same already is not touched.
  - The files of earlier releases stay until O(keep) leaves their release out.
  - A file that two releases have under the same name with another content (a name without a hash) is served as the
    release with the newest pack has it, on all servers and in whatever order the packs arrived. Compressed siblings
    of the replaced content go.
  - Published files that are gone or have another size are restored when the pack is still there.
  - A pack is read to its end before anything of it is written. Members outside C(static/), C(..), absolute paths,
    links and devices are refused.
attributes:
  check_mode:
    support: full
    description: >-
      Reads the packs and predicts each file. Packs that would be fetched from peers are named; their content is not
      known.
  diff_mode:
    support: full
    description: Lists the files that come, change and go.
  idempotent:
    support: full
    description: A second run changes nothing and reads no pack.
options:
  root:
    description: Directory of the static server, with C(files), C(releases) and C(manifests) in it.
    type: path
    default: /srv/static
  packs:
    description:
      - Packs that must be there. The module fails before anything is published when one is missing or has another
        hash.
      - Other packs in the directory are published all the same.
    type: list
    elements: dict
    default: []
    suboptions:
      release_id:
        description: Name of the release.
        type: str
        required: true
      file:
        description: File name of its static pack, C(<release_id>-static.tar.gz).
        type: str
        required: true
      sha256:
        description: Hash of the pack, 64 hexadecimal digits. Not checked when left out.
        type: str
  peers:
    description:
      - Internal addresses of the other static servers, such as V(http://192.0.2.52:8081). Packs that they have and
        this server lacks are fetched first, of both kinds, so that a server that was replaced or was away holds the
        same as the others.
      - A peer that does not answer is a warning, not a failure.
    type: list
    elements: str
    default: []
  keep:
    description:
      - Releases to keep. The files that only other releases have are removed, with the packs of those releases.
      - The release in O(current) and the one with the newest pack are kept in any case. Nothing is removed when this
        is left out.
    type: list
    elements: str
  current:
    description: The release that is in use.
    type: str
    default: ""
  prove:
    description:
      - Address at which the web server serves the tree, such as V(http://192.0.2.51:8080/static/). It is asked for
        every file of the releases that were published in this run and of the newest one (HEAD), and the module fails
        when it does not give one out with its size. Empty asks nothing.
    type: str
    default: ""
  timeout:
    description: How long to wait for a peer, or for the web server, in seconds.
    type: float
    default: 10.0
seealso:
  - module: flotilla.django.config_files
"""

EXAMPLES = r"""
- name: Publish the static files before the first node switches
  flotilla.django.static_releases:
    packs:
      - release_id: v1.4.0-3f9a61c0d2be
        file: v1.4.0-3f9a61c0d2be-static.tar.gz
        sha256: 6a09e667f3bcc908b2fb1366ea957d3e3adec17512775099da2f590b0667322a

- name: Remove what only old releases need, after the last node has switched
  flotilla.django.static_releases:
    keep: [v1.4.0-3f9a61c0d2be, v1.3.2-90b1c2d3e4f5]
    current: v1.4.0-3f9a61c0d2be
"""

RETURN = r"""
published:
  description: The releases that were published or restored, oldest first.
  type: list
  elements: str
  returned: success
releases:
  description: All releases whose files are served now, oldest first.
  type: list
  elements: str
  returned: success
added:
  description: Number of files that came.
  type: int
  returned: success
replaced:
  description: Number of files whose content changed under the same name.
  type: int
  returned: success
removed:
  description: Number of files that went.
  type: int
  returned: success
pruned:
  description: The releases that were removed.
  type: list
  elements: str
  returned: success
proven:
  description: The releases whose files the web server was asked for.
  type: list
  elements: str
  returned: success
fetched:
  description: The packs that were fetched from peers.
  type: list
  elements: str
  returned: success
"""

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.flotilla.django.plugins.module_utils import _static_releases_plan as plans
from ansible_collections.flotilla.django.plugins.module_utils._static_releases_io import StaticError, Store


@dataclass
class Outcome:
    """What a run did, or would do."""

    fetched: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    releases: list[str] = field(default_factory=list)
    proven: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"added": 0, "replaced": 0, "removed": 0})
    changed: bool = False

    def note(self, verb: str, sign: str, names: list[str]) -> None:
        self.counts[verb] += len(names)
        self.lines += [f"{sign} {name}" for name in names]


def argument_spec() -> dict[str, Any]:
    return {
        "root": {"type": "path", "default": "/srv/static"},
        "packs": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "release_id": {"type": "str", "required": True},
                "file": {"type": "str", "required": True},
                "sha256": {"type": "str"},
            },
        },
        "peers": {"type": "list", "elements": "str", "default": []},
        "keep": {"type": "list", "elements": "str"},
        "current": {"type": "str", "default": ""},
        "prove": {"type": "str", "default": ""},
        "timeout": {"type": "float", "default": 10.0},
    }


def fetch_all(store: Store, params: dict[str, Any], outcome: Outcome, *, check: bool) -> None:
    wanted = None
    if params["keep"] is not None:
        named = [pack["release_id"] for pack in params["packs"]]
        wanted = {*params["keep"], *named, params["current"]}
    for peer in params["peers"]:
        try:
            names = store.fetch(peer, wanted, timeout=params["timeout"], pretend=check)
        except StaticError as error:
            outcome.warnings.append(str(error))
            continue
        outcome.fetched += [name for name in names if name not in outcome.fetched]


def publish_all(
    store: Store, params: dict[str, Any], outcome: Outcome, again: Collection[str] = (), *, check: bool
) -> dict[str, plans.Manifest]:
    """Publish what is there, oldest pack first, and those of ``again`` anew; return all manifests."""
    vouched = plans.check_packs(params["packs"])
    manifests = store.read_manifests()
    packs = {name: pack for name in store.transfers() if (pack := store.pack(name))}
    for name, wanted in vouched.items():
        if name not in packs:
            if name in outcome.fetched and check:
                continue
            raise StaticError(f"{name} is not in {store.releases}")
        if wanted["sha256"] and not _known(packs[name], manifests, wanted["sha256"]):
            packs[name] = store.with_hash(packs[name])
            if packs[name].sha256 != wanted["sha256"]:
                raise StaticError(
                    f"{name}: its sha256 is {packs[name].sha256}, wanted {wanted['sha256']}; nothing was published"
                )
    drifted = store.drifted(manifests.values())
    for pack in sorted(packs.values(), key=lambda item: item.age):
        known = manifests.get(pack.release_id)
        if known and not plans.is_published(pack, known):
            pack = store.with_hash(pack)
        if plans.is_published(pack, known) and pack.release_id not in drifted and pack.release_id not in again:
            continue
        manifests[pack.release_id] = _publish(store, pack, manifests, outcome, check=check)
        drifted.pop(pack.release_id, None)
    for release_id, paths in drifted.items():
        outcome.warnings.append(
            f"files of {release_id} are gone or damaged ({len(paths)}, for example {paths[0]}), and so is its pack"
        )
    return manifests


def _known(pack: plans.Pack, manifests: dict[str, plans.Manifest], sha256: str) -> bool:
    """Spare reading a pack that was checked when it was published and was not touched since."""
    manifest = manifests.get(pack.release_id)
    return bool(manifest and plans.is_published(pack, manifest) and manifest.pack.sha256 == sha256)


def _publish(
    store: Store, pack: plans.Pack, manifests: dict[str, plans.Manifest], outcome: Outcome, *, check: bool
) -> plans.Manifest:
    with (store.releases / pack.file).open("rb") as stream:
        # The opened file is what is hashed, read and unpacked, whatever is put in its place meanwhile.
        status = os.fstat(stream.fileno())
        if (status.st_size, status.st_mtime_ns) != (pack.size, pack.mtime_ns):
            raise StaticError(f"{pack.file} was replaced during the run; run again")
        if not pack.sha256:
            pack = store.with_hash(pack)
        members = store.inspect(stream, pack.file)
        files = {path: member.info for path, member in members.items()}
        publication = plans.publish(pack, files, store.present(members), manifests.values())
        before = manifests.get(pack.release_id)
        # What an earlier pack of the same name brought is still this release's: so it is removed with it one day.
        manifest = plans.Manifest(pack, {**_left(store, before), **files})
        if not check:
            store.write(stream, pack, members, publication)
            store.write_manifest(manifest)
    outcome.published.append(pack.release_id)
    outcome.note("added", "+", publication.added)
    outcome.note("replaced", "~", publication.replaced)
    outcome.note("removed", "-", publication.stale)
    outcome.changed = True
    return manifest


def _left(store: Store, before: plans.Manifest | None) -> dict[str, plans.Info]:
    return {path: info for path, info in before.files.items() if (store.files / path).is_file()} if before else {}


def prove(store: Store, params: dict[str, Any], manifests: dict[str, plans.Manifest], outcome: Outcome) -> None:
    """Ask the web server for what was published, before somebody's browser does."""
    outcome.proven = [name for name in outcome.releases if name in outcome.published or name == outcome.releases[-1]]
    # A name without a hash has the content of the release with the newest pack.
    served = {path: info for path, (_release, info) in plans.expected(manifests.values()).items()}
    wanted = {path: served[path] for name in outcome.proven for path in manifests[name].files if path in served}
    wrong = store.unserved(params["prove"], wanted, timeout=params["timeout"])
    if wrong:
        raise StaticError(
            f"{params['prove']} does not serve {len(wrong)} of {len(wanted)} files of {', '.join(outcome.proven)}: "
            + "; ".join(wrong[:5])
        )


def run(store: Store, params: dict[str, Any], *, check: bool) -> Outcome:
    outcome = Outcome()
    if not check:
        store.clean()
    fetch_all(store, params, outcome, check=check)
    manifests = publish_all(store, params, outcome, check=check)
    if params["keep"] is not None:
        pruning = plans.prune(params["keep"], params["current"], manifests.values(), store.transfers())
        if not check:
            store.remove(pruning)
            if pruning.restore:
                publish_all(store, params, outcome, pruning.restore, check=check)
        outcome.pruned = pruning.releases
        outcome.note("removed", "-", pruning.files)
        outcome.lines += [f"- releases/{name}" for name in pruning.packs]
        outcome.changed |= bool(pruning.releases or pruning.packs)
        manifests = {name: item for name, item in manifests.items() if name not in pruning.releases}
    if manifests and not store.health.is_file():
        if not check:
            store.write_health()
        outcome.changed = True
    outcome.lines = [f"+ releases/{name}" for name in outcome.fetched] + outcome.lines
    outcome.changed |= bool(outcome.fetched)
    outcome.releases = [item.release_id for item in sorted(manifests.values(), key=lambda item: item.pack.age)]
    if params["prove"] and manifests and not check:
        prove(store, params, manifests, outcome)
    return outcome


def specification() -> dict[str, Any]:
    """What AnsibleModule is told."""
    return {
        "argument_spec": argument_spec(),
        "supports_check_mode": True,
    }


def main() -> None:
    module = AnsibleModule(**specification())
    store = Store(Path(module.params["root"]))
    os.umask(0o022)
    try:
        plans.check_packs(module.params["packs"])
        plans.check_release_ids([*(module.params["keep"] or []), *filter(None, [module.params["current"]])], "keep")
        if not store.exists():
            if not module.check_mode:
                raise StaticError(f"{store.root} has no files, releases and manifests: run the role nginx_static first")
            outcome = Outcome()
        else:
            with store.locked():
                outcome = run(store, module.params, check=module.check_mode)
    except (StaticError, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    for warning in outcome.warnings:
        module.warn(warning)
    module.exit_json(
        changed=outcome.changed,
        fetched=outcome.fetched,
        published=outcome.published,
        pruned=outcome.pruned,
        releases=outcome.releases,
        proven=outcome.proven,
        **outcome.counts,
        diff={"prepared": "".join(f"{line}\n" for line in outcome.lines)},
    )


if __name__ == "__main__":
    main()
