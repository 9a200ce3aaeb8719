"""Where a bucket's requests go: host, path, signing region, as botocore's endpoint rules decide.

The rules (partitions, dual-stack, access points, addressing styles, custom endpoints) are botocore's: it is asked once
per bucket, by presigning a request for a stand-in key, and every key of the bucket is addressed from the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aiockpt.errors import LocalProtocolError
from aiockpt.transport.pool import Endpoint
from aiockpt.wire.s3 import encode_key

_STAND_IN_KEY = "aiockpt-key"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A bucket's address.

    Attributes:
        endpoint: where to connect.
        host: the Host header.
        prefix: the path before the encoded key.
        region, service: of the signature.
        signature: botocore's name of the signature version.
    """

    endpoint: Endpoint
    host: str
    prefix: str
    region: str
    service: str
    signature: str

    @property
    def direct(self) -> bool:
        """Whether the bulk path can sign for it: plain SigV4, or anonymous (no signature at all)."""
        return not self.signature.startswith(("v4a", "v4-s3express"))

    def target(self, key: str, query: str = "") -> str:
        """The request target for ``key``, with an already encoded query."""
        return f"{self.prefix}{encode_key(key)}{'?' if query else ''}{query}"


async def resolve(client: Any, bucket: str) -> Address:
    """Ask an aiobotocore S3 client where ``bucket`` lives. No network, unless credentials must be fetched."""
    seen: dict[str, str] = {}

    def before_sign(signing_name: str, region_name: str, signature_version: Any, **_: Any) -> None:
        seen.update(service=signing_name, region=region_name, signature=str(signature_version))

    events = client.meta.events
    events.register_first("before-sign.s3.GetObject", before_sign, unique_id="aiockpt-address")
    try:
        url = await client.generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": _STAND_IN_KEY}, ExpiresIn=60
        )
    finally:
        events.unregister("before-sign.s3.GetObject", before_sign, unique_id="aiockpt-address")
    return _address_from(url, seen, client.meta.region_name or "us-east-1")


def _address_from(url: str, signing: dict[str, str], region: str) -> Address:
    parts = urlsplit(url)
    if parts.hostname is None or not parts.path.endswith(_STAND_IN_KEY):
        raise LocalProtocolError(f"botocore addressed a bucket in an unknown way: host {parts.hostname!r}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default_port = _PORTS[parts.scheme]
    port = parts.port or default_port
    return Address(
        endpoint=Endpoint(parts.scheme, parts.hostname, port),
        host=host if port == default_port else f"{host}:{port}",
        prefix=parts.path.removesuffix(_STAND_IN_KEY),
        region=signing.get("region") or region,
        service=signing.get("service") or "s3",
        signature=signing.get("signature", ""),
    )
