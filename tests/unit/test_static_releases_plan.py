# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions of static_releases, by tables."""

from __future__ import annotations

import pytest
from ansible_collections.flotilla.django.plugins.module_utils._static_releases_plan import (
    Info,
    Manifest,
    Pack,
    check_packs,
    check_release_ids,
    expected,
    from_json,
    is_published,
    member_path,
    modified,
    prune,
    publish,
    release_of_pack,
    release_of_transfer,
    to_json,
    tree_problem,
)

A, B, C = (Info(size, letter * 64) for size, letter in ((1, "a"), (2, "b"), (3, "c")))


def pack(name: str, age: int) -> Pack:
    return Pack(name, f"{name}-static.tar.gz", 100, age, name[0] * 64)


def manifest(name: str, age: int, **files: Info) -> Manifest:
    return Manifest(pack(name, age), {path.replace("__", "."): info for path, info in files.items()})


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("static", None),
        ("static/", None),
        ("./static", None),
        ("static/a.css", "a.css"),
        ("./static/css/a.css", "css/a.css"),
        ("static/css/", "css"),
        ("static/..a/b..c", "..a/b..c"),
        ("static/a b/ü.css", "a b/ü.css"),
    ],
)
def test_members_below_static(name: str, path: str | None) -> None:
    assert member_path(name) == path


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "/static/a.css",
        "a.css",
        "staticfiles/a.css",
        "static/../a.css",
        "static/a/../../b",
        "static/./a",
        "static//a",
        "static/..",
        "../static/a.css",
        "static/a\nb",
        "static/a\0b",
    ],
)
def test_members_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="does not lead to a place below static/"):
        member_path(name)


@pytest.mark.parametrize(
    ("name", "static", "transfer"),
    [
        ("v1-0123-static.tar.gz", "v1-0123", "v1-0123"),
        ("v1-0123.tar.gz", None, "v1-0123"),
        ("v1-static-static.tar.gz", "v1-static", "v1-static"),
        (".hidden-static.tar.gz", None, None),
        ("v1-static.tar.gz.part", None, None),
        ("../v1-static.tar.gz", None, None),
        ("v1-static.tar", None, None),
    ],
)
def test_file_names(name: str, static: str | None, transfer: str | None) -> None:
    assert (release_of_pack(name), release_of_transfer(name)) == (static, transfer)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"release_id": "../x", "file": "x"}, "'../x' is no release"),
        ({"release_id": "r1", "file": "r2-static.tar.gz"}, "wanted r1-static.tar.gz"),
        ({"release_id": "r1", "file": "r1.tar.gz"}, "wanted r1-static.tar.gz"),
        ({"release_id": "r1", "file": "r1-static.tar.gz", "sha256": "ABC"}, "wanted 64 hexadecimal digits"),
    ],
)
def test_bad_packs(item: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_packs([item])


def test_bad_release_names() -> None:
    with pytest.raises(ValueError, match="keep: 'a/b' is no release"):
        check_release_ids(["ok", "a/b"], "keep")


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        ([], ""),
        (["a/b", "a/c", "ab"], ""),
        (["a", "a/b"], "'a' is a file and a directory"),
        (["a/b", "a/b/c/d"], "'a/b' is a file and a directory"),
    ],
)
def test_tree_problem(paths: list[str], problem: str) -> None:
    assert tree_problem(paths) == problem


@pytest.mark.parametrize(
    ("now", "known", "published"),
    [
        (Pack("r", "f", 9, 5), None, False),
        (Pack("r", "f", 9, 5), Pack("r", "f", 9, 5, "a"), True),
        (Pack("r", "f", 9, 6), Pack("r", "f", 9, 5, "a"), False),
        (Pack("r", "f", 9, 6, "a"), Pack("r", "f", 9, 5, "a"), True),
        (Pack("r", "f", 9, 6, "b"), Pack("r", "f", 9, 5, "a"), False),
    ],
)
def test_is_published(now: Pack, known: Pack | None, published: bool) -> None:
    assert is_published(now, Manifest(known) if known else None) is published


class TestPublish:
    def test_new_changed_and_equal_files(self) -> None:
        plan = publish(pack("r1", 1), {"new": A, "changed": B, "equal": C}, {"changed": A, "equal": C}, [])
        assert (plan.added, plan.replaced, plan.stale) == (["new"], ["changed"], [])

    def test_an_older_pack_leaves_what_a_newer_one_has(self) -> None:
        newer = manifest("r2", 2, x__css=B)
        plan = publish(pack("r1", 1), {"x.css": A, "own.css": A}, {"x.css": B}, [newer])
        assert (plan.added, plan.replaced) == (["own.css"], [])

    def test_a_newer_pack_wins(self) -> None:
        plan = publish(pack("r2", 2), {"x.css": B}, {"x.css": A}, [manifest("r1", 1, x__css=A)])
        assert plan.replaced == ["x.css"]

    def test_packs_of_the_same_moment_are_ordered_by_name(self) -> None:
        assert publish(pack("a", 1), {"x": A}, {"x": B}, [manifest("b", 1, x=B)]).replaced == []
        assert publish(pack("b", 1), {"x": B}, {"x": A}, [manifest("a", 1, x=A)]).replaced == ["x"]

    def test_compressed_siblings_of_replaced_content_go(self) -> None:
        old = manifest("r1", 1, x__css=A, x__css__br=A, x__css__gz=A)
        there = {"x.css": A, "x.css.br": A, "x.css.gz": A}
        plan = publish(pack("r2", 2), {"x.css": B, "x.css.gz": B}, there, [old])
        assert (plan.replaced, plan.stale) == (["x.css", "x.css.gz"], ["x.css.br"])

    def test_siblings_of_equal_content_stay(self) -> None:
        old = manifest("r1", 1, x__css=A, x__css__br=A)
        plan = publish(pack("r2", 2), {"x.css": A}, {"x.css": A, "x.css.br": A}, [old])
        assert (plan.writes, plan.stale) == (set(), [])

    def test_a_sibling_of_older_content_does_not_come_back(self) -> None:
        newer = manifest("r2", 2, x__css=B)
        plan = publish(pack("r1", 1), {"x.css": A, "x.css.br": A}, {"x.css": B}, [newer])
        assert plan.writes == set()


def test_expected_is_the_newest_of_each() -> None:
    wanted = expected([manifest("r2", 2, x__css=B, same=A), manifest("r1", 1, x__css=A, x__css__br=A, same=A, old=C)])
    assert wanted == {"x.css": ("r2", B), "same": ("r2", A), "old": ("r1", C)}


class TestPrune:
    all = (manifest("r1", 1, x=A, one=A), manifest("r2", 2, x=B, two=A), manifest("r3", 3, three=A))
    packs = ("r1-static.tar.gz", "r1.tar.gz", "r2-static.tar.gz", "r3-static.tar.gz", "r4.tar.gz")

    def test_only_what_no_kept_release_has(self) -> None:
        plan = prune(["r2", "r3"], "r3", self.all, self.packs)
        assert (plan.releases, plan.files, plan.packs) == (["r1"], ["one"], ["r1-static.tar.gz", "r1.tar.gz"])
        assert plan.restore == []

    def test_content_that_the_removed_release_had_replaced_comes_back(self) -> None:
        plan = prune(["r1"], "", self.all, self.packs)
        assert (plan.releases, plan.files, plan.restore) == (["r2"], ["two"], ["r1"])

    def test_current_and_newest_are_never_removed(self) -> None:
        assert prune(["r2"], "r1", self.all, self.packs).releases == []
        assert prune(["r9"], "r1", self.all, self.packs).releases == ["r2"]

    def test_a_pack_that_is_not_published_yet_stays(self) -> None:
        assert "r4.tar.gz" not in prune(["r3"], "", self.all, self.packs).packs

    def test_keeping_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="keep is empty"):
            prune([], "r1", self.all, self.packs)


@pytest.mark.parametrize(("there", "time"), [(None, 1000), ((999, 7), 1000), ((1000, 8), 1000), ((1000, 7), 1001)])
def test_new_content_never_has_the_etag_of_the_old(there: tuple[int, int] | None, time: int) -> None:
    assert modified(1000, 7, there) == time


def test_manifest_is_what_was_written() -> None:
    item = manifest("r1", 1, x__css=A)
    assert from_json(to_json(item)) == item
    with pytest.raises(ValueError, match="version 9 is unknown"):
        from_json({**to_json(item), "version": 9})
