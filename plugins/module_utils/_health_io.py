# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to Flotilla
"""Ask a service of this host, or its health address, what it answers."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping


def _connection(address: str, port: int, timeout: float, ca_file: str) -> http.client.HTTPConnection:
    """Plain without an authority; with one the service has to prove that the address is its own."""
    if not ca_file:
        return http.client.HTTPConnection(address, port, timeout=timeout)
    return http.client.HTTPSConnection(
        address, port, timeout=timeout, context=ssl.create_default_context(cafile=ca_file)
    )


def get(
    address: str,
    port: int,
    path: str,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10,
    ca_file: str = "",
) -> tuple[int, bytes, str]:
    """Status and body of an answer that was read to its end; or 0, nothing and the error."""
    try:
        connection = _connection(address, port, timeout, ca_file)
    except OSError as error:
        return 0, b"", f"{ca_file}: {error}"
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read(), ""
    except (OSError, http.client.HTTPException) as error:
        return 0, b"", f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def ask(host: str, port: int, path: str, timeout: float = 10, ca_file: str = "") -> tuple[int, dict[str, object]]:
    """The answer of a health address: its status and body, or 0 and the error."""
    status, text, error = get(host, port, path, timeout=timeout, ca_file=ca_file)
    if error:
        return 0, {"error": error}
    try:
        body = json.loads(text)
    except ValueError:
        body = {}
    return status, body if isinstance(body, dict) else {}
