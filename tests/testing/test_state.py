from __future__ import annotations

import pytest

from aiockpt.testing.answers import Refusal
from aiockpt.testing.content import Content
from aiockpt.testing.requests import Request
from aiockpt.testing.state import State, object_headers
from aiockpt.testing.store import MemoryStore, StoredObject


def test_what_must_be_there() -> None:
    state = State(MemoryStore(), "us-east-1")
    with pytest.raises(Refusal, match="NoSuchBucket"):
        state.require_bucket("b")
    state.store.create_bucket("b")
    state.require_bucket("b")
    with pytest.raises(Refusal, match="NoSuchKey"):
        state.require("b", "k")
    stored = StoredObject(Content.of(b""), '""')
    state.store.put("b", "k", stored)
    assert state.require("b", "k") is stored


def test_which_headers_belong_to_the_object() -> None:
    sent = {"content-encoding": "aws-chunked, gzip", "x-amz-meta-a": "b", "x-amz-date": "now", "expires": "never"}
    request = Request("PUT", "", "b", "k", {}, sent, keep_alive=True)
    assert object_headers(request) == {
        "content-type": "binary/octet-stream",
        "content-encoding": "gzip",
        "x-amz-meta-a": "b",
        "expires": "never",
    }
