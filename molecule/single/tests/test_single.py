# SPDX-License-Identifier: GPL-3.0-or-later
"""All tiers on one host: the same roles, the same site."""

from __future__ import annotations

import re
import uuid

from tests.cluster import Browser, Lab


def test_the_site_answers_with_its_one_database(browser: Browser) -> None:
    page = browser.where()
    assert page["node"] == page["database_write"] == page["database_read"] == "single1"
    assert page["secure"] is True
    assert browser.where()["counter"] == page["counter"] + 1


def test_a_row_is_written(lab: Lab, browser: Browser) -> None:
    token = uuid.uuid4().hex
    answer = browser.post_form("/guestbook/", {"token": token, "name": "A test", "message": "A row"})
    assert answer.status_code == 302
    assert token in browser.get(f"/guestbook/tokens/?prefix={token}").text


def test_static_files_are_served(browser: Browser) -> None:
    asset = re.search(r'"(/static/[^"]+\.css)"', browser.get("/").text)
    assert asset
    assert browser.get(asset[1]).headers["Cache-Control"] == "public, max-age=31536000, immutable"


def test_the_deep_health_check_passes(lab: Lab) -> None:
    answer = Browser(lab, "single1", port=8000).get("/-/health/deep")
    assert answer.status_code == 200, answer.text


def test_check_mode_reports_no_change(lab: Lab) -> None:
    run = lab.playbook("--check", "--diff")
    assert run.returncode == 0, run.output[-5000:]
    assert run.changed == {}, run.changed_tasks
