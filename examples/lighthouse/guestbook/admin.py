# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from django.contrib import admin

from guestbook.models import Entry, Light


@admin.register(Entry)
class EntryAdmin(admin.ModelAdmin):
    list_display = ("name", "message", "written_on", "created")
    readonly_fields = ("written_on", "created")
    search_fields = ("name", "message", "token")


@admin.register(Light)
class LightAdmin(admin.ModelAdmin):
    list_display = ("name", "coast", "character", "height", "reach", "built")
    list_filter = ("coast",)
