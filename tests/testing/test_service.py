from __future__ import annotations

import pytest

from aiockpt.testing.answers import Refusal
from aiockpt.testing.content import Content
from aiockpt.testing.faults import Disturbance, Fault, FaultKind
from aiockpt.testing.requests import Request
from aiockpt.testing.service import Credentials, perform, refused
from aiockpt.testing.state import State
from aiockpt.testing.store import MemoryStore

CALM = Disturbance()


def request(method: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Request:
    return Request(method, "/b/k", "b", "k", {}, headers or {}, keep_alive=True, content=Content.of(body))


@pytest.fixture
def state() -> State:
    state = State(MemoryStore(), "us-east-1")
    state.store.create_bucket("b")
    return state


@pytest.mark.parametrize(
    ("anonymous", "authorization", "code"),
    [
        (False, "", "AccessDenied"),
        (True, "", None),
        (True, "AWS4 Credential=you/", "InvalidAccessKeyId"),
        (False, "AWS4 Credential=me/", None),
        (False, "AWS4 Credential=me-2/", None),  # temporary
        (False, "AWS4 Credential=me-1/", "ExpiredToken"),
    ],
)
def test_who_is_served(anonymous: bool, authorization: str, code: str | None) -> None:
    credentials = Credentials("me", anonymous, {"me-1"})
    asked = request("GET", {"authorization": authorization})
    if code is None:
        credentials.check(asked)
    else:
        with pytest.raises(Refusal, match=code):
            credentials.check(asked)


def test_operations_are_performed(state: State) -> None:
    assert perform(state, "PutObject", request("PUT", body=b"x"), CALM).status == 200
    assert perform(state, "GetObject", request("GET"), CALM).body.to_bytes() == b"x"


def test_an_error_comes_instead_of_the_operation(state: State) -> None:
    fault = Disturbance([Fault(FaultKind.ERROR, status=500, code="InternalError")])
    with pytest.raises(Refusal, match="500 InternalError"):
        perform(state, "PutObject", request("PUT"), fault)
    assert state.store.keys("b") == []


def disturbed(kind: FaultKind) -> Disturbance:
    return Disturbance([Fault(kind)])


def test_ranges_as_sloppy_stores_answer_them(state: State) -> None:
    crc32 = {"x-amz-checksum-crc32": "j+YomQ=="}  # of the two bytes
    perform(state, "PutObject", request("PUT", crc32, b"xy"), CALM)
    asked = request("GET", {"range": "bytes=1-1"})
    bare = perform(state, "GetObject", asked, disturbed(FaultKind.BARE_RANGE))
    assert (bare.status, bare.body.to_bytes(), "Content-Range" in bare.headers) == (200, b"y", False)
    with_checksum = perform(state, "GetObject", asked, disturbed(FaultKind.WHOLE_CHECKSUM))
    assert (with_checksum.status, with_checksum.body.to_bytes()) == (206, b"y")
    assert crc32.items() <= with_checksum.headers.items()


def test_checksums_are_ignored(state: State) -> None:
    wrong = request("PUT", {"x-amz-checksum-crc32": "AAAAAA=="}, b"xy")
    with pytest.raises(Refusal, match="BadDigest"):
        perform(state, "PutObject", wrong, CALM)
    assert perform(state, "PutObject", wrong, disturbed(FaultKind.IGNORE_CHECKSUMS)).status == 200
    assert state.require("b", "k").checksums == {}


@pytest.mark.parametrize(
    "header",
    [
        {"transfer-encoding": "chunked"},
        {"content-encoding": "aws-chunked"},
        {"x-amz-trailer": "x-amz-checksum-crc32"},
        {"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"},
    ],
)
def test_bodies_in_chunks_are_refused(state: State, header: dict[str, str]) -> None:
    fault = disturbed(FaultKind.REFUSE_CHUNKED)
    with pytest.raises(Refusal, match="411"):
        perform(state, "PutObject", request("PUT", header, b"x"), fault)
    assert perform(state, "PutObject", request("PUT", body=b"x"), fault).status == 200


def test_a_refused_head_has_no_body() -> None:
    refusal = Refusal("NoSuchKey", headers={"X": "y"})
    answer = refused(refusal, request("GET"), "id")
    head = refused(refusal, request("HEAD"), "id")
    assert (answer.status, answer.error_code, answer.headers["X"]) == (404, "NoSuchKey", "y")
    assert (head.length, head.body.size) == (answer.body.size, 0)
    assert refused(Refusal("NotModified"), request("GET"), "id").body.size == 0
