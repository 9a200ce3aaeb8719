"""Where a bucket's requests go: host, path, signing region, as botocore's endpoint rules decide.

The rules (partitions, dual-stack, access points, addressing styles, custom endpoints) are botocore's: it is asked once
per bucket, by having it make a request for a stand-in key that is not sent, and every key of the bucket is addressed
from that. (Presigning would be simpler, but presigned URLs name AWS's global endpoint, which redirects.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aiockpt.errors import LocalProtocolError
from aiockpt.model import ObjectId
from aiockpt.s3.failures import translated
from aiockpt.transport.pool import Endpoint
from aiockpt.wire.s3 import encode_key

STAND_IN_KEY = "aiockpt-stands-in-for-any-key"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A bucket's address.

    Attributes:
        endpoint: where to connect.
        host: the Host header.
        prefix: the path before the encoded key.
        region, service: of the signature.
        algorithm: of the signature; ``""``: requests are anonymous.
    """

    endpoint: Endpoint
    host: str
    prefix: str
    region: str
    service: str
    algorithm: str

    @property
    def direct(self) -> bool:
        """Whether the bulk path can sign for it: plain SigV4, or anonymous (no signature at all)."""
        return self.algorithm in {"", "AWS4-HMAC-SHA256"} and self.service != "s3express"

    @property
    def url(self) -> str:
        """What the URLs of the bucket's objects begin with."""
        return f"{self.endpoint.scheme}://{self.host}{self.prefix}"

    def target(self, key: str, query: str = "") -> str:
        """The request target for ``key``, with an already encoded query."""
        return f"{self.prefix}{encode_key(key)}{'?' if query else ''}{query}"


class _Made(Exception):  # it carries the request out of botocore
    def __init__(self, request: Any) -> None:
        super().__init__("not to be sent")
        self.request = request


def _take(request: Any, **_: Any) -> None:
    if request.url.partition("?")[0].endswith(f"/{STAND_IN_KEY}"):
        raise _Made(request)


async def resolve(client: Any, bucket: str) -> Address:
    """Ask an aiobotocore S3 client where ``bucket`` lives. No network, unless credentials must be fetched.

    Raises:
        ConfigError: there are no credentials, or botocore's rules refuse the bucket's name.
    """
    event = "before-send.s3.GetObject"
    with translated("addressing", ObjectId(bucket, "")):
        client.meta.events.register(event, _take, unique_id=STAND_IN_KEY)  # stays: it takes no other request
        try:
            await client.get_object(Bucket=bucket, Key=STAND_IN_KEY)
        except _Made as made:
            return _address_from(made.request.url, made.request.headers, client.meta.region_name or "us-east-1")
    raise LocalProtocolError(f"botocore addressed bucket {bucket!r} in an unknown way")


def _signing(authorization: str) -> tuple[str, str, str]:
    """Algorithm, region and service that an Authorization header was signed for; ``""`` where it does not say."""
    algorithm, _, rest = authorization.partition(" ")
    scope = rest.partition("Credential=")[2].partition(",")[0].split("/")[1:]  # date, region, service, "aws4_request"
    return (algorithm, scope[1], scope[2]) if len(scope) == 4 else (algorithm, "", "")


def _address_from(url: str, headers: Mapping[str, Any], region: str) -> Address:
    authorization = headers.get("Authorization", "")
    text = authorization.decode() if isinstance(authorization, bytes) else str(authorization)
    algorithm, signed_region, service = _signing(text)
    parts = urlsplit(url)
    if parts.hostname is None or not parts.path.endswith(STAND_IN_KEY):
        raise LocalProtocolError(f"botocore addressed a bucket in an unknown way: host {parts.hostname!r}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default_port = _PORTS[parts.scheme]
    port = parts.port or default_port
    return Address(
        endpoint=Endpoint(parts.scheme, parts.hostname, port),
        host=host if port == default_port else f"{host}:{port}",
        prefix=parts.path.removesuffix(STAND_IN_KEY),
        region=signed_region or region,
        service=service or "s3",
        algorithm=algorithm,
    )
