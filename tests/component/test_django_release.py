# SPDX-License-Identifier: GPL-3.0-or-later
"""A small real project, built, sent and installed on a real Debian host, with a real Nginx between."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import LabHost

ROOT = Path(__file__).resolve().parent.parent.parent
TOP = "/srv/release-test"
URL = "http://127.0.0.1:8099/releases/"

PROJECT = {
    "manage.py": """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
""",
    "shop/__init__.py": "",
    "shop/settings.py": """
from pathlib import Path
INSTALLED_APPS = ["django.contrib.staticfiles"]
STATIC_URL = "/static/"
STATICFILES_DIRS = [Path(__file__).parent / "assets"]
ROOT_URLCONF = "shop.urls"
DATABASES = {}
SECRET_KEY = "x"
STORAGES = {"staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}}
""",
    "shop/urls.py": "urlpatterns = []",
    "shop/wsgi.py": "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()",
    "shop/assets/site.css": "body { color: black }\n" * 200,
    "shop/assets/tiny.css": "a { color: red }\n",
    # ranges without hashes; Django's own dependencies come with it
    "requirements.txt": "Django>=5.2,<5.3\n",
}

NGINX = f"""
pid {TOP}/nginx.pid;
error_log {TOP}/nginx.log;
user root;
events {{}}
http {{
  access_log off;
  client_max_body_size 500m;
  client_body_temp_path {TOP}/incoming;
  server {{
    listen 127.0.0.1:8099;
    location /releases/ {{ root {TOP}/static; dav_methods PUT; }}
  }}
}}
"""


class Site:
    """The modules on one host that is build host, static server and node at once, each with its own directories."""

    def __init__(self, host: LabHost, read: Callable[..., dict[str, Any]], directory: Path) -> None:
        self.host, self.read, self.directory = host, read, directory
        self.files = dict(PROJECT)
        self.options: dict[str, Any] = {}

    def put(self, content: bytes, path: str) -> None:
        """Carry a file to the host."""
        self.host.run(f"mkdir -p $(dirname {path}); echo {base64.b64encode(content).decode()} | base64 -d > {path}")

    def source(self) -> dict[str, Any]:
        """Write the project on this machine, read it, and carry the archive to the host."""
        root = self.directory / "shop"
        for name, content in self.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        found = self.read("django_project", {"path": str(root), "cache": str(self.directory / "cache")})
        assert not found["failed"], found
        archive = Path(found["archive"])
        self.put(archive.read_bytes(), f"{TOP}/sources/{archive.name}")
        return found

    def build(self, check: bool = False, **more: Any) -> dict[str, Any]:
        source = self.source()
        names: tuple[str, ...] = (
            "version",
            "source_sha256",
            "manage",
            "settings_module",
            "wsgi_module",
            "python_path",
            "lock_file",
        )
        names += ("lock_kind", "requires_python", "requires_python_source")
        arguments = {
            **{name: source[name] for name in names},
            "archive": f"{TOP}/sources/{Path(source['archive']).name}",
            "extra_packages": ["psycopg[binary]==3.3.9", "gunicorn==27.0.1"],
            "cluster_settings": (ROOT / "roles/django/files/cluster_settings.py").read_text(),
            "uv_requirements": (ROOT / "roles/django/files/uv-requirements.txt").read_text(),
            "ca_file": f"{TOP}/ca.pem" if os.environ.get("SSL_CERT_FILE") else "",
            "directory": f"{TOP}/packs",
            "work": f"{TOP}/build",
            "home": f"{TOP}/home",
            **self.options,
            **more,
        }
        return self.host.module("django_release_build", arguments, check=check)

    def upload(self, check: bool = False) -> dict[str, Any]:
        arguments = {"servers": [URL], "directory": f"{TOP}/packs"}
        return self.host.module("django_release_upload", arguments, check=check)

    def install(self, build: dict[str, Any], check: bool = False, **more: Any) -> dict[str, Any]:
        arguments = {
            "release_id": build["release_id"],
            "pack": {key: build["packs"]["release"][key] for key in ("sha256", "head")},
            "urls": ["http://127.0.0.1:1/releases/", URL],
            "home": f"{TOP}/home",
            "directory": "/nowhere",
            **more,
        }
        return self.host.module("django_release", arguments, check=check)


@pytest.fixture(scope="module")
def prepared(lab_host: LabHost) -> LabHost:
    lab_host.run(
        "export DEBIAN_FRONTEND=noninteractive; dpkg -s nginx python3-venv python3-brotli >/dev/null 2>&1 ||"
        " { apt-get -qq update && apt-get -qq install --no-install-recommends -y nginx python3-venv python3-brotli; }"
        f" >/dev/null; systemctl stop nginx; rm -rf {TOP}; mkdir -p {TOP}/static/releases"
    )
    ca = os.environ.get("SSL_CERT_FILE")
    if ca:
        # As the lab does: packages come through whatever this machine goes through.
        content = Path(ca).read_bytes()
        for start in range(0, len(content), 60_000):
            part = base64.b64encode(content[start : start + 60_000]).decode()
            lab_host.run(f"echo {part} | base64 -d >> {TOP}/ca.pem")
    return lab_host


@pytest.fixture
def site(prepared: LabHost, run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> Site:
    return Site(prepared, run_module, tmp_path)


@pytest.fixture(scope="module")
def nginx(prepared: LabHost) -> Iterator[None]:
    Site(prepared, lambda: {}, Path()).put(NGINX.encode(), f"{TOP}/nginx.conf")
    prepared.run(f"nginx -c {TOP}/nginx.conf")
    yield
    prepared.run(f"nginx -c {TOP}/nginx.conf -s stop")


# The same in two tests, so that the second one finds what the first one built.
COMMANDS = {"build_commands": ['echo "made by $(id -un)" > shop/made.txt; python -c "import django"']}


def test_a_release_from_source_to_node(site: Site, nginx: None) -> None:
    host = site.host
    site.options = dict(COMMANDS)

    # Check mode names the release and leaves nothing behind.
    foreseen = site.build(check=True)
    assert (foreseen["changed"], foreseen["build_needed"], foreseen["packs"]) == (True, True, {}), foreseen
    assert "packs" not in host.run(f"ls {TOP}")
    assert site.build(prepare=True)["build_needed"]

    build = site.build()
    assert build.get("built"), build
    name = build["release_id"]
    assert name == foreseen["release_id"]
    assert build["release"]["wsgi_application"] == "shop.wsgi:application"
    assert build["release"]["django"].startswith("5.2")
    static = host.run(f"tar -tzf {TOP}/packs/{name}-static.tar.gz").split()
    hashed = [one for one in static if one.startswith("static/site.") and one.endswith(".css") and one.count(".") == 2]
    assert len(hashed) == 1
    assert {"static/site.css.gz", "static/site.css.br", hashed[0] + ".br", "static/tiny.css"} <= set(static)
    assert "static/tiny.css.gz" not in static
    host.run(
        f"tar -xzOf {TOP}/packs/{name}-static.tar.gz static/site.css.gz | gzip -d | cmp - <(tar -xzOf"
        f" {TOP}/packs/{name}-static.tar.gz static/site.css)"
    )

    # Built is built: the second run is quick and changes nothing.
    start = time.monotonic()
    again = site.build()
    assert (again["changed"], again["packs"]) == (False, build["packs"])
    assert time.monotonic() - start < 10

    # To the static server, once.
    assert site.upload(check=True)["sent"] == {URL: [f"{name}.tar.gz", f"{name}-static.tar.gz"]}
    assert host.run(f"ls {TOP}/static/releases") == ""
    sent = site.upload()
    assert (sent["changed"], [one["id"] for one in sent["releases"]]) == (True, [name]), sent
    assert not site.upload()["changed"]
    # Damage of the same size is found by the checksum; a server made anew gets everything.
    there = f"{TOP}/static/releases/{name}.tar.gz"
    host.run(f"truncate -s -8 {there}; printf 12345678 >> {there}")
    assert site.upload()["sent"] == {URL: [f"{name}.tar.gz"]}
    host.run(f"rm {TOP}/static/releases/*")
    assert len(site.upload()["sent"][URL]) == 2

    # On the node, without any network but the static server.
    assert site.install(build, check=True)["changed"]
    assert "home" not in host.run(f"ls {TOP}")
    installed = site.install(build)
    assert installed.get("installed"), installed
    assert installed["source"] == f"{URL}{name}.tar.gz"
    release = f"{TOP}/home/releases/{name}"
    environment = build["packs"]["release"]["head"]["environment"]
    assert host.run(f"readlink -f {release}/venv").strip() == f"{TOP}/home/environments/{environment}/venv"
    assert sorted(host.run(f"ls -A {TOP}/home/environments/{environment}").split()) == [
        "environment.json", "requirements.txt", "venv"
    ]  # fmt: skip
    assert installed["release"] == json.loads(host.run(f"cat {release}/release.json"))
    assert sorted(host.run(f"ls {release}").split()) == ["release.json", "requirements.txt", "source", "static", "venv"]
    assert host.run(f"cat {release}/source/shop/made.txt") == "made by django-build\n"
    assert "site.css" in host.run(f"cat {release}/static/staticfiles.json")
    assert host.run(f"find {TOP}/home ! -user root; find {TOP}/home -perm /022 ! -type l") == ""
    assert "settings.cpython-3" in host.run(f"ls {release}/source/shop/__pycache__")
    assert "shortcuts.cpython-3" in host.run(f"ls {release}/venv/lib/python3*/site-packages/django/__pycache__")
    check = f"cd {release}/source && DJANGO_SETTINGS_MODULE=shop.settings runuser -u nobody -- ../venv/bin/python -c"
    assert host.run(f"{check} 'import django, shop.wsgi, gunicorn; print(gunicorn.__version__)'") == "27.0.1\n"
    assert not site.install(build)["changed"]

    # An installation that was interrupted is begun anew.
    complete = f"{TOP}/home/environments/{environment}/environment.json"
    host.run(f"rm {release}/release.json {complete}; rm -rf {release}/venv/lib")
    host.run(f"touch {TOP}/home/releases/.tmp-x.tar.gz")
    assert site.install(build, check=True)["changed"]
    assert site.install(build)["installed"]
    assert host.run(f"ls -A {TOP}/home/releases").split() == [name]
    assert host.run(f"{check} 'import django; print(django.VERSION[0])'") == "5\n"

    # A server with another content under that name is not believed, nor is a pack for another Python.
    host.run(f"rm -rf {release}; cp {TOP}/packs/{name}-static.tar.gz {TOP}/static/releases/{name}.tar.gz")
    for needs_all in (False, True):
        refused = site.install(build)
        assert refused["failed"]
        assert "sha256" in refused["msg"]
        assert "Connection refused" in refused["msg"]
        assert host.run(f"ls -A {TOP}/home/releases") == ""
        host.run(f"rm {complete}" if not needs_all else "true")
    assert not site.upload()["failed"]

    # The packs have to be what was written; else they are built again, to the same bytes.
    host.run(f"printf x | dd of={TOP}/packs/{name}.tar.gz bs=1 seek=1000 conv=notrunc status=none")
    healed = site.build()
    assert (healed["built"], healed["packs"]) == (True, build["packs"])


def test_a_release_with_the_same_packages_brings_only_its_own(site: Site, nginx: None) -> None:
    host = site.host
    site.options = dict(COMMANDS)
    first = site.build(keep=1)
    # It is there already after the test before.
    assert not site.upload()["failed"]
    assert site.install(first)["installed"]
    (head, whole) = (first["packs"]["release"]["head"], first["packs"]["release"])
    assert head["size"] * 100 < whole["size"], first["packs"]

    # The source is another one, the packages are not: they are taken from the pack of the release before, as they are.
    site.files["shop/urls.py"] = "urlpatterns = []  # another one"
    second = site.build(keep=2)
    assert second["release_id"] != first["release_id"]
    assert "compile" not in second["durations"]
    new = second["packs"]["release"]
    assert new["head"]["environment"] == head["environment"]
    for pack in (whole, new):
        host.run(f"tail -c +{pack['head']['size'] + 1} {pack['path']} > {TOP}/{pack['sha256']}")
    # All but the checksum at the end.
    size = whole["size"] - head["size"] - 200
    host.run(f"cmp -n {size} {TOP}/{whole['sha256']} {TOP}/{new['sha256']}")
    host.run(f"rm {TOP}/{whole['sha256']} {TOP}/{new['sha256']}")
    assert site.upload()["changed"]
    # What the node does not need it does not read.
    there = f"{TOP}/static/releases/{new['file']}"
    host.run(f"truncate -s {new['head']['size']} {there}")
    inode = host.run(f"stat -c %i {TOP}/home/environments/*")
    installed = site.install(second)
    assert installed.get("installed"), installed
    assert "install" not in installed["durations"]
    assert host.run(f"stat -c %i {TOP}/home/environments/*") == inode
    release = f"{TOP}/home/releases/{second['release_id']}"
    check = f"cd {release}/source && DJANGO_SETTINGS_MODULE=shop.settings ../venv/bin/python -c"
    assert host.run(f"{check} 'import django, shop.urls, sys; print(sys.prefix)'") == f"{release}/venv\n"
    # A node that is new needs all of it.
    host.run(f"mv {TOP}/home {TOP}/other")
    assert "sha256" in site.install(second)["msg"]
    assert site.upload()["changed"]
    assert site.install(second)["installed"]
    assert host.run(f"rm -r {TOP}/home; mv {TOP}/other {TOP}/home; ls {TOP}/home/environments | wc -l") == "1\n"


@pytest.mark.full
def test_an_environment_goes_with_the_last_release_that_has_it(site: Site, nginx: None) -> None:
    host = site.host
    host.run(f"rm -rf {TOP}/home")
    first = site.build(keep=1)
    assert not site.upload()["failed"]
    assert site.install(first)["installed"]
    # Other packages are another environment.
    site.files["requirements.txt"] = "Django>=5.2,<5.3\nitsdangerous==2.2.0\n"
    other = site.build(keep=2)
    environments = [one["packs"]["release"]["head"]["environment"] for one in (first, other)]
    assert environments[0] != environments[1]
    assert site.upload()["changed"]
    assert site.install(other, keep=2)["installed"]
    assert sorted(host.run(f"ls {TOP}/home/environments").split()) == sorted(environments)
    assert site.install(other, keep=1)["removed"] == [first["release_id"]]
    assert host.run(f"ls {TOP}/home/environments").split() == environments[1:]


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        (
            {"shop/settings.py": "import shop.nothing_like_this"},
            {},
            ["importing the settings module shop.settings", "No module named 'shop.nothing_like_this'", "Traceback"],
        ),
        # Two requirements that exclude each other: uv's own words.
        (
            {"requirements.txt": "Django==5.2.1\nasgiref==2.0\n"},
            {},
            ["the lock file requirements.txt", "unsatisfiable"],
        ),
        pytest.param(
            {},
            {"extra_packages": ["sqlparse-none-such==2.0"]},
            ["adding sqlparse-none-such==2.0", "not found"],
            marks=pytest.mark.full,
        ),
        pytest.param(
            {"pylock.toml": 'lock-version = "7.0"'}, {}, ["pylock.toml", "lock-version"], marks=pytest.mark.full
        ),
        (
            {"uv.lock": "version = 1\n[[package]]\n", "pyproject.toml": ""},
            {},
            ["the lock file uv.lock", "Failed to parse"],
        ),
        pytest.param(
            {},
            {"build_commands": ["echo so far; false"]},
            ["build command 'echo so far; false'", "so far"],
            marks=pytest.mark.full,
        ),
        pytest.param(
            {"shop/assets/bad.css": "a { background: url(gone.png) }"},
            {},
            ["collectstatic", "gone.png"],
            marks=pytest.mark.full,
        ),
    ],
)
def test_what_goes_wrong_is_shown(site: Site, files: dict[str, str], options: dict[str, Any], words: list[str]) -> None:
    site.host.run(f"rm -rf {TOP}/packs")
    site.files.update(files)
    result = site.build(**options)
    assert result["failed"]
    assert [word for word in words if word not in result["msg"]] == [], result["msg"]
    assert site.host.run(f"ls {TOP}/packs 2>/dev/null || true") == ""


def test_a_python_that_does_not_fit_is_refused_before_anything_is_built(site: Site) -> None:
    site.host.run(f"rm -rf {TOP}/packs {TOP}/build")
    for prepare in (True, False):
        site.files["pyproject.toml"] = '[project]\nname = "shop"\nversion = "1"\nrequires-python = ">=3.99"\n'
        result = site.build(prepare=prepare)
        assert result["failed"]
        assert all(word in result["msg"] for word in (">=3.99", "pyproject.toml", "Debian 13 brings Python 3.13"))
    assert "build" not in site.host.run(f"ls {TOP}").split()


def test_a_pack_whose_names_lead_out_is_refused(site: Site) -> None:
    name, evil = "v1-0123456789ab", io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w:gz") as archive:
        member = tarfile.TarInfo("../../escaped")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    site.put(evil.getvalue(), f"{TOP}/evil/{name}.tar.gz")
    sha256 = site.host.run(f"sha256sum {TOP}/evil/{name}.tar.gz").split()[0]
    pack = {"sha256": sha256, "head": {"environment": "0" * 16, "size": len(evil.getvalue()), "sha256": sha256}}
    arguments = {"release_id": name, "pack": pack, "directory": f"{TOP}/evil", "home": f"{TOP}/home"}
    result = site.host.module("django_release", arguments)
    assert result["failed"]
    assert "leads out" in result["msg"]
    assert site.host.run(f"find {TOP} -name 'escaped*'") == ""
