from __future__ import annotations

import pickle

import pytest

from aiockpt.archive.surprise import StridedPayload, Surprise, require
from aiockpt.errors import AiockptError


def test_require_raises_with_its_reason() -> None:
    require(1, "not raised")
    with pytest.raises(Surprise, match="the reason"):
        require([], "the reason")
    assert issubclass(Surprise, AiockptError)


def test_a_strided_payload_pickles_with_its_facts() -> None:
    copy = pickle.loads(pickle.dumps(StridedPayload("text", (1, 5), 7)))
    assert (copy.args, copy.stride, copy.crc32) == (("text",), (1, 5), 7)
