# SPDX-License-Identifier: GPL-3.0-or-later
"""The club's lights. The places are made up; the characters read as they would on a chart."""

from __future__ import annotations

from django.db import migrations

COASTS = {
    "North shore": [
        "Anvil Head",
        "Black Sow",
        "Cormorant Stack",
        "Dunmarrow",
        "Elder Ness",
        "Fallow Point",
        "Grey Mare",
    ],
    "Western isles": [
        "Halyard Rock",
        "Inner Skerry",
        "Jackdaw Ledge",
        "Kelp Bank",
        "Long Ewe",
        "Marram Holm",
        "Nine Oars",
    ],
    "Amber bay": ["Old Pier", "Pilot's Chair", "Quern Stone", "Ravel Spit", "Sandling", "Tern Island", "Upper Wick"],
    "South reach": [
        "Vesper Cape",
        "Widow's Watch",
        "Yarrow Mouth",
        "Zeal Shoal",
        "Abbot's Finger",
        "Bell Sand",
        "Candle Rock",
    ],
}
CHARACTERS = ["Fl 5s", "Fl(2) 10s", "Iso 6s", "Oc 8s", "Fl(3) 20s", "LFl 12s", "Q(6) 15s"]


def light_up(apps, schema_editor) -> None:
    light = apps.get_model("guestbook", "Light")
    light.objects.using(schema_editor.connection.alias).bulk_create(
        light(
            name=name,
            coast=coast,
            character=CHARACTERS[(row * 3 + column) % len(CHARACTERS)],
            height=14 + (row * 17 + column * 11) % 48,
            reach=8 + (row * 5 + column * 3) % 17,
            built=1788 + (row * 37 + column * 19) % 130,
        )
        for row, (coast, names) in enumerate(COASTS.items())
        for column, name in enumerate(names)
    )


def put_out(apps, schema_editor) -> None:
    apps.get_model("guestbook", "Light").objects.using(schema_editor.connection.alias).all().delete()


class Migration(migrations.Migration):
    dependencies = (("guestbook", "0001_initial"),)
    operations = (migrations.RunPython(light_up, put_out),)
