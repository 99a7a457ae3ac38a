# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions about releases: names, versions, requirements, what is packed and what is kept. Pure: no I/O."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Raised whenever the same inputs would give another pack.
FORMAT = 2

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NAME = re.compile(r"^\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(\[[^\]]*\])?\s*(.*?)\s*$")
_SPECIFIER = re.compile(r"^(===|==|~=|!=|<=|>=|<|>)\s*v?([0-9]+(?:\.[0-9]+)*)(?:[a-z]+[0-9]*)?(\.\*)?$")
_RELEASE_ID = re.compile(r"^[A-Za-z0-9._][A-Za-z0-9._-]*-[0-9a-f]{12}$")
_ENVIRONMENT = re.compile(r"^[0-9a-f]{16}$")

_TEXT = "css js mjs map json svg html htm txt xml webmanifest ttf otf eot wasm ico csv md"
TEXT_SUFFIXES = frozenset("." + name for name in _TEXT.split())
COMPRESS_FROM = 1024

# Files below STATIC_ROOT that the nodes need although the static servers serve the rest.
NODE_STATIC_FILES = ("staticfiles.json", "CACHE/manifest.json", "manifest.json", ".vite/manifest.json")


@dataclass(frozen=True)
class Host:
    """The machine that builds, as far as a release depends on it."""

    python: str  # 3.13
    python_full: str  # 3.13.5
    arch: str
    debian: str


@dataclass(frozen=True)
class Requirement:
    """One pinned line of a requirements file."""

    name: str
    line: str  # without hashes
    hashes: tuple[str, ...] = ()


@dataclass
class Pruning:
    """What goes and what stays."""

    keep: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)


def release_id(version: str, inputs: Mapping[str, Any]) -> str:
    """Name a release after its version and everything it is built from."""
    name = _UNSAFE.sub("-", version).strip("-.")[:40] or "local"
    text = json.dumps({"format": FORMAT, **inputs}, sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def is_release_id(name: str) -> bool:
    """Tell whether a name can be that of a release (and so is safe as a file name)."""
    return bool(_RELEASE_ID.match(name)) and not name.startswith(".")


def environment_name(requirements: str, tool: str, host: Host) -> str:
    """Name a virtual environment after what is in it: wheels with hashes, the tool that installs them, and the host."""
    text = json.dumps([FORMAT, requirements, tool, host.python, host.arch, host.debian])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_environment(name: str) -> bool:
    """Tell whether a name can be that of an environment (and so is safe as a file name)."""
    return bool(_ENVIRONMENT.match(name))


def environment_of(link: str) -> str:
    """Name the environment that a release's `venv` points at; '' for any other target."""
    parts = link.split("/")
    known = parts[:-2] == ["..", "..", "environments"] and parts[-1] == "venv"
    return parts[-2] if known and is_environment(parts[-2]) else ""


def environment_link(name: str) -> str:
    """Where `venv` of a release points. Relative, so that the tree can be looked at from anywhere."""
    return f"../../environments/{name}/venv"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(".")]


def _compare(left: Sequence[int], right: Sequence[int]) -> int:
    length = max(len(left), len(right))
    first, second = ([*side, *[0] * (length - len(side))] for side in (left, right))
    return (first > second) - (first < second)


def python_satisfies(version: str, specifiers: str) -> bool:
    """Say whether a Python such as 3.13.5 satisfies `requires-python`. Raises ValueError when that is unreadable."""
    have = _numbers(version)
    for text in filter(None, (part.strip() for part in specifiers.split(","))):
        match = _SPECIFIER.match(text)
        if not match:
            raise ValueError(f"'{text}' is no version specifier that requires-python knows")
        operator, wanted, wildcard = match.group(1), _numbers(match.group(2)), match.group(3)
        order = _compare(have, wanted)
        prefix = have[: len(wanted)] == wanted
        if operator == "~=":
            fits = order >= 0 and have[: len(wanted) - 1] == wanted[:-1]
        elif operator in ("==", "==="):
            fits = prefix if wildcard else order == 0
        elif operator == "!=":
            fits = not prefix if wildcard else order != 0
        else:
            fits = {">=": order >= 0, "<=": order <= 0, ">": order > 0, "<": order < 0}[operator]
        if not fits:
            return False
    return True


def python_problem(host: Host, requires: str, source: str, name: str) -> str:
    """Say what is wrong with the Python of the build host for this project, or ''."""
    if not requires or python_satisfies(host.python_full, requires):
        return ""
    return (
        f"the project asks for Python {requires} ({source}), and {name} has Python {host.python_full}"
        f" (Debian {host.debian}). Debian 12 brings Python 3.11, Debian 13 brings Python 3.13: use hosts with the"
        f" Debian release that fits, or widen requires-python. Nothing was built"
    )


def normal(name: str) -> str:
    """Normalise a distribution name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_requirements(text: str) -> list[Requirement]:
    """Read a requirements file as uv writes it: one package a line, hashes on continuation lines."""
    logical = re.sub(r"\\\r?\n", " ", text)
    found = []
    for raw in logical.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        if not line or line.startswith("-"):
            continue
        hashes = tuple(re.findall(r"--hash=(sha\d+:[0-9a-f]+)", line))
        line = re.sub(r"\s*--hash=\S+", "", line).strip()
        match = _NAME.match(line)
        is_path = line.startswith(("./", "../", "/", "file:"))
        name = "" if is_path or not match else normal(match.group(1))
        found.append(Requirement(name, line, hashes))
    return found


def write_requirements(requirements: Iterable[Requirement]) -> str:
    """Write requirements, sorted, one hash a line."""
    lines = []
    for one in sorted(requirements, key=lambda item: (item.name, item.line)):
        lines.append(" \\\n    ".join([one.line, *(f"--hash={value}" for value in sorted(one.hashes))]))
    return "".join(line + "\n" for line in lines)


def extras_for(extra_packages: Iterable[str], locked: Iterable[Requirement]) -> list[str]:
    """Drop our version of an extra package that the project pins itself: its own pin wins."""
    pinned = {one.name for one in locked}
    lines = []
    for package in extra_packages:
        match = _NAME.match(package)
        if not match:
            raise ValueError(f"django_extra_packages: '{package}' is no requirement such as name or name==1.2")
        name, extras = match.group(1), match.group(2) or ""
        lines.append(f"{name}{extras}" if normal(name) in pinned else package.strip())
    return lines


def with_locked_hashes(resolved: Iterable[Requirement], locked: Iterable[Requirement]) -> list[Requirement]:
    """Let the hashes of the project's own lock win over those that the registry tells today."""
    own = {(one.name, one.line.split(";")[0].replace(" ", "")): one.hashes for one in locked if one.hashes}
    merged = []
    for one in resolved:
        bare = re.sub(r"\[[^\]]*\]", "", one.line.split(";")[0]).replace(" ", "")
        hashes = next((own[key] for key in own if key[0] == one.name and re.sub(r"\[[^\]]*\]", "", key[1]) == bare), ())
        merged.append(Requirement(one.name, one.line, hashes or one.hashes))
    return merged


def pylock_requirements(text: str, groups: Sequence[str] = (), extras: Sequence[str] = ()) -> str:
    """Turn a pylock.toml (PEP 751) into requirements with hashes."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not valid TOML: {error}") from error
    if not str(document.get("lock-version", "")).startswith("1."):
        raise ValueError(f"its lock-version is {document.get('lock-version')!r}, wanted 1.x")
    chosen = {"dependency_groups": {*document.get("default-groups", []), *groups}, "extras": set(extras)}
    lines = []
    for package in document.get("packages", []):
        marker = package.get("marker", "")
        if marker:
            marker = _decide_marker(marker, chosen)
            if marker == "False":
                continue
        name = package["name"]
        hashes: list[str] = []
        if "vcs" in package:
            vcs = package["vcs"]
            line = f"{name} @ {vcs['type']}+{vcs['url']}@{vcs['commit-id']}"
        elif "directory" in package:
            line = f"./{package['directory']['path']}"
        else:
            files = [*package.get("wheels", []), *filter(None, [package.get("sdist")])]
            if "archive" in package:
                files = [package["archive"]]
            hashes = [f"{kind}:{value}" for item in files for kind, value in item["hashes"].items() if kind == "sha256"]
            if "archive" in package:
                line = f"{name} @ {package['archive'].get('url') or package['archive']['path']}"
            else:
                line = f"{name}=={package['version']}"
        if marker:
            line += f" ; {marker}"
        lines.append(" \\\n    ".join([line, *(f"--hash={value}" for value in sorted(set(hashes)))]))
    return "".join(line + "\n" for line in lines)


def _decide_marker(marker: str, chosen: Mapping[str, set[str]]) -> str:
    """Decide the `'x' in dependency_groups` and `'x' in extras` parts, which requirements files cannot say."""

    def decide(match: re.Match[str]) -> str:
        inside = match.group(2) in chosen[match.group(4)]
        return "True" if inside is (match.group(3).split() == ["in"]) else "False"

    text = re.sub(r"""(["'])([^"']+)\1\s+(not\s+in|in)\s+(dependency_groups|extras)""", decide, marker)
    if "True" not in text and "False" not in text:
        return text
    # Whatever is left of other variables is taken as true: uv evaluates the markers of the dependencies again.
    bare = re.sub(r"[\w.]+\s*(?:===?|~=|!=|<=|>=|<|>|not\s+in|in)\s*(?:\"[^\"]*\"|'[^']*')", "True", text)
    words = re.findall(r"True|False|and|or|not|\(|\)", bare)
    return "" if _boolean(words) else "False"


def _boolean(words: list[str]) -> bool:
    """Evaluate True/False/and/or/brackets."""

    def either(position: int) -> tuple[bool, int]:
        value, position = both(position)
        while position < len(words) and words[position] == "or":
            other, position = both(position + 1)
            value = value or other
        return value, position

    def both(position: int) -> tuple[bool, int]:
        value, position = one(position)
        while position < len(words) and words[position] == "and":
            other, position = one(position + 1)
            value = value and other
        return value, position

    def one(position: int) -> tuple[bool, int]:
        if words[position] == "(":
            value, position = either(position + 1)
            return value, position + 1
        return words[position] == "True", position + 1

    return either(0)[0]


def wheel_requirement(filename: str, sha256: str) -> Requirement:
    """Pin exactly this wheel."""
    parts = filename.removesuffix(".whl").split("-")
    if len(parts) not in (5, 6) or not filename.endswith(".whl"):
        raise ValueError(f"{filename} is no wheel file name")
    name = normal(parts[0])
    return Requirement(name, f"{name}=={parts[1].replace('_', '-')}", (f"sha256:{sha256}",))


def chunks(items: Sequence[Requirement], count: int) -> list[list[Requirement]]:
    """Deal items out to at most `count` lists of nearly equal length."""
    return [part for part in (list(items[start::count]) for start in range(count)) if part]


def wsgi_application(setting: str, wsgi_module: str) -> str:
    """Say what gunicorn is to load, from WSGI_APPLICATION or else from the module beside the settings."""
    if setting:
        module, _, name = setting.rpartition(".")
        return f"{module}:{name}"
    return f"{wsgi_module}:application" if wsgi_module else ""


def compressible(name: str, size: int) -> bool:
    """Say whether a static file is worth a .gz and a .br beside it."""
    dot = name.rfind(".")
    return size > COMPRESS_FROM and dot >= 0 and name[dot:].lower() in TEXT_SUFFIXES


def static_mtime(sha256: str) -> int:
    """Derive a time from a file's content (2001 to 2017).

    Nginx makes ETag and Last-Modified from size and time: so they are the same on all static servers, the same in every
    release that holds the same file, and another for another content.
    """
    return 1_000_000_000 + int(sha256[:8], 16) % 500_000_000


def prune(newest_first: Sequence[str], keep: int, protected: Iterable[str]) -> Pruning:
    """Keep the newest ones and, whatever their age, the protected ones."""
    guarded = set(filter(None, protected))
    result = Pruning()
    for position, name in enumerate(newest_first):
        (result.keep if position < keep or name in guarded else result.remove).append(name)
    return result


def pack_problem(release: Mapping[str, Any], host: Host, name: str) -> str:
    """Say why a pack cannot be installed here, or ''."""
    wanted = (release.get("python"), release.get("arch"))
    if wanted == (host.python, host.arch):
        if is_environment(str(release.get("environment", ""))):
            return ""
        return f"release {release.get('id')} was made by another version of Flotilla: deploy that version anew"
    return (
        f"release {release.get('id')} was built for Python {wanted[0]} on {wanted[1]} (Debian {release.get('debian')}),"
        f" and {name} has Python {host.python} on {host.arch} (Debian {host.debian}):"
        " all Django hosts need the Debian release and architecture of the build host"
    )


def tail(text: str, lines: int = 40) -> str:
    """Return the last lines of an output."""
    kept = text.strip().splitlines()
    return "\n".join((["..."] if len(kept) > lines else []) + kept[-lines:])
