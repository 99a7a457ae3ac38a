# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import socket
from unittest import mock

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import IntegrityError
from django.test import Client, TestCase, override_settings
from django.urls import reverse

from guestbook.models import Entry, Light

PLAIN_STORAGE = settings.STORAGES | {
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
}

ENTRY = {"token": "a" * 32, "name": "Ada", "message": "What a view"}


@override_settings(STORAGES=PLAIN_STORAGE)
class SiteTestCase(TestCase):
    pass


class GuestbookTests(SiteTestCase):
    url = "/guestbook/"

    def test_anonymous_entry_is_written_once(self) -> None:
        self.assertRedirects(self.client.post(self.url, ENTRY), self.url)
        again = self.client.post(self.url, ENTRY)
        self.assertContains(again, "already in the book", status_code=409)
        row = Entry.objects.get()
        self.assertEqual((row.token, row.name, row.author), ("a" * 32, "Ada", None))

    def test_a_token_that_arrives_twice_at_once_answers_409(self) -> None:
        with mock.patch.object(Entry, "save", side_effect=IntegrityError):
            self.assertEqual(self.client.post(self.url, ENTRY).status_code, 409)

    def test_the_form_brings_its_own_token(self) -> None:
        tokens = {self.client.get(self.url).context["form"]["token"].value() for _ in range(2)}
        self.assertEqual({len(token) for token in tokens}, {32})
        self.assertEqual(len(tokens), 2)

    def test_member_is_named_as_the_author(self) -> None:
        user = get_user_model().objects.create_user("grace", password="keep the light on")
        self.client.force_login(user)
        self.client.post(self.url, ENTRY)
        self.assertEqual(Entry.objects.get().author, user)
        self.assertContains(self.client.get(self.url), "member")

    def test_csrf_is_checked_and_can_be_passed(self) -> None:
        client = Client(enforce_csrf_checks=True)
        self.assertEqual(client.post(self.url, ENTRY).status_code, 403)
        client.get(self.url)
        entry = ENTRY | {"csrfmiddlewaretoken": client.cookies["csrftoken"].value}
        self.assertEqual(client.post(self.url, entry).status_code, 302)

    def test_empty_message_is_refused(self) -> None:
        answer = self.client.post(self.url, ENTRY | {"message": ""})
        self.assertContains(answer, "This field is required", status_code=400)
        self.assertFalse(Entry.objects.exists())

    def test_what_guests_write_is_escaped(self) -> None:
        self.client.post(self.url, ENTRY | {"message": "<script>alert(1)</script>"})
        self.assertContains(self.client.get(self.url), "&lt;script&gt;alert(1)")

    def test_tokens_are_listed_by_prefix(self) -> None:
        for token in ("run1-a", "run1-b", "run2-a"):
            self.client.post(self.url, ENTRY | {"token": token})
        self.assertEqual(
            self.client.get("/guestbook/tokens/?prefix=run1-").json(), {"count": 2, "tokens": ["run1-a", "run1-b"]}
        )


class WhereTests(SiteTestCase):
    def test_counts_visits_of_a_session(self) -> None:
        self.assertEqual([self.client.get("/where/?format=json").json()["counter"] for _ in range(3)], [1, 2, 3])

    def test_on_a_laptop(self) -> None:
        facts = self.client.get("/where/?format=json").json()
        self.assertEqual((facts["node"], facts["release"]), (socket.gethostname(), "development"))
        self.assertEqual((facts["database_read"], facts["database_write"]), ("sqlite", "sqlite"))

    @override_settings(CLUSTER_NODE_NAME="app7", CLUSTER_RELEASE_ID="r42")
    def test_in_a_cluster(self) -> None:
        facts = self.client.get("/where/?format=json").json()
        self.assertEqual((facts["node"], facts["release"]), ("app7", "r42"))
        self.assertContains(self.client.get("/where/"), "app7")


class PagesTests(SiteTestCase):
    def test_pages_answer(self) -> None:
        for name in ("home", "lights", "guestbook", "where", "login"):
            with self.subTest(name):
                self.assertEqual(self.client.get(reverse(name)).status_code, 200)

    def test_twenty_lights_on_a_page(self) -> None:
        self.assertEqual(Light.objects.count(), 28)
        self.assertContains(self.client.get("/lights/"), '<th scope="row">', count=20)
        self.assertContains(self.client.get("/lights/?page=2"), '<th scope="row">', count=8)

    def test_plain_asks_no_database_and_sets_no_cookie(self) -> None:
        with self.assertNumQueries(0):
            answer = self.client.get("/plain/")
        self.assertEqual((answer.status_code, len(answer.cookies)), (200, 0))

    def test_slow_is_bounded(self) -> None:
        with mock.patch("guestbook.views.time.sleep") as sleep:
            self.assertEqual(self.client.get("/slow/?seconds=600").json()["seconds"], 15)
        sleep.assert_called_once_with(15)
        for wrong in ("-1", "nan", "inf", "soon"):
            with self.subTest(wrong):
                self.assertEqual(self.client.get("/slow/", {"seconds": wrong}).status_code, 400)

    def test_unknown_address(self) -> None:
        self.assertContains(self.client.get("/nowhere/"), "Not on the chart", status_code=404)

    def test_log_in_and_out(self) -> None:
        get_user_model().objects.create_user("grace", password="keep the light on")
        answer = self.client.post("/accounts/login/", {"username": "grace", "password": "keep the light on"})
        self.assertRedirects(answer, "/")
        self.assertContains(self.client.get("/"), "Log out")
        self.assertRedirects(self.client.post("/accounts/logout/"), "/")
        self.assertContains(self.client.get("/"), "Log in")
