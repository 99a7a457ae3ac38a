# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lighthouse.settings")

application = get_asgi_application()
