# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions of config_files, by tables."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.flotilla.django.plugins.module_utils._config_files_plan import (
    Names,
    Observed,
    parse,
    plan,
    scrub,
)

NAMES = Names({"root": 0, "web": 33, "nobody-knows": None}, {"root": 0, "web": 33, "nobody-knows": None})
FILE = Observed("file", b"old\n", 0, 0, 0o644)
DIRECTORY = Observed("directory", None, 0, 0, 0o755)
LINK = Observed("link", None, 0, 0, 0o777, "/b")
LINK_TO_DIRECTORY = Observed("link", None, 0, 0, 0o755, "/b", leads_to_directory=True)
NOTHING = Observed()


def verbs(item: dict[str, Any], now: Observed, check_mode: bool = False) -> list[str]:
    entries = parse([{"path": "/x/a", **item}])
    return [action.verb for action in plan(entries, {"/x/a": now}, NAMES, check_mode)]


@pytest.mark.parametrize(
    ("item", "now", "expected"),
    [
        ({"content": "old\n"}, FILE, []),
        ({"secret_content": "old\n"}, FILE, []),
        ({"content": "old\n", "mode": "0600"}, FILE, ["attributes"]),
        ({"content": "old\n", "owner": "web"}, FILE, ["attributes"]),
        ({"content": "old\n", "group": "web"}, FILE, ["attributes"]),
        ({"content": "new\n"}, FILE, ["write"]),
        ({"content": ""}, FILE, ["write"]),
        ({"content": ""}, NOTHING, ["write"]),
        ({"content": "old\n"}, LINK, ["write"]),
        ({"state": "directory"}, NOTHING, ["mkdir"]),
        ({"state": "directory"}, DIRECTORY, []),
        ({"state": "directory"}, LINK_TO_DIRECTORY, []),
        ({"state": "directory", "mode": "0700"}, LINK_TO_DIRECTORY, ["attributes"]),
        ({"state": "directory", "mode": "2775"}, DIRECTORY, ["attributes"]),
        ({"state": "absent"}, NOTHING, []),
        ({"state": "absent"}, FILE, ["remove"]),
        ({"state": "absent"}, LINK, ["remove"]),
        ({"state": "link", "target": "/b"}, LINK, []),
        ({"state": "link", "target": "/c"}, LINK, ["link"]),
        ({"state": "link", "target": "/b"}, FILE, ["link"]),
        ({"state": "link", "target": "/b"}, NOTHING, ["link"]),
    ],
)
def test_steps(item: dict[str, Any], now: Observed, expected: list[str]) -> None:
    assert verbs(item, now) == expected
    assert verbs(item, now, check_mode=True) == expected


@pytest.mark.parametrize(
    ("item", "now", "message"),
    [
        ({"content": "", "owner": "nobody-knows"}, NOTHING, "user nobody-knows does not exist"),
        ({"state": "directory", "group": "nobody-knows"}, NOTHING, "group nobody-knows does not exist"),
        ({"content": ""}, Observed(parent_exists=False), "directory /x does not exist"),
    ],
)
def test_what_a_package_may_bring_is_refused_only_outside_check_mode(
    item: dict[str, Any], now: Observed, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        verbs(item, now)
    assert verbs(item, now, check_mode=True) in (["write"], ["mkdir"])


def test_a_directory_listed_before_is_a_parent() -> None:
    entries = parse([{"path": "/x", "state": "directory"}, {"path": "/x/a", "content": "1"}])
    observed = {"/x": NOTHING, "/x/a": Observed(parent_exists=False)}
    assert [action.path for action in plan(entries, observed, NAMES)] == ["/x", "/x/a"]
    with pytest.raises(ValueError, match="list it before"):
        plan(reversed(entries), observed, NAMES)


@pytest.mark.parametrize(
    ("item", "now", "message"),
    [
        ({"content": ""}, DIRECTORY, "a directory is in the way of the file"),
        ({"state": "link", "target": "/b"}, DIRECTORY, "a directory is in the way of the link"),
        ({"state": "directory"}, FILE, "a file is in the way of the directory"),
        ({"state": "directory"}, LINK, "a link is in the way of the directory"),
        ({"content": ""}, Observed("other"), "neither a file"),
    ],
)
def test_conflicts_are_refused_in_check_mode_too(item: dict[str, Any], now: Observed, message: str) -> None:
    for check_mode in (False, True):
        with pytest.raises(ValueError, match=message):
            verbs(item, now, check_mode)


def test_all_problems_are_told_at_once() -> None:
    entries = parse(
        [{"path": "/x/a", "content": "", "owner": "nobody-knows"}, {"path": "/x/b", "content": "", "group": "who"}]
    )
    with pytest.raises(ValueError, match=r"/x/a: user nobody-knows .*; /x/b: group who "):
        plan(entries, {"/x/a": NOTHING, "/x/b": NOTHING}, NAMES)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([{"path": "a", "content": ""}], "absolute"),
        ([{"path": "/a/../b", "content": ""}], r"'\.\.'"),
        ([{"path": "/a"}], "needs content or secret_content"),
        ([{"path": "/a", "content": "", "secret_content": ""}], "exclude each other"),
        ([{"path": "/a", "state": "directory", "content": ""}], "only for state: file"),
        ([{"path": "/a", "state": "link"}], "belong together"),
        ([{"path": "/a", "content": "", "target": "/b"}], "belong together"),
        ([{"path": "/a", "content": "", "validate": "true"}], "must contain %s"),
        ([{"path": "/a", "state": "absent", "validate": "x %s"}], "only for state: file"),
        ([{"path": "/a", "content": "", "mode": "420"}], "four octal digits in quotes"),
        ([{"path": "/a", "content": "", "mode": "u=rw"}], "four octal digits"),
        ([{"path": "/a", "state": "absent", "mode": "0644"}], "mode is only for"),
        ([{"path": "/a", "content": ""}, {"path": "/a/", "content": ""}], "listed twice"),
    ],
)
def test_bad_input(files: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(files)


@pytest.mark.parametrize("now", [NOTHING, FILE, Observed("file", b"hunter2-old", 33, 0, 0o600), LINK])
def test_the_diff_of_a_secret_shows_neither_what_is_nor_what_was(now: Observed) -> None:
    entries = parse([{"path": "/x/a", "secret_content": "hunter2-new"}])
    (action,) = plan(entries, {"/x/a": now}, NAMES)
    assert "hunter2" not in repr(action)
    assert "old\n" not in repr(action.diff)
    assert "content differs (secret)" in action.diff[0]["after"]


def test_the_diff_shows_content_and_attributes() -> None:
    entries = parse([{"path": "/x/a", "content": "new\n", "mode": "0600", "owner": "web"}])
    (action,) = plan(entries, {"/x/a": FILE}, NAMES)
    content, attributes = action.diff
    assert (content["before"], content["after"]) == ("old\n", "new\n")
    assert attributes["before"] == "owner: root\ngroup: root\nmode: 0644\n"
    assert attributes["after"] == "owner: web\ngroup: root\nmode: 0600\n"


def test_content_that_is_no_text_is_not_shown() -> None:
    entries = parse([{"path": "/x/a", "content": "new\n"}])
    (action,) = plan(entries, {"/x/a": Observed("file", b"\xff\xfe", 0, 0, 0o644)}, NAMES)
    assert action.diff[0]["before"] == "2 bytes that are not UTF-8 text\n"


@pytest.mark.parametrize(
    ("secret", "printed"),
    [
        ("s3cret-word", "bad token s3cret-word in line 1"),
        ("user=me password='s3cret-word'\n", "bad token s3cret-word in line 1"),
        ("requirepass s3cret-word\n", "line 1: >requirepass s3cret-word<"),
        ("postgres://me:s3cret-word@db/x", "cannot parse me:s3cret-word@db"),
    ],
)
def test_scrub(secret: str, printed: str) -> None:
    cleaned = scrub(printed, parse([{"path": "/a", "secret_content": secret}, {"path": "/b", "content": "line"}]))
    assert "s3cret" not in cleaned
    assert "********" in cleaned
