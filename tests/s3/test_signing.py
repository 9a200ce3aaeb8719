"""Signatures are computed once more here, from the standard ("Signature Version 4", AWS General Reference)."""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.s3.address import Address
from aiockpt.s3.signing import signed_headers
from aiockpt.transport.pool import Endpoint

SECRET = "very-secret-key"
ADDRESS = Address(Endpoint("http", "h", 9000), "h:9000", "/bucket/", "eu-west-3", "s3", "s3v4")
AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 Credential=(.*?), SignedHeaders=(.*?), Signature=([0-9a-f]{64})")


def credentials(token: str | None = None) -> Any:
    return ReadOnlyCredentials("AKIA", SECRET, token)


def digest(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def signature(method: str, target: str, headers: dict[str, str], names: str) -> str:
    path, _, query = target.partition("?")
    stamp = headers["x-amz-date"]
    scope = f"{stamp[:8]}/{ADDRESS.region}/s3/aws4_request"
    lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in names.split(";"))
    queries = "&".join(sorted(query.split("&")))
    canonical = f"{method}\n{path}\n{queries}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = digest(key, part)
    return digest(key, text).hex()


KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(key=KEYS, number=st.integers(1, 10_000), query=st.booleans(), token=st.sampled_from([None, "token"]))
def test_the_signature_is_right(key: str, number: int, query: bool, token: str | None) -> None:
    target = ADDRESS.target(key, f"partNumber={number}&uploadId=a~b" if query else "")
    sent = {"Range": "bytes=0-9", "Content-Length": "10", "x-amz-checksum-crc32": "AAAAAA==", "x-amz-meta-a": "b  c"}
    signed = dict(signed_headers(credentials(token), ADDRESS, "PUT", target, sent))
    headers = {name.lower(): value for name, value in signed.items()}
    match = AUTHORIZATION.fullmatch(headers["authorization"])
    assert match
    scope, names, given_signature = match.groups()
    assert scope == f"AKIA/{headers['x-amz-date'][:8]}/eu-west-3/s3/aws4_request"
    assert given_signature == signature("PUT", target, headers, names)
    assert {"host", "range", "x-amz-checksum-crc32", "x-amz-content-sha256", "x-amz-date"} <= set(names.split(";"))
    assert headers.get("x-amz-security-token") == token
    assert ("x-amz-security-token" in names.split(";")) is bool(token)
    assert sent.items() <= signed.items()


@given(key=KEYS, query=st.booleans(), token=st.sampled_from([None, "token"]))
def test_botocore_signs_likewise(key: str, query: bool, token: str | None) -> None:
    target = ADDRESS.target(key, "partNumber=7&uploadId=a~b" if query else "")
    sent = {"Range": "bytes=0-9", "If-Match": '"e  tag"', "x-amz-meta-b": " b  c "}
    ours = {name.lower(): value for name, value in signed_headers(credentials(token), ADDRESS, "PUT", target, sent)}
    request = AWSRequest("PUT", f"http://{ADDRESS.host}{target}", headers=sent)
    request.context["client_config"] = Config(s3={"payload_signing_enabled": False})
    now = datetime.strptime(ours["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    with patch("botocore.auth.get_current_datetime", return_value=now):
        S3SigV4Auth(credentials(token), ADDRESS.service, ADDRESS.region).add_auth(request)
    theirs = {name.lower(): value for name, value in request.headers.items()}
    assert ours == theirs | {"host": ADDRESS.host}


def test_anonymous() -> None:
    headers = signed_headers(None, ADDRESS, "GET", "/bucket/key", {"Range": "bytes=0-1"})
    assert headers == [("Host", "h:9000"), ("Range", "bytes=0-1")]


@pytest.mark.parametrize("port", [443, 8443])
def test_the_host_is_signed_as_it_is_sent(port: int) -> None:
    host = "h" if port == 443 else f"h:{port}"
    address = Address(Endpoint("https", "h", port), host, "/bucket/", "eu-west-3", "s3", "s3v4")
    signed = dict(signed_headers(credentials(), address, "GET", "/bucket/key", {}))
    headers = {name.lower(): value for name, value in signed.items()}
    match = AUTHORIZATION.fullmatch(headers["authorization"])
    assert match
    assert match[3] == signature("GET", "/bucket/key", headers, match[2])
