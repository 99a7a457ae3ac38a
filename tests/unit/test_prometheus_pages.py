# SPDX-License-Identifier: GPL-3.0-or-later
"""The monitor's pages: every query is one, every word of panels.yml means something, Nginx serves them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from render import ROOT, evaluate, render

FILES = ROOT / "roles/prometheus/files"
PAGES = FILES / "pages"
PANELS: dict[str, Any] = yaml.safe_load((FILES / "panels.yml").read_text(encoding="utf-8"))
KEYS = {
    "tiles": {"title", "query", "unit", "label", "more", "limit", "worse", "one"},
    "charts": {"title", "query", "unit", "series", "stacked", "steps", "about", "least", "limit", "several"},
}
WHOLE = {"tiles": {"title", "query"}, "charts": {"title", "query", "unit", "series"}}


def panels() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, kind and panel."""
    for page in PANELS["pages"]:
        for kind in ("tiles", "charts"):
            for panel in page[kind]:
                yield f"{page['name']}: {panel['title']} ({kind})", kind, panel


def queries() -> dict[str, str]:
    found = {name: panel["query"] for name, _, panel in panels()}
    found |= {f"{name}, more": panel["more"]["query"] for name, _, panel in panels() if "more" in panel}
    found |= {f"mark: {mark['title']}": mark["query"] for mark in PANELS["marks"]}
    return found | {f"tiers: {name}": query for name, query in PANELS["tiers"].items()}


def test_every_query_is_one(tmp_path: Path) -> None:
    rules = [
        {"record": f"query_{number}", "expr": query.replace("$window", "60s")}
        for number, query in enumerate(queries().values())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "pages", "rules": rules}]}), encoding="utf-8")
    program = shutil.which("promtool")
    assert program, "this test needs promtool: Debian's prometheus"
    done = subprocess.run([program, "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"SUCCESS: {len(rules)} rules found" in done.stdout


def test_rates_look_back_as_far_as_the_page_says() -> None:
    """A rate over a fixed time shows holes, or hides what lies between two points, when another time is chosen."""
    for name, query in queries().items():
        for window in re.findall(r"\[(.*?)\]", query):
            assert window == "$window" or ("increase(" in query and window in ("1h", "1d")), name


@pytest.mark.parametrize(("name", "kind", "panel"), list(panels()), ids=[name for name, _, _ in panels()])
def test_every_word_of_a_panel_means_something(name: str, kind: str, panel: dict[str, Any]) -> None:
    units = re.findall(r"^  (\w+)[:,]", (PAGES / "format.js").read_text(encoding="utf-8").split("const UNITS")[1], re.M)
    assert WHOLE[kind] <= panel.keys() <= KEYS[kind]
    assert ("unit" in panel) != ("label" in panel)
    for item in (panel, panel.get("more", {})):
        assert item.get("unit", "count") in units
    assert panel.get("more", {"query": "", "unit": "", "text": "{}"}).keys() == {"query", "unit", "text"}
    limit = panel.get("limit", 0)
    if not isinstance(limit, int):
        assert limit["name"] in evaluate("prometheus", "__prometheus_limits_default")
    assert panel.get("worse", "above") in ("above", "below")
    for label in re.findall(r"\{(\w+)\}", panel.get("series", "")):
        assert label in panel["query"] or label == "host", "its query keeps that label"


def test_letters_of_marks_have_colours() -> None:
    style = (PAGES / "page.css").read_text(encoding="utf-8")
    for mark in PANELS["marks"]:
        assert style.count(f"--mark-{mark['letter']}:") == 2, "for light and for dark"
        assert f".mark-{mark['letter']} " in style


def test_each_tier_has_a_page_and_there_is_an_overview() -> None:
    names = [page["name"] for page in PANELS["pages"]]
    assert names == ["overview", "haproxy", "django", "postgresql", "redis", "nginx_static", "hosts"]
    assert all(page.get("tier", page["name"]) == page["name"] for page in PANELS["pages"])


def test_the_role_writes_every_file_of_the_pages() -> None:
    written = {Path(item["path"]).name: item["content"] for item in evaluate("prometheus", "__prometheus_pages_files")}
    assert written.keys() == {path.name for path in PAGES.iterdir()} | {"panels.json"}
    for path in PAGES.iterdir():
        assert written[path.name] == path.read_text(encoding="utf-8")
    told = json.loads(written["panels.json"])
    assert told["tiers"] == {name: count for name, count in told["tiers"].items() if isinstance(count, int)}
    assert (told["tiers"]["haproxy"], told["interval"], told["pages"]) == (3, 15, PANELS["pages"])


def test_nothing_comes_from_elsewhere() -> None:
    """Nor from the page's own text: the policy forbids both, and a browser would leave it out without a word."""
    for path in PAGES.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(|innerHTML|\bon\w+=\"|<style|style=", text), path.name
    markup = (PAGES / "index.html").read_text(encoding="utf-8")
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", markup))
    assert markup.count("<script") == markup.count("></script>") == 2


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_to_read(scheme: str) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for lines."""
    light, dark = (PAGES / "page.css").read_text(encoding="utf-8").split("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light if scheme == "light" else dark))
    for text in ("text", "soft", "link", "good", "poor", "bad"):
        for ground in ("ground", "card"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for state in ("good", "poor", "bad"):
        assert contrast(colours["text"], colours[f"{state}-ground"]) >= 4.5
        assert contrast(colours[state], colours[f"{state}-ground"]) >= 4.5, state
    for name in colours:
        if name.startswith("mark-"):
            assert contrast(colours["card"], colours[name]) >= 4.5, name
        elif name.startswith("line-"):
            assert contrast(colours["card"], colours[name]) >= 3, name


def test_the_pages_are_behind_the_login_and_bring_their_policy() -> None:
    text = render("prometheus", "door.conf.j2")
    for place in (
        "^/(overview|haproxy|django|postgresql|redis|nginx_static|hosts)?$",
        "/pages/",
        r"^/pages/dygraph\.(js|css)$",
    ):
        block = text.split(f"{place} {{")[1].split("}")[0]
        for header in ("Content-Security-Policy", "X-Frame-Options DENY", "X-Content-Type-Options nosniff", "no-cache"):
            assert header in block, place
    assert "unsafe" not in text
