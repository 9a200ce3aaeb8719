from __future__ import annotations

import pytest

from aiockpt.testing.answers import Answer, Refusal, document
from aiockpt.testing.content import Content


def test_a_refusal_knows_its_status() -> None:
    assert (Refusal("NoSuchKey").status, Refusal("SlowDown", status=429).status) == (404, 429)
    assert (Refusal("Odd").status, Refusal("Odd").message) == (500, "Odd")


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (Answer(body=Content.of(b"abc")), "Content-Length: 3"),
        (Answer(length=7), "Content-Length: 7"),
        (Answer(headers={"ETag": '"x"'}), 'ETag: "x"'),
        (document(b"<a/>"), "Content-Type: application/xml"),
    ],
)
def test_heads(answer: Answer, line: str) -> None:
    lines = answer.head("id").decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert lines[1].startswith("Date: ")
    assert lines[1].endswith(" GMT")
    assert lines[2] == "x-amz-request-id: id"
    assert line in lines
    assert lines[-2:] == ["", ""]


def test_heads_that_lie_close_or_have_no_body() -> None:
    assert b"Content-Length: 1\r\n" in Answer().head("id", length_error=1)
    assert b"Connection: close\r\n" in Answer().head("id", close=True)
    assert b"Content-Length" not in Answer(204).head("id")
