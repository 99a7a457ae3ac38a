# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds a release: the steps on the build host, one after the other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shutil
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _django_release_io as files
from ansible_collections.flotilla.django.plugins.module_utils._django_project_io import PACKED_MTIME, prune_archives
from ansible_collections.flotilla.django.plugins.module_utils._django_project_plan import wanted
from ansible_collections.flotilla.django.plugins.module_utils._django_release_io import (
    PYTHON,
    Account,
    Clock,
    Entry,
    ReleaseError,
    Slice,
    run,
)
from ansible_collections.flotilla.django.plugins.module_utils._django_release_plan import (
    FORMAT,
    NODE_STATIC_FILES,
    Host,
    Requirement,
    chunks,
    compressible,
    environment_name,
    extras_for,
    parse_requirements,
    pylock_requirements,
    tail,
    wheel_requirement,
    with_locked_hashes,
    write_requirements,
    wsgi_application,
)

# Run with the project's own Python: tells what Django makes of the settings, after the project's were imported alone.
_PROBE = r"""
import importlib, json, os, sys
importlib.import_module(os.environ["CLUSTER_PROJECT_SETTINGS"])
import django
from django.conf import settings
apps = [str(app) for app in settings.INSTALLED_APPS]
print("FLOTILLA " + json.dumps({
    "django": django.get_version(),
    "wsgi": getattr(settings, "WSGI_APPLICATION", None) or "",
    "static_url": str(settings.STATIC_URL or ""),
    "static_root": os.path.abspath(settings.STATIC_ROOT) if settings.STATIC_ROOT else "",
    "staticfiles": any(app.startswith("django.contrib.staticfiles") for app in apps),
}))
"""

_COMPILER_HINT = (
    "If a compiler or a header file is missing, name Debian's packages for it in django_build_packages,"
    " for example [build-essential, python3-dev, libpq-dev]; they are installed on the build host only."
)


@dataclass(frozen=True)
class Order:
    """What is to be built."""

    release_id: str
    version: str
    source_sha256: str
    archive: Path
    manage: str
    settings_module: str
    wsgi_module: str
    python_path: list[str]
    lock_file: str
    lock_kind: str
    lock_groups: list[str]
    lock_extras: list[str]
    extra_packages: list[str]
    build_commands: list[str]
    build_environment: dict[str, str]
    static_url: str
    static_hashed_names: bool
    cluster_settings: str
    uv_requirements: str
    index_url: str
    ca_file: str


@dataclass
class Builder:
    """One build. `tools` holds uv, `work` the builds and their caches, `packs` what comes out."""

    order: Order
    host: Host
    account_name: str = "django-build"
    tools: Path = Path("/opt/flotilla/uv")
    work: Path = Path("/var/lib/flotilla/build")
    packs: Path = Path("/var/lib/flotilla/releases")
    home: Path = Path("/srv/django")
    clock: Clock = field(default_factory=Clock)

    def build(self) -> dict[str, Any]:
        """Do everything; return the index of the packs."""
        self.account = self._account()
        with self.clock.step("tools"):
            self._install_tools()
        self.directory = self.work / self.order.release_id
        self.source = self.directory / "source"
        self._empty_work()
        with self.clock.step("source"):
            files.unpack(self.order.archive, self.source, self.account)
        with self.clock.step("resolve"):
            requirements = self._resolve()
        with self.clock.step("wheels"):
            self._make_wheels(requirements)
        with self.clock.step("venv"):
            uv = self.tools / "bin/uv"
            files.install_wheels(
                uv, self.directory, self.directory / "venv", cache=self.work / "cache/uv", account=self.account
            )
        listed = (self.directory / "requirements.txt").read_text(encoding="utf-8")
        self.environment = environment_name(listed, self.order.uv_requirements, self.host)
        self.donor = self._find_donor()
        if not self.donor:
            with self.clock.step("compile"):
                self._compile()
        with self.clock.step("settings"):
            probe = self._probe()
        with self.clock.step("commands"):
            for command in self.order.build_commands:
                self._run(["/bin/bash", "-euc", command], f"the build command '{command}'", cwd=self.source)
        if probe["staticfiles"]:
            if probe["static_root"] != str(self.static):
                raise ReleaseError(
                    f"STATIC_ROOT is '{probe['static_root']}', but static files must be collected in the directory that"
                    " the environment variable STATIC_ROOT names"
                )
            with self.clock.step("collectstatic"):
                manage = [str(self._venv_python), self.order.manage.rpartition("/")[2], "collectstatic", "--noinput"]
                self._run([*manage, "--verbosity", "0"], "collectstatic", cwd=self._manage_directory)
        files.end_processes(self.account)
        with self.clock.step("compress"):
            self._compress()
        with self.clock.step("pack"):
            index = self._pack(probe)
        shutil.rmtree(self.directory, ignore_errors=True)
        prune_archives(self.order.archive.parent)
        return index

    # The account and the tools

    def _account(self) -> Account:
        if os.geteuid() != 0:
            me = pwd.getpwuid(os.geteuid())
            return Account(me.pw_name, me.pw_uid, me.pw_gid, self.work)
        try:
            entry = pwd.getpwnam(self.account_name)
        except KeyError:
            command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
            command += ["--home-dir", str(self.work / "home"), self.account_name]
            run(command, what=f"making the account {self.account_name}")
            entry = pwd.getpwnam(self.account_name)
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, self.work / "home")

    def _network(self) -> dict[str, str]:
        """Say how the registry is reached; also for npm and whatever else a build command runs."""
        environment = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_RETRIES": "5"}
        if self.order.ca_file:
            names = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO")
            environment.update(dict.fromkeys(names, self.order.ca_file))
        if self.order.index_url:
            environment.update({"PIP_INDEX_URL": self.order.index_url, "UV_DEFAULT_INDEX": self.order.index_url})
        return {**environment, **self.order.build_environment}

    def _install_tools(self) -> None:
        wanted_digest = hashlib.sha256((self.order.uv_requirements + self.host.python_full).encode()).hexdigest()
        mark = self.tools / ".complete"
        if mark.exists() and mark.read_text(encoding="utf-8") == wanted_digest:
            return
        shutil.rmtree(self.tools, ignore_errors=True)
        self.tools.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        hint = "The build host needs the packages of a registry: see django_index_url and django_build_ca_file."
        run([PYTHON, "-m", "venv", str(self.tools)], what="making the environment of the build tool (python3-venv)")
        listed = self.tools / "requirements.txt"
        listed.write_text(self.order.uv_requirements, encoding="utf-8")
        command = [str(self.tools / "bin/python"), "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-deps"]
        command += ["--require-hashes", "--only-binary", ":all:", "-r", str(listed)]
        run(command, what="installing the build tool", environment={"HOME": "/root", **self._network()}, hint=hint)
        mark.write_text(wanted_digest, encoding="utf-8")

    def _empty_work(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True, mode=0o755)
        for path in self.work.iterdir():
            if path.name not in ("cache", "home"):
                shutil.rmtree(path, ignore_errors=True)
        # The build's own directory stays root's, so that the project's code cannot plant links where root writes.
        for name in ("runtime", "lock", "wheels", "venv", "static", "source"):
            (self.directory / name).mkdir(parents=True, mode=0o755)
        caches = [self.work / "home", self.work / "cache", self.work / "cache/uv", self.work / "cache/pip"]
        for path in caches:
            path.mkdir(exist_ok=True, mode=0o755)
        for path in [*caches, *(self.directory / name for name in ("lock", "wheels", "venv", "static", "source"))]:
            os.chown(path, self.account.uid, self.account.gid)
        (self.directory / "runtime/cluster_settings.py").write_text(self.order.cluster_settings, encoding="utf-8")

    # What the project's tools run in

    @property
    def _manage_directory(self) -> Path:
        return (self.source / self.order.manage).parent

    @property
    def _venv_python(self) -> Path:
        return self.directory / "venv/bin/python"

    @property
    def static(self) -> Path:
        return self.directory / "static"

    def _environment(self) -> dict[str, str]:
        """Set up the environment of everything that runs the project's code: the names of cluster_settings.py."""
        path = [str(self.directory / "runtime"), *(str(self.source / one) for one in self.order.python_path)]
        environment = {
            **self._network(),
            "PATH": f"{self.directory / 'venv/bin'}:{self.tools / 'bin'}:{files.CLEAN_PATH}",
            "VIRTUAL_ENV": str(self.directory / "venv"),
            "PYTHONPATH": ":".join(path),
            "DJANGO_SETTINGS_MODULE": "cluster_settings" if self.order.cluster_settings else self.order.settings_module,
            "CLUSTER_BUILD": "1",
            "CLUSTER_PROJECT_SETTINGS": self.order.settings_module,
            "CLUSTER_RELEASE_DIR": str(self.directory),
            "CLUSTER_STATIC_ROOT": str(self.static),
            "STATIC_ROOT": str(self.static),
            "CLUSTER_SECRET_KEY": hashlib.sha256(os.urandom(32)).hexdigest(),
            "CLUSTER_STATIC_HASHED": "1" if self.order.static_hashed_names else "",
            "UV_CACHE_DIR": str(self.work / "cache/uv"),
            "UV_PYTHON_DOWNLOADS": "never",
        }
        if self.order.static_url:
            environment["CLUSTER_STATIC_URL"] = self.order.static_url
        return environment

    def _run(self, command: list[str], what: str, *, cwd: Path, hint: str = "") -> str:
        return run(command, what=what, account=self.account, environment=self._environment(), cwd=cwd, hint=hint)

    # Packages

    def _uv(self, arguments: list[str], what: str, cwd: Path, hint: str = "") -> str:
        environment = {**files.uv_environment(self.work / "cache/uv"), **self._network()}
        command = [str(self.tools / "bin/uv"), *arguments]
        return run(command, what=what, account=self.account, environment=environment, cwd=cwd, hint=hint)

    def _resolve(self) -> list[Requirement]:
        """Pin and hash the project's packages, then those that the cluster adds, under the project's pins."""
        order, lock = self.order, self.source / self.order.lock_file
        locked, resolved = self.directory / "lock/locked.txt", self.directory / "lock/resolved.txt"
        compile_ = ["pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
        what = f"reading the lock file {order.lock_file}"
        groups = [word for name in order.lock_groups for word in ("--group", name)]
        extras = [word for name in order.lock_extras for word in ("--extra", name)]
        if order.lock_kind == "uv":
            export = ["export", "--quiet", "--frozen", "--no-default-groups", "--no-emit-workspace", "--no-header"]
            export += ["--no-annotate", "--format", "requirements-txt", *groups, *extras]
            self._uv([*export, "--output-file", str(locked)], what, lock.parent)
            text = locked.read_text(encoding="utf-8")
        elif order.lock_kind == "pylock":
            try:
                text = pylock_requirements(lock.read_text(encoding="utf-8"), order.lock_groups, order.lock_extras)
            except (ValueError, KeyError) as error:
                raise ReleaseError(f"{order.lock_file} cannot be used: {error}") from error
        else:
            # Ranges without hashes are pinned here, once for each content of the file.
            self._uv([*compile_, lock.name, "--output-file", str(locked)], what, lock.parent)
            text = locked.read_text(encoding="utf-8")
        pinned = parse_requirements(text)
        paths = [one for one in pinned if not one.name]
        given = self.directory / "given.txt"
        # Paths of the project are built from its source; they count from the directory of the lock file.
        given.write_text(write_requirements(one for one in pinned if one.name), encoding="utf-8")
        added = self.directory / "added.txt"
        added.write_text("".join(line + "\n" for line in extras_for(order.extra_packages, pinned)), encoding="utf-8")
        self._uv(
            [*compile_, str(given), str(added), "--output-file", str(resolved)],
            f"adding {', '.join(order.extra_packages) or 'nothing'} to the project's packages",
            lock.parent,
            "The project's own pins win; an extra package that cannot live with them needs another version in"
            " django_extra_packages.",
        )
        return [*with_locked_hashes(parse_requirements(resolved.read_text(encoding="utf-8")), pinned), *paths]

    def _make_wheels(self, requirements: list[Requirement]) -> None:
        """Fetch wheels, and build those that the registry only has as source, a few at a time."""
        hashed = [one for one in requirements if one.hashes]
        plain = [one for one in requirements if not one.hashes]
        wheels = self.directory / "wheels"
        # SOURCE_DATE_EPOCH makes wheels that are built from the same source the same.
        environment = {
            "SOURCE_DATE_EPOCH": str(PACKED_MTIME),
            "PIP_CACHE_DIR": str(self.work / "cache/pip"),
            **self._network(),
        }
        environment["PATH"] = f"{self.tools / 'bin'}:{files.CLEAN_PATH}"

        def fetch(number: int, part: list[Requirement], flags: list[str]) -> None:
            listed = self.directory / f"wheels-{number}.txt"
            listed.write_text(write_requirements(part), encoding="utf-8")
            command = [str(self.tools / "bin/python"), "-m", "pip", "wheel", "--quiet", "--no-deps", *flags]
            command += ["--wheel-dir", str(wheels), "-r", str(listed)]
            cwd = (self.source / self.order.lock_file).parent
            what = "fetching and building the wheels"
            run(command, what=what, account=self.account, environment=environment, cwd=cwd, hint=_COMPILER_HINT)

        jobs = [(part, ["--require-hashes"]) for part in chunks(hashed, 4)]
        if plain:
            jobs.append((plain, []))
        with ThreadPoolExecutor(max_workers=4) as pool:
            futures = [pool.submit(fetch, number, part, flags) for number, (part, flags) in enumerate(jobs)]
            for future in futures:
                future.result()
        pins = [wheel_requirement(path.name, files.sha256_file(path)) for path in wheels.glob("*.whl")]
        (self.directory / "requirements.txt").write_text(write_requirements(pins), encoding="utf-8")

    def _compile(self) -> None:
        """Compile the packages once for all nodes, under their names there and valid whatever their time is."""
        final = self.home / "environments" / self.environment / "venv"
        command = [PYTHON, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
        command += ["-s", "venv", "-p", str(final), "venv/lib"]
        environment = {"PYTHONHASHSEED": "0"}
        with contextlib.suppress(ReleaseError):  # some packages carry files that are templates of Python files
            run(command, what="compileall", account=self.account, environment=environment, cwd=self.directory)

    def _find_donor(self) -> Slice | None:
        """Find the same packages in another pack."""
        for name in files.list_packs(self.packs):
            pack = files.load_pack(self.packs, name).get("packs", {}).get("release", {})
            if pack.get("head", {}).get("environment") == self.environment:
                return Slice(self.packs / pack["file"], pack["head"]["size"], pack["end"])
        return None

    # The project

    def _probe(self) -> dict[str, Any]:
        what = f"importing the settings module {self.order.settings_module}"
        output = self._run([str(self._venv_python), "-c", _PROBE], what, cwd=self._manage_directory)
        line = next((line for line in output.splitlines() if line.startswith("FLOTILLA ")), "")
        if not line:
            raise ReleaseError(f"{what} ended the program:\n{tail(output)}")
        probe: dict[str, Any] = json.loads(line.removeprefix("FLOTILLA "))
        return probe

    def _compress(self) -> None:
        """Put .gz and .br beside the text files. Compressors work outside Python's lock, so threads use all cores."""
        import brotli  # Debian's python3-brotli, on the build host only

        chosen: dict[bytes, list[Path]] = {}
        for entry in files.tree_entries(self.static, ""):
            path = entry.path
            if path.is_symlink() or not compressible(path.name, path.stat().st_size):
                continue
            if not path.with_name(path.name + ".gz").exists() and not path.with_name(path.name + ".br").exists():
                # Under its plain and its hashed name a file is compressed once.
                chosen.setdefault(hashlib.sha256(path.read_bytes()).digest(), []).append(path)

        def compress(paths: list[Path]) -> None:
            content = paths[0].read_bytes()
            packer = zlib.compressobj(9, zlib.DEFLATED, 31)
            gzipped = packer.compress(content) + packer.flush()
            for suffix, packed in ((".gz", gzipped), (".br", brotli.compress(content, quality=11))):
                for path in paths if len(packed) < len(content) else []:
                    path.with_name(path.name + suffix).write_bytes(packed)

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            list(pool.map(compress, chosen.values()))

    # The packs

    def _pack(self, probe: Mapping[str, Any]) -> dict[str, Any]:
        order, directory = self.order, self.directory
        static = files.static_entries(self.static)
        release = {
            "format": FORMAT,
            "id": order.release_id,
            "version": order.version,
            "source_sha256": order.source_sha256,
            "python": self.host.python,
            "arch": self.host.arch,
            "debian": self.host.debian,
            "django": probe["django"],
            "settings_module": order.settings_module,
            "wsgi_application": wsgi_application(str(probe["wsgi"]), order.wsgi_module),
            "manage": order.manage,
            "python_path": order.python_path,
            "static_url": probe["static_url"],
            "static_files": len(static),
            "environment": self.environment,
        }
        described = directory / "release.json"
        files.write_json(described, release)
        listed = Entry("requirements.txt", directory / "requirements.txt")
        node_names = {f"static/{name}" for name in NODE_STATIC_FILES}
        own = [Entry("release.json", described), listed, *files.tree_entries(self.source, "source/", wanted)]
        own += [entry for entry in static if entry.name in node_names]
        self.packs.mkdir(parents=True, exist_ok=True, mode=0o755)
        packs: dict[str, dict[str, Any]] = {}
        for kind, name, parts in (
            ("release", f"{order.release_id}.tar.gz", [own, self.donor or self._packages(listed)]),
            ("static", f"{order.release_id}-static.tar.gz", [static]),
        ):
            temporary = self.packs / f".{name}"
            packs[kind] = {"file": name, **files.write_pack(temporary, *parts)}
            temporary.replace(self.packs / name)
            packs[kind]["mtime_ns"] = (self.packs / name).stat().st_mtime_ns
        packs["release"]["head"]["environment"] = self.environment
        # The time is no part of the archives: built again from the same wheels, they are the same.
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        index = {"id": order.release_id, "created": created, "release": release, "packs": packs}
        files.write_json(self.packs / f"{order.release_id}.json", index)
        return index

    def _packages(self, listed: Entry) -> list[Entry]:
        """List what a node makes the virtual environment of."""
        entries = [listed, Entry("tools/uv", self.tools / "bin/uv")]
        entries += files.tree_entries(self.directory / "wheels", "wheels/")
        return entries + files.tree_entries(self.directory / "venv/lib", "pycache/lib/", files.is_compiled)
