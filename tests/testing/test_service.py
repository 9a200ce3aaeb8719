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


def test_a_refused_head_has_no_body() -> None:
    refusal = Refusal("NoSuchKey", headers={"X": "y"})
    answer = refused(refusal, request("GET"), "id")
    head = refused(refusal, request("HEAD"), "id")
    assert (answer.status, answer.error_code, answer.headers["X"]) == (404, "NoSuchKey", "y")
    assert (head.length, head.body.size) == (answer.body.size, 0)
    assert refused(Refusal("NotModified"), request("GET"), "id").body.size == 0
