# SPDX-License-Identifier: GPL-3.0-or-later

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import guestbook.models


class Migration(migrations.Migration):
    initial = True

    dependencies = (migrations.swappable_dependency(settings.AUTH_USER_MODEL),)

    operations = (
        migrations.CreateModel(
            name="Light",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=80, unique=True)),
                ("coast", models.CharField(max_length=40)),
                (
                    "character",
                    models.CharField(
                        help_text="As on a chart: Fl(2) 10s is two flashes every ten seconds.", max_length=20
                    ),
                ),
                ("height", models.PositiveSmallIntegerField(help_text="Metres above the sea.")),
                ("reach", models.PositiveSmallIntegerField(help_text="Nautical miles.")),
                ("built", models.PositiveSmallIntegerField()),
            ],
            options={
                "ordering": ("name",),
            },
        ),
        migrations.CreateModel(
            name="Entry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("token", models.CharField(default=guestbook.models.new_token, max_length=64, unique=True)),
                ("name", models.CharField(max_length=80, verbose_name="your name")),
                ("message", models.TextField(max_length=1000, verbose_name="your message")),
                ("written_on", models.CharField(default="", editable=False, max_length=255)),
                ("created", models.DateTimeField(auto_now_add=True, db_index=True)),
                (
                    "author",
                    models.ForeignKey(
                        blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, to=settings.AUTH_USER_MODEL
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "entries",
                "ordering": ("-created", "-id"),
            },
        ),
    )
