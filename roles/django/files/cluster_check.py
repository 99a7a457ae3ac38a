# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove that a release can start on this node, before it is activated.

Run by `django-run` in the release: imports the settings and the WSGI application and runs `manage.py check --deploy`.
Prints one line of JSON at the end: {"warnings": [...], "error": "..."}. Warnings name what the project keeps on the
node, where a second node does not see it.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def _local_state(settings: Any) -> list[str]:
    warnings = []
    for alias, database in settings.DATABASES.items():
        if "sqlite" in str(database.get("ENGINE", "")):
            warnings.append(f"database {alias!r} is SQLite ({database.get('NAME')}): each node has its own")
    storage = settings.STORAGES.get("default", {}).get("BACKEND", "")
    if settings.MEDIA_ROOT and storage == "django.core.files.storage.FileSystemStorage":
        warnings.append(f"MEDIA_ROOT {settings.MEDIA_ROOT} is on the node: what one node stores the others lack")
    for alias, cache in settings.CACHES.items():
        if str(cache.get("BACKEND", "")).endswith(("LocMemCache", "FileBasedCache")):
            warnings.append(f"cache {alias!r} is kept by each process or node on its own")
    if getattr(settings, "SESSION_ENGINE", "").endswith("backends.file"):
        warnings.append("sessions are kept in files: a login is valid on one node only")
    return warnings


def main() -> int:
    import django

    django.setup()
    from django.conf import settings
    from django.core.management import call_command

    warnings = _local_state(settings)
    name = getattr(settings, "STORAGES", {}).get("staticfiles", {}).get("BACKEND", "")
    if "Manifest" in name and not (Path(settings.STATIC_ROOT) / "staticfiles.json").is_file():
        raise RuntimeError(f"{settings.STATIC_ROOT}/staticfiles.json is missing: pages would answer 500")
    output = io.StringIO()
    call_command("check", deploy=True, fail_level="ERROR", stdout=output, stderr=output)
    print(output.getvalue(), file=sys.stderr)
    if not os.environ.get("CLUSTER_BUILD"):
        import cluster_wsgi

        assert callable(cluster_wsgi.application)
    print(json.dumps({"warnings": warnings}), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as problem:
        traceback.print_exc()
        print(json.dumps({"warnings": [], "error": f"{type(problem).__name__}: {problem}"}), flush=True)
        sys.exit(1)
