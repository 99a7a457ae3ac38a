# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions about releases, by tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _django_release_plan as plan
from ansible_collections.flotilla.django.plugins.module_utils._django_release_plan import Requirement

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
HOST = plan.Host(python="3.13", python_full="3.13.5", arch="x86_64", debian="13")


@pytest.mark.parametrize(
    ("version", "prefix"),
    [("v4.2", "v4.2-"), ("", "local-"), ("feature/new login", "feature-new-login-"), ("../x", "x-"), ("ä", "local-")],
)
def test_a_release_is_named_after_its_version(version: str, prefix: str) -> None:
    name = plan.release_id(version, {"a": 1})
    assert name.startswith(prefix)
    assert len(name) == len(prefix) + 12
    assert plan.is_release_id(name)


def test_a_release_is_named_after_what_it_is_built_from() -> None:
    assert plan.release_id("v1", {"a": 1, "b": 2}) == plan.release_id("v1", {"b": 2, "a": 1})
    assert plan.release_id("v1", {"a": 1}) != plan.release_id("v1", {"a": 2})


@pytest.mark.parametrize(
    "name", ["", "x", "../v1-0123456789ab", ".v1-0123456789ab", "v1-0123456789AB", "a/b-0123456789ab"]
)
def test_what_is_no_name_of_a_release(name: str) -> None:
    assert not plan.is_release_id(name)


def test_an_environment_is_named_after_the_packages_and_the_host() -> None:
    name = plan.environment_name("django==5.2", "uv==1", HOST)
    assert plan.is_environment(name)
    assert plan.environment_name("django==5.2", "uv==1", replace(HOST, python_full="3.13.9")) == name
    others = [("django==5.3", "uv==1", HOST), ("django==5.2", "uv==2", HOST)]
    others += [
        ("django==5.2", "uv==1", replace(HOST, python="3.11")),
        ("django==5.2", "uv==1", replace(HOST, arch="x")),
    ]
    others.append(("django==5.2", "uv==1", replace(HOST, debian="12")))
    assert len({name, *(plan.environment_name(*other) for other in others)}) == 6
    assert plan.environment_of(plan.environment_link(name)) == name


@pytest.mark.parametrize(
    "link",
    ["", "venv", "/opt/venv", "../../environments/x/venv", f"../../environments/{'0' * 16}", f"../{'0' * 16}/venv"],
)
def test_what_is_no_link_to_an_environment(link: str) -> None:
    assert plan.environment_of(link) == ""


@pytest.mark.parametrize(
    ("version", "specifiers", "fits"),
    [
        ("3.13.5", ">=3.11", True),
        ("3.11.2", ">=3.12", False),
        ("3.11.2", ">=3.11.4", False),
        ("3.13.5", ">=3.10,<3.13", False),
        ("3.13.5", ">= 3.10, < 4", True),
        ("3.13.5", "~=3.11", True),
        ("3.13.5", "~=3.12.1", False),
        ("3.13.5", "==3.13.*", True),
        ("3.13.5", "==3.13", False),
        ("3.13.0", "==3.13", True),
        ("3.13.5", "!=3.13.*", False),
        ("3.13.5", "!=3.13.4", True),
        ("3.13.5", ">3.13", True),
        ("3.9.2", ">=3.10", False),
        ("3.13.5", "<=3.13", False),
        ("3.13.5", "", True),
    ],
)
def test_requires_python(version: str, specifiers: str, fits: bool) -> None:
    assert plan.python_satisfies(version, specifiers) is fits


@pytest.mark.parametrize("text", ["^3.11", "3.11", ">=three"])
def test_an_unreadable_requires_python(text: str) -> None:
    with pytest.raises(ValueError, match="requires-python"):
        plan.python_satisfies("3.13.5", text)


def test_a_wrong_python_is_named_with_both_versions() -> None:
    text = plan.python_problem(HOST, ">=3.14", "pyproject.toml", "app1")
    assert all(word in text for word in (">=3.14", "pyproject.toml", "app1", "3.13.5", "Debian 13"))
    assert plan.python_problem(HOST, ">=3.11", "pyproject.toml", "app1") == ""
    assert plan.python_problem(HOST, "", "", "app1") == ""


REQUIREMENTS = f"""\
# made by a tool
--index-url https://example.com/simple
Django==5.2.1 \\
    --hash={A} \\
    --hash={B}
    # via shop
psycopg[binary]==3.2.1 ; sys_platform == 'linux' --hash={C}
./libs/tools
shop-api @ git+https://example.com/api.git@abc
"""


def test_requirements_are_read_and_written() -> None:
    found = plan.parse_requirements(REQUIREMENTS)
    assert found == [
        Requirement("django", "Django==5.2.1", (A, B)),
        Requirement("psycopg", "psycopg[binary]==3.2.1 ; sys_platform == 'linux'", (C,)),
        Requirement("", "./libs/tools"),
        Requirement("shop-api", "shop-api @ git+https://example.com/api.git@abc"),
    ]
    assert plan.parse_requirements(plan.write_requirements(found)) == sorted(found, key=lambda one: one.name)


@pytest.mark.parametrize(
    ("extras", "locked", "wanted"),
    [
        (["gunicorn==27.0.1"], [], ["gunicorn==27.0.1"]),
        (["gunicorn==27.0.1"], ["gunicorn"], ["gunicorn"]),
        (["psycopg[binary]==3.3.9"], ["psycopg"], ["psycopg[binary]"]),
        (["Django_Redis>=6"], ["django-redis"], ["Django_Redis"]),
        (["django-redis==7"], ["redis"], ["django-redis==7"]),
    ],
)
def test_the_projects_own_pins_win(extras: list[str], locked: list[str], wanted: list[str]) -> None:
    assert plan.extras_for(extras, [Requirement(name, name) for name in locked]) == wanted


def test_a_nonsense_extra_package() -> None:
    with pytest.raises(ValueError, match="django_extra_packages"):
        plan.extras_for(["==1"], [])


def test_the_hashes_of_the_lock_win_over_those_of_the_registry() -> None:
    locked = [Requirement("django", "django==5.2 ; python_version > '3'", (A,)), Requirement("old", "old==1", (A,))]
    resolved = [
        Requirement("django", "django==5.2", (A, B)),
        Requirement("old", "old==2", (B,)),
        Requirement("new", "new==1", (C,)),
    ]
    merged = plan.with_locked_hashes(resolved, locked)
    assert [one.hashes for one in merged] == [(A,), (B,), (C,)]


PYLOCK = """
lock-version = "1.0"
default-groups = ["base"]
[[packages]]
name = "django"
version = "5.2"
sdist = { url = "x", hashes = { sha256 = "bb" } }
wheels = [{ url = "y", hashes = { sha256 = "aa", md5 = "00" } }]
[[packages]]
name = "colorama"
version = "1"
marker = "sys_platform == 'win32'"
wheels = [{ url = "y", hashes = { sha256 = "cc" } }]
[[packages]]
name = "pytest"
version = "9"
marker = "'dev' in dependency_groups"
wheels = [{ url = "y", hashes = { sha256 = "dd" } }]
[[packages]]
name = "core"
version = "2"
marker = "('base' in dependency_groups or 's3' in extras) and python_version >= '3.11'"
wheels = [{ url = "y", hashes = { sha256 = "ee" } }]
[[packages]]
name = "boto3"
version = "3"
marker = "'s3' in extras"
wheels = [{ url = "y", hashes = { sha256 = "ff" } }]
[[packages]]
name = "api"
vcs = { type = "git", url = "https://example.com/api.git", commit-id = "abc" }
[[packages]]
name = "tools"
directory = { path = "libs/tools" }
"""


@pytest.mark.parametrize(
    ("groups", "extras", "more"), [([], [], []), (["dev"], [], ["pytest==9"]), ([], ["s3"], ["boto3==3"])]
)
def test_pylock(groups: list[str], extras: list[str], more: list[str]) -> None:
    found = plan.parse_requirements(plan.pylock_requirements(PYLOCK, groups, extras))
    always = [
        "django==5.2",
        "colorama==1 ; sys_platform == 'win32'",
        "core==2",
        "api @ git+https://example.com/api.git@abc",
        "./libs/tools",
    ]
    assert sorted(one.line for one in found) == sorted(always + more)
    assert plan.pylock_requirements(PYLOCK).startswith(
        "django==5.2 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
    )


@pytest.mark.parametrize(
    ("text", "words"), [("[x", "TOML"), ('lock-version = "2.0"', "lock-version"), ("", "lock-version")]
)
def test_a_pylock_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan.pylock_requirements(text)


@pytest.mark.parametrize(
    ("filename", "line"),
    [
        ("django-5.2.1-py3-none-any.whl", "django==5.2.1"),
        ("Zope.Interface-1.0+local-1-cp313-cp313-manylinux_2_28_x86_64.whl", "zope-interface==1.0+local"),
        ("django_redis-7.0.0-py3-none-any.whl", "django-redis==7.0.0"),
    ],
)
def test_a_wheel_is_pinned(filename: str, line: str) -> None:
    assert plan.wheel_requirement(filename, "a" * 64).line == line
    with pytest.raises(ValueError):
        plan.wheel_requirement("django-5.2.1.tar.gz", "a" * 64)


@pytest.mark.parametrize(
    ("setting", "module", "wanted"),
    [
        ("shop.wsgi.application", "", "shop.wsgi:application"),
        ("a.b.app", "c.wsgi", "a.b:app"),
        ("", "shop.wsgi", "shop.wsgi:application"),
        ("", "", ""),
    ],
)
def test_what_gunicorn_loads(setting: str, module: str, wanted: str) -> None:
    assert plan.wsgi_application(setting, module) == wanted


@pytest.mark.parametrize(
    ("name", "size", "wanted"),
    [
        ("app.css", 2000, True),
        ("app.CSS", 2000, True),
        ("app.css", 1024, False),
        ("photo.jpg", 9000, False),
        ("font.woff2", 9000, False),
        ("font.ttf", 9000, True),
        ("LICENSE", 9000, False),
        ("app.css.gz", 9000, False),
    ],
)
def test_what_is_compressed(name: str, size: int, wanted: bool) -> None:
    assert plan.compressible(name, size) is wanted


def test_the_time_of_a_static_file_follows_its_content() -> None:
    assert plan.static_mtime("0" * 64) == 1_000_000_000
    assert plan.static_mtime("a" * 64) != plan.static_mtime("b" * 64)
    assert plan.static_mtime("f" * 64) < 1_500_000_000


@pytest.mark.parametrize(
    ("keep", "protected", "removed"),
    [(2, [], ["c", "d"]), (2, ["d"], ["c"]), (1, ["c", ""], ["b", "d"]), (9, [], [])],
)
def test_pruning(keep: int, protected: list[str], removed: list[str]) -> None:
    result = plan.prune(["a", "b", "c", "d"], keep, protected)
    assert result.remove == removed
    assert sorted(result.keep + result.remove) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("release", "refused"),
    [
        ({"python": "3.13", "arch": "x86_64"}, False),
        ({"python": "3.11", "arch": "x86_64"}, True),
        ({"python": "3.13", "arch": "aarch64"}, True),
        ({}, True),
    ],
)
def test_a_pack_for_another_machine_is_refused(release: dict[str, str], refused: bool) -> None:
    assert bool(plan.pack_problem({**release, "environment": "0" * 16}, HOST, "app2")) is refused
    assert plan.pack_problem(release, HOST, "app2"), "without an environment, as archives once were"


def test_dealing_out() -> None:
    items = [Requirement(str(number), str(number)) for number in range(5)]
    assert [len(part) for part in plan.chunks(items, 4)] == [2, 1, 1, 1]
    assert plan.chunks([], 4) == []


def test_tail() -> None:
    assert plan.tail("a\nb\nc\n", 2) == "...\nb\nc"
    assert plan.tail("a\n", 2) == "a"
