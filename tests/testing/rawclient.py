"""An HTTP client without any opinion on S3."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=aiockpt/20260101/us-east-1/s3/aws4_request"


class RawClient:
    """Speaks HTTP to an endpoint, one request a connection."""

    def __init__(self, url: str) -> None:
        self.netloc = urlsplit(url).netloc

    def connect(self) -> socket.socket:
        host, port = self.netloc.split(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def __call__(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.netloc, timeout=30)
        try:
            connection.request(method, path, body, {"Authorization": AUTHORIZATION, **(headers or {})})
            response = connection.getresponse()
            return response.status, {name.lower(): text for name, text in response.getheaders()}, response.read()
        finally:
            connection.close()
