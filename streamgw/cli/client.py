"""Asking a running gateway how it is."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from streamgw.cli.failure import CONFIG, UNREACHABLE, Failure
from streamgw.cli.options import read_settings

STATUS_PATH: Final = "/streamgw/v1/status"
_TIMEOUT_S: Final = 5.0


def status_url(config: Path) -> str:
    """Where the gateway of these settings answers.

    Raises:
      Failure: the settings are broken, or there is no status endpoint.
    """
    address = read_settings(config).status
    if address is None:
        raise Failure(CONFIG, f"error: {config} has no status endpoint; name one with --url")
    return f"http://{address}"


def fetch_status(url: str) -> Mapping[str, Any]:
    """The status of a gateway, as it says it. Blocks for 5 s at most.

    Raises:
      Failure: nobody answers there (exit code 69), or it is no streamgw.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        try:
            connection.request(
                "GET", parts.path.rstrip("/") or STATUS_PATH, headers={"Accept": "application/json"}
            )
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Failure(UNREACHABLE, f"error: no gateway answers at {url}: {error}") from error
    try:
        answer = json.loads(body) if response.status == http.HTTPStatus.OK else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "config" not in answer:
        raise Failure(UNREACHABLE, f"error: what answers at {url} is no streamgw (HTTP {response.status})")
    return answer
