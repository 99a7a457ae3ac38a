# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models


def new_token() -> str:
    return uuid.uuid4().hex


class Entry(models.Model):
    """One line in the guest book. The form carries its token, so that sending it twice never writes it twice."""

    token = models.CharField(max_length=64, unique=True, default=new_token)
    name = models.CharField("your name", max_length=80)
    message = models.TextField("your message", max_length=1000)
    author = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    written_on = models.CharField(max_length=255, editable=False, default="")
    created = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        ordering = ("-created", "-id")
        verbose_name_plural = "entries"

    def __str__(self) -> str:
        return f"{self.name}: {self.message[:40]}"


class Light(models.Model):
    """A lighthouse of the club."""

    name = models.CharField(max_length=80, unique=True)
    coast = models.CharField(max_length=40)
    character = models.CharField(max_length=20, help_text="As on a chart: Fl(2) 10s is two flashes every ten seconds.")
    height = models.PositiveSmallIntegerField(help_text="Metres above the sea.")
    reach = models.PositiveSmallIntegerField(help_text="Nautical miles.")
    built = models.PositiveSmallIntegerField()

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name
