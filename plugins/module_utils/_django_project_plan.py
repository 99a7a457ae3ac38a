# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Django project is, read off its file names and a few of its files. Pure: no I/O."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

LOCK_FILES = {"uv.lock": "uv", "pylock.toml": "pylock", "requirements.txt": "requirements"}

FOREIGN_LOCKS = {
    "poetry.lock": "`poetry export -o requirements.txt` (plugin poetry-plugin-export)",
    "Pipfile.lock": "`pipenv requirements --hash > requirements.txt`",
    "pdm.lock": "`pdm export -o requirements.txt`",
}

EXCLUDED_DIRECTORIES = frozenset({".git", "__pycache__", ".venv", "node_modules", ".hg", ".svn", ".mypy_cache", ".tox"})
EXCLUDED_FILES = frozenset({"db.sqlite3", "db.sqlite3-journal", "db.sqlite3-wal", "db.sqlite3-shm"})

MANAGE_DEPTH = 4

_SETTINGS_IN_MANAGE = re.compile(
    r"""["']DJANGO_SETTINGS_MODULE["']\s*(?:,|\]\s*=)\s*["']([A-Za-z_][\w.]*)["']""",
)
_HARD_ASSIGNED = re.compile(r"""environ\[\s*["']DJANGO_SETTINGS_MODULE["']\s*\]\s*=""")
_GIT_URL = re.compile(r"^(?:[a-z][a-z0-9+.-]*://|[\w.-]+@[\w.-]+:)")


@dataclass(frozen=True)
class Project:
    """A project as the builder needs to know it; paths are relative to the root of the source."""

    manage: str
    settings_module: str
    python_path: list[str]
    wsgi_module: str
    lock_file: str
    lock_kind: str
    requires_python: str
    requires_python_source: str
    warnings: list[str] = field(default_factory=list)


def is_git_url(text: str) -> bool:
    """Tell a git URL from a local path (`file://` URLs are git's, a plain path is a directory)."""
    return bool(_GIT_URL.match(text))


def wanted(path: str) -> bool:
    """Say whether a file belongs into the source archive."""
    parts = PurePosixPath(path).parts
    if any(part in EXCLUDED_DIRECTORIES for part in parts[:-1]):
        return False
    name = parts[-1]
    return name not in EXCLUDED_FILES and name not in EXCLUDED_DIRECTORIES and not name.endswith((".pyc", ".pyo"))


def without_virtualenvs(paths: Iterable[str]) -> list[str]:
    """Drop what lies in a virtual environment, whatever it is called."""
    listed = list(paths)
    roots = [str(PurePosixPath(path).parent) + "/" for path in listed if PurePosixPath(path).name == "pyvenv.cfg"]
    return [path for path in listed if not any(path.startswith(root) for root in roots if root != "./")]


def module_file(module: str, directory: str, paths: frozenset[str]) -> str | None:
    """Return the file of a dotted module below a directory, or None."""
    base = join(directory, module.replace(".", "/"))
    return next((name for name in (base + ".py", base + "/__init__.py") if name in paths), None)


def join(directory: str, name: str) -> str:
    """Join two relative paths; '.' is the root."""
    return name if directory in ("", ".") else f"{directory}/{name}"


def _listed(names: Iterable[str], limit: int = 8) -> str:
    found = sorted(names)
    shown = ", ".join(found[:limit])
    return shown + (f" and {len(found) - limit} more" if len(found) > limit else "")


def find_manage(paths: frozenset[str], chosen: str = "") -> str:
    """Find manage.py: the chosen one, the one at the root, or the only one."""
    if chosen:
        if chosen not in paths:
            raise ValueError(f"django_manage is '{chosen}', but the project has no such file")
        return chosen
    if "manage.py" in paths:
        return "manage.py"
    found = [
        path
        for path in paths
        if PurePosixPath(path).name == "manage.py" and len(PurePosixPath(path).parts) <= MANAGE_DEPTH
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"several manage.py: {_listed(found)}; name the one to use in django_manage")
    top = {PurePosixPath(path).parts[0] + ("/" if "/" in path else "") for path in paths}
    raise ValueError(
        f"no manage.py among the {len(paths)} files, down to {MANAGE_DEPTH - 1} directories deep;"
        f" at the top there is: {_listed(top) or 'nothing'}"
    )


def settings_candidates(paths: frozenset[str], directory: str) -> list[str]:
    """Name the settings modules that a directory seems to hold."""
    prefix = "" if directory == "." else directory + "/"
    found = set()
    for path in paths:
        if not path.startswith(prefix) or not path.endswith(".py"):
            continue
        parts = PurePosixPath(path[len(prefix) :]).with_suffix("").parts
        if parts[-1] == "settings" or (len(parts) > 1 and parts[-2] == "settings"):
            found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(found)


def find_settings(paths: frozenset[str], manage: str, manage_text: str, chosen: str = "") -> tuple[str, str]:
    """Find the settings module and the directory it is imported from."""
    manage_directory = str(PurePosixPath(manage).parent)
    directories = list(dict.fromkeys([manage_directory, ".", "src", join(manage_directory, "src")]))
    candidates = list(dict.fromkeys(name for one in directories for name in settings_candidates(paths, one)))
    if chosen:
        modules, origin = [chosen], "django_settings_module"
    else:
        modules, origin = list(dict.fromkeys(_SETTINGS_IN_MANAGE.findall(manage_text))), manage
        if not modules:
            modules = settings_candidates(paths, manage_directory)
            origin = "the project's files"
    if len(modules) > 1:
        raise ValueError(f"several settings modules in {origin}: {_listed(modules)}; set django_settings_module")
    if not modules:
        raise ValueError(
            f"{manage} names no DJANGO_SETTINGS_MODULE and no settings.py was found; set django_settings_module"
        )
    for directory in directories:
        if module_file(modules[0], directory, paths):
            return modules[0], directory
    hint = f"; the project holds: {_listed(candidates)}" if candidates else ""
    raise ValueError(f"the settings module '{modules[0]}' (from {origin}) is not among the project's files{hint}")


def find_lock(paths: frozenset[str], manage: str, chosen: str = "") -> tuple[str, str]:
    """Find the lock file and its kind, beside manage.py first and then upwards."""
    if chosen:
        if chosen not in paths:
            raise ValueError(f"django_lock_file is '{chosen}', but the project has no such file")
        name = PurePosixPath(chosen).name
        if name in FOREIGN_LOCKS:
            raise ValueError(_foreign(chosen))
        if name == "uv.lock":
            return chosen, "uv"
        return chosen, "pylock" if name.startswith("pylock.") and name.endswith(".toml") else "requirements"
    parents = [str(parent) for parent in PurePosixPath(manage).parents]
    for directory in parents:
        for name, kind in LOCK_FILES.items():
            if join(directory, name) in paths:
                return join(directory, name), kind
    for directory in parents:
        for name in FOREIGN_LOCKS:
            if join(directory, name) in paths:
                raise ValueError(_foreign(join(directory, name)))
    others = [path for path in paths if re.search(r"requirements[^/]*(/[^/]*)?\.(txt|in)$", path)]
    hint = f"; set django_lock_file if it is one of: {_listed(others)}" if others else ""
    raise ValueError(f"no lock file ({', '.join(LOCK_FILES)}) in {' or '.join(parents)}{hint}")


def _foreign(path: str) -> str:
    way = FOREIGN_LOCKS[PurePosixPath(path).name]
    return (
        f"{path} is a lock file that only its own tool reads; releases are built from {', '.join(LOCK_FILES)}."
        f" Write one with {way}, and commit it"
    )


def find_requires_python(
    paths: frozenset[str], read: Callable[[str], str], manage: str, lock_file: str
) -> tuple[str, str]:
    """Find which Python the project asks for, and the file that says so."""
    near = [str(PurePosixPath(lock_file).parent), *(str(parent) for parent in PurePosixPath(manage).parents)]
    directories = list(dict.fromkeys(near))
    for directory in directories:
        for name, keys in (("pyproject.toml", ("project", "requires-python")), ("uv.lock", ("requires-python",))):
            path = join(directory, name)
            if path not in paths:
                continue
            try:
                value: object = tomllib.loads(read(path))
            except tomllib.TOMLDecodeError as error:
                raise ValueError(f"{path} is not valid TOML: {error}") from error
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, str) and value.strip():
                return value.strip(), path
    for directory in directories:
        path = join(directory, ".python-version")
        if path in paths:
            match = re.match(r"\s*(?:cpython-?|python-?)?(\d+\.\d+)", read(path))
            if match:
                # The developers' own pin: a host may be newer, but not older.
                return f">={match.group(1)}", path
    return "", ""


def find_wsgi(paths: frozenset[str], settings_module: str, directory: str) -> str:
    """Guess the WSGI module beside the settings; '' where there is none (the build asks Django itself)."""
    parts = settings_module.split(".")
    for length in range(len(parts) - 1, -1, -1):
        module = ".".join([*parts[:length], "wsgi"])
        if module_file(module, directory, paths):
            return module
    return ""


def describe(
    paths: Iterable[str],
    read: Callable[[str], str],
    *,
    manage: str = "",
    settings_module: str = "",
    lock_file: str = "",
) -> Project:
    """Put together all that the builder needs to know. Raises ValueError with what to do about it."""
    known = frozenset(paths)
    manage_file = find_manage(known, manage)
    text = read(manage_file)
    module, directory = find_settings(known, manage_file, text, settings_module)
    lock, kind = find_lock(known, manage_file, lock_file)
    if kind == "uv" and join(str(PurePosixPath(lock).parent), "pyproject.toml") not in known:
        raise ValueError(f"{lock} has no pyproject.toml beside it")
    requires, source = find_requires_python(known, read, manage_file, lock)
    warnings = []
    if _HARD_ASSIGNED.search(text):
        warnings.append(
            f"{manage_file} assigns DJANGO_SETTINGS_MODULE instead of using setdefault:"
            " its commands ignore the cluster's settings"
        )
    manage_directory = str(PurePosixPath(manage_file).parent)
    return Project(
        manage=manage_file,
        settings_module=module,
        python_path=list(dict.fromkeys([manage_directory, directory])),
        wsgi_module=find_wsgi(known, module, directory),
        lock_file=lock,
        lock_kind=kind,
        requires_python=requires,
        requires_python_source=source,
        warnings=warnings,
    )
