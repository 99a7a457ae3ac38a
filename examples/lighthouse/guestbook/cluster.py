# SPDX-License-Identifier: GPL-3.0-or-later
"""What this site can say about the machine it runs on. On a laptop: the host name, "development" and sqlite."""

from __future__ import annotations

import socket

from django.conf import settings
from django.db import Error, connections


def node() -> str:
    return getattr(settings, "CLUSTER_NODE_NAME", socket.gethostname())


def release() -> str:
    return getattr(settings, "CLUSTER_RELEASE_ID", "development")


def database_server(alias: str) -> str:
    """The name of the server that answers for this alias right now."""
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return connection.vendor
    try:
        with connection.cursor() as cursor:
            cursor.execute("SHOW cluster_name")
            name = cursor.fetchone()[0]
    except Error:
        return "unreachable"
    return name or "unnamed"


def read_alias() -> str:
    return "replica" if "replica" in connections else "default"
