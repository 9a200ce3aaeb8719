from __future__ import annotations

from pathlib import Path

import click
import pytest

from aiockpt.commands.parameters import PLACE, S3_URI
from aiockpt.model import ObjectId


@pytest.mark.parametrize(
    ("text", "key"), [("s3://b", ""), ("s3://b/", ""), ("s3://b/run", "run"), ("s3://b/run/step-1/", "run/step-1")]
)
def test_uris_lose_the_slash_at_their_end(text: str, key: str) -> None:
    assert S3_URI.convert(text, None, None) == PLACE.convert(text, None, None) == ObjectId("b", key)


@pytest.mark.parametrize("text", ["run", "http://b/run", "s3://", "s3:///run"])
def test_what_is_no_uri_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        S3_URI.convert(text, None, None)


def test_anything_else_is_a_folder() -> None:
    assert PLACE.convert("./s3/run", None, None) == Path("s3/run")


def test_what_is_parsed_already_stays() -> None:
    assert PLACE.convert(Path("a"), None, None) == Path("a")
    assert S3_URI.convert(ObjectId("b", "k"), None, None) == ObjectId("b", "k")
