"""SigV4 headers for the bulk requests, made by botocore's signer from credentials that botocore keeps fresh.

About 50 µs a request (measured 2026-11 on a 2.6 GHz Zen 4 core), against 0.9 ms for botocore's whole pipeline. The
payload is not hashed (``UNSIGNED-PAYLOAD``): its CRC32 is in a signed header, which S3 checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config

from aiockpt.s3.address import Address

_UNSIGNED_PAYLOAD = Config(s3={"payload_signing_enabled": False})


def signed_headers(
    credentials: Any, address: Address, method: str, target: str, headers: Mapping[str, str]
) -> list[tuple[str, str]]:
    """``headers`` with Host, date and, unless ``credentials`` is None (anonymous), a signature.

    Args:
        credentials: botocore's frozen credentials.
        address: of the bucket.
        method: HTTP method.
        target: request target, encoded, with its query.
        headers: what else is to be sent; all of it is signed.
    """
    if credentials is None:
        return [("Host", address.host), *headers.items()]
    request = AWSRequest(method, f"{address.endpoint.scheme}://{address.host}{target}", headers=dict(headers))
    request.context["client_config"] = _UNSIGNED_PAYLOAD
    S3SigV4Auth(credentials, address.service, address.region).add_auth(request)
    return [("Host", address.host), *request.headers.items()]
