# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages that people look at: behind the login, with data in every panel, in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from monitor import HOST, Monitor

from tests.browser import Browser, Page
from tests.cluster import Lab, wait_until
from tests.load.load import Load, run

NAMES = ["overview", "haproxy", "django", "postgresql", "redis", "nginx_static", "hosts"]
DRAWN = "document.body.dataset.round"


@pytest.fixture(scope="module")
def panels(monitor: Monitor) -> dict[str, Any]:
    return dict(monitor.get("/pages/panels.json"))


@pytest.fixture(scope="module")
def asked(lab: Lab) -> None:
    """A little of everything, so that there are rates."""
    load = Load(url="https://flotilla.test", address=lab.shared_address(), ca=str(lab.certificate), rate=20, seconds=10)
    assert run(load)["failed"] == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


def look(browser: Browser, monitor: Monitor, name: str, width: int = 1280, dark: bool = False) -> Page:
    page = browser.page(width=width, dark=dark, login=("admin", monitor.password))
    page.open(f"{monitor.url}/{'' if name == 'overview' else name}")
    page.wait(DRAWN)
    return page


@pytest.mark.parametrize(
    "path", ["/", *(f"/{name}" for name in NAMES), "/pages/page.js", "/pages/dygraph.js", "/pages/panels.json"]
)
def test_the_pages_are_behind_the_login(monitor: Monitor, path: str) -> None:
    assert httpx.get(monitor.url + path, trust_env=False).status_code == 401
    answer = monitor.client.get(path)
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_what_is_no_page_is_not_found(monitor: Monitor) -> None:
    for path in ("/nothing", "/pages/../users", "/pages/%2e%2e/users", "/pages/nothing.js"):
        assert monitor.client.get(path).status_code in (400, 404), path


@pytest.mark.usefixtures("asked")
def test_every_query_of_every_panel_returns_data(monitor: Monitor, panels: dict[str, Any]) -> None:
    asked = {f"mark: {item['title']}": item["query"] for item in panels["marks"]}
    asked |= {f"tiers: {name}": query for name, query in panels["answers"].items()}
    for page in panels["pages"]:
        for panel in page["tiles"] + page["charts"]:
            asked[f"{page['name']}: {panel['title']}, {panel.get('unit')}"] = panel["query"]
            if "more" in panel:
                asked[f"{page['name']}: {panel['title']}, more"] = panel["more"]["query"]

    def answered() -> bool:
        empty = []
        for name, query in asked.items():
            found = monitor.get("/prometheus/api/v1/query", query=query.replace("$window", "60s"))["data"]["result"]
            if not any(item["value"][1] not in ("NaN", "+Inf", "-Inf") for item in found):
                empty.append(name)
        assert not empty, empty
        return True

    # Two questions to each target after the load.
    wait_until(answered, 45, "every panel has data", 3)


@pytest.mark.parametrize(("width", "dark"), [(390, True), pytest.param(1280, False, marks=pytest.mark.full)])
def test_each_page_shows_its_panels_in_a_browser(browser: Browser, monitor: Monitor, width: int, dark: bool) -> None:
    for name in NAMES:
        page = look(browser, monitor, name, width, dark)
        assert page.errors == [], name
        assert page.evaluate("document.documentElement.scrollWidth") == width, f"{name} does not scroll sideways"
        charts = page.evaluate(
            "[...document.querySelectorAll('.chart')].map((c) => [c.querySelector('h2').textContent, c.dataset.state])"
        )
        assert charts
        assert {state for _, state in charts} == {"drawn"}, (name, charts)
        names = page.evaluate(
            "[...document.querySelectorAll('.canvas')].every((c) => c.getAttribute('aria-label').length > 20)"
        )
        assert names, "a chart says what it is"


def test_the_overview_says_what_the_cluster_says(browser: Browser, monitor: Monitor, lab: Lab) -> None:
    page = look(browser, monitor, "overview")
    tiles = dict(
        page.evaluate(
            "[...document.querySelectorAll('.tile')].map((tile) =>"
            " ['h2', '.value'].map((part) => tile.querySelector(part).textContent))"
        )
    )
    primaries = [host for host in ("data1", "data2") if lab.sql(host, "SELECT pg_is_in_recovery()") == "f"]
    assert [tiles["PostgreSQL primary"]] == primaries
    assert tiles["Redis master"] in ("data1", "data2")
    assert tiles["Release"] == lab.ssh("web1", "readlink /srv/django/current").strip().rsplit("/", 1)[1]
    for title in ("Requests", "Sessions", "Fullest disk"):
        assert tiles[title][0].isdigit(), tiles
    tiers = page.evaluate("[...document.querySelectorAll('#tiers a')].map((a) => a.textContent)")
    assert tiers == ["Balancers2/2up", "Django2/2up", "PostgreSQL2/2up", "Redis2/2up", "Static files1/1up"]
    assert page.evaluate("document.getElementById('alerts-title').textContent") == "No alert"
    for link in page.evaluate("[...document.querySelectorAll('#own a, .ask')].slice(0, 4).map((a) => a.href)"):
        assert monitor.client.get(link).status_code == 200, link


def test_a_time_is_chosen_and_stays_chosen(browser: Browser, monitor: Monitor) -> None:
    page = look(browser, monitor, "overview")
    page.evaluate("document.getElementById('range-6h').click()")
    other = "document.querySelector('#pages a:not([aria-current])')"
    page.wait(f"location.search === '?range=6h' && {other}.search === '?range=6h'")
    page.open(page.evaluate(f"{other}.href"))
    page.wait(DRAWN)
    assert page.evaluate("document.querySelector('#ranges input:checked').value") == "6h"
    assert page.errors == []


def test_it_says_so_when_prometheus_does_not_answer(browser: Browser, monitor: Monitor, lab: Lab) -> None:
    """No figure is shown as if it were of now."""
    page = look(browser, monitor, "overview")
    lab.ssh(HOST, "systemctl stop prometheus")
    try:
        page.evaluate("document.getElementById('range-6h').click()")
        said = page.wait("!document.getElementById('trouble').hidden && document.getElementById('trouble').textContent")
        assert "Prometheus does not answer (answer 502). The figures are those of" in said
        assert page.evaluate("document.body.classList.contains('stale')")
        fresh = browser.page(login=("admin", monitor.password))
        fresh.open(monitor.url)
        assert "There are no figures." in fresh.wait("document.getElementById('trouble').textContent")
    finally:
        lab.ssh(HOST, "systemctl start prometheus")
    wait_until(lambda: bool(monitor.targets()), 30, "Prometheus is back", 1)
    page.evaluate("document.getElementById('range-1h').click()")
    page.wait("document.getElementById('trouble').hidden && !document.body.classList.contains('stale')")


def test_marks_are_where_a_value_is_new(browser: Browser, monitor: Monitor) -> None:
    """The program of the marks itself, in the browser that runs it."""
    page = look(browser, monitor, "overview")
    times = {"start": 0, "end": 60, "step": 10}

    def marks(**series: list[int]) -> Any:
        given = [{"release": name, "at": at} for name, at in series.items()]
        return page.evaluate(
            "import('/pages/marks.js').then(({changes}) => changes("
            f"{json.dumps(given)}.map(({{release, at}}) =>"
            " ({labels: {release}, values: new Map(at.map((t) => [t, 1]))})),"
            f" 'release', {json.dumps(times)}))"
        )

    every = [0, 10, 20, 30, 40, 50, 60]
    assert marks(a=every) == [], "what is there from the beginning is no change"
    assert marks(a=[0, 10, 20, 30], b=[30, 40, 50, 60]) == [{"time": 30, "value": "b"}], "the first node counts"
    assert marks(a=[0, 10, 40, 50, 60]) == [], "a restart is no deploy"
    assert marks(a=[0, 10], b=[40, 50]) == [{"time": 40, "value": "b"}], "nor does it hide one"
    assert marks(a=[0, 10, 40, 50], b=[20, 30]) == [{"time": 20, "value": "b"}, {"time": 40, "value": "a"}], "and back"
