from __future__ import annotations

import re

import pytest

from aiockpt.testing import LocalEndpoint
from testing.rawclient import RawClient


def names(body: bytes, element: str) -> list[str]:
    return re.findall(f"<{element}>([^<]*)</{element}>", body.decode())


@pytest.fixture
def listed(endpoint: LocalEndpoint) -> None:
    for key in ("a", "b/1", "b/2", "c d"):
        endpoint.replace_object("bucket", key, b"x")


def test_buckets_come_and_go(raw: RawClient) -> None:
    assert [raw("PUT", "/new")[0] for _ in range(2)] == [200, 409]
    assert names(raw("GET", "/")[2], "Name") == ["bucket", "new"]
    assert raw("HEAD", "/new")[1]["x-amz-bucket-region"] == "us-east-1"
    assert [raw("DELETE", "/new")[0] for _ in range(2)] == [204, 404]
    assert [raw(method, path)[0] for method, path in (("HEAD", "/new"), ("GET", "/new?location"))] == [404, 404]


@pytest.mark.usefixtures("listed")
def test_listing(raw: RawClient) -> None:
    body = raw("GET", "/bucket?list-type=2&delimiter=/&encoding-type=url")[2]
    assert (names(body, "Key"), names(body, "KeyCount")) == (["a", "c%20d"], ["3"])
    assert "<CommonPrefixes><Prefix>b/</Prefix></CommonPrefixes>" in body.decode()
    assert names(raw("GET", "/bucket?list-type=2&prefix=b/&start-after=b/1")[2], "Key") == ["b/2"]
    first = raw("GET", "/bucket?list-type=2&max-keys=3")[2]
    (token,) = names(first, "NextContinuationToken")
    rest = raw("GET", f"/bucket?list-type=2&continuation-token={token}")[2]
    assert (names(first, "IsTruncated"), names(rest, "IsTruncated")) == (["true"], ["false"])
    assert names(first, "Key") + names(rest, "Key") == ["a", "b/1", "b/2", "c d"]


@pytest.mark.usefixtures("listed")
def test_deleting_many(raw: RawClient) -> None:
    document = b"<Delete><Object><Key>a</Key></Object><Object><Key>none</Key></Object></Delete>"
    assert names(raw("POST", "/bucket?delete", document)[2], "Key") == ["a", "none"]
    assert raw("HEAD", "/bucket/a")[0] == 404
    assert raw("DELETE", "/bucket")[0] == 409


@pytest.mark.parametrize("query", ["max-keys=x", "encoding-type=x", "continuation-token=x"])
def test_bad_arguments(raw: RawClient, query: str) -> None:
    assert raw("GET", f"/bucket?list-type=2&{query}")[0] == 400
