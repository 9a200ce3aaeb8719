from __future__ import annotations

import pytest

from aiockpt.testing.answers import Refusal
from aiockpt.testing.content import Content
from aiockpt.testing.documents import PartReference
from aiockpt.testing.uploads import MIN_PART_BYTES, Part, Upload, Uploads, chosen_parts

SIZES = {1: MIN_PART_BYTES, 2: MIN_PART_BYTES - 1, 3: 1}


@pytest.fixture
def upload() -> Upload:
    upload = Uploads().create("b", "k", {}, "", "")
    for number, size in SIZES.items():
        upload.parts[number] = Part(Content(size=size), f'"{number}"', {"crc32": str(number)})
    return upload


def reference(number: int, etag: str | None = None, crc32: str | None = None) -> PartReference:
    return PartReference(number, etag or f'"{number}"', {"crc32": crc32} if crc32 else {})


def test_some_parts_may_be_chosen(upload: Upload) -> None:
    parts = chosen_parts(upload, [reference(1, etag="1"), reference(3, crc32="3")])
    assert parts == [upload.parts[1], upload.parts[3]]
    assert chosen_parts(upload, [reference(2)]) == [upload.parts[2]]


@pytest.mark.parametrize(
    ("references", "code"),
    [
        ([reference(2), reference(3)], "EntityTooSmall"),
        ([reference(3), reference(1)], "InvalidPartOrder"),
        ([reference(1), reference(4)], "InvalidPart"),
        ([reference(1, etag="other")], "InvalidPart"),
        ([reference(1, crc32="other")], "InvalidPart"),
    ],
)
def test_others_may_not(upload: Upload, references: list[PartReference], code: str) -> None:
    with pytest.raises(Refusal, match=code):
        chosen_parts(upload, references)


def test_uploads_are_found_by_id_and_key() -> None:
    uploads = Uploads()
    second, first = (uploads.create("b", key, {}, "", "") for key in ("k2", "k1"))
    assert uploads.get("b", "k1", first.upload_id) is first
    assert (uploads.of_bucket("b"), uploads.of_bucket("c"), len(uploads)) == ([first, second], [], 2)
    uploads.remove(first)
    for key, upload_id in (("k1", first.upload_id), ("k1", second.upload_id)):
        with pytest.raises(Refusal, match="NoSuchUpload"):
            uploads.get("b", key, upload_id)
