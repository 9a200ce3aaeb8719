from __future__ import annotations

import pytest

from aiockpt.inspection.diff import diff
from aiockpt.inspection.summary import Blob, Chunk, Summary, Tensor

A, B, OTHER_FORM = b"\x14aaaa", b"\x14bbbb", b"\x94aaaa"
SIZED, OTHER_SIZE = b"\x01\0\0\1\0aaaa", b"\x01\0\0\2\0aaaa"


def tensor(
    name: str, proof: bytes | None = A, shape: tuple[int, ...] = (4,), dtype: str = "float32", pieces: int = 1
) -> Tensor:
    step = shape[0] // pieces
    chunks = tuple(Chunk((at * step,), (step,), None, proof) for at in range(pieces))
    return Tensor(name, dtype, shape, 4, chunks)


def summary(*entries: Tensor | Blob) -> Summary:
    return Summary(
        tuple(entry for entry in entries if isinstance(entry, Tensor)),
        tuple(entry for entry in entries if isinstance(entry, Blob)),
    )


@pytest.mark.parametrize(
    ("one", "other", "outcome"),
    [
        (tensor("x"), tensor("x"), "same"),
        (tensor("x"), tensor("x", B), "different"),
        (tensor("x"), tensor("x", None), "unknown"),
        (tensor("x", None), tensor("x", None), "unknown"),
        (tensor("x"), tensor("x", OTHER_FORM), "unknown"),
        (tensor("x", SIZED), tensor("x", SIZED), "same"),
        (tensor("x", SIZED), tensor("x", OTHER_SIZE), "unknown"),
        (tensor("x"), tensor("x", pieces=2), "unknown"),
        (tensor("x", None, (0,)), tensor("x", None, (0,)), "same"),
        (tensor("x"), tensor("x", shape=(2,)), "reshaped"),
        (tensor("x"), tensor("x", dtype="int32"), "reshaped"),
        (Blob("x", None, A), Blob("x", None, A), "same"),
        (Blob("x", None, A), Blob("x", None, B), "different"),
        (Blob("x", None, A), Blob("x", None), "unknown"),
    ],
)
def test_one_name(one: Tensor | Blob, other: Tensor | Blob, outcome: str) -> None:
    found = diff(summary(one), summary(other))
    named = {
        "same": found.same,
        "different": len(found.different),
        "unknown": len(found.unknown),
        "reshaped": len(found.reshaped),
    }
    assert named == dict.fromkeys(named, 0) | {outcome: 1}
    assert found.is_empty == (outcome in {"same", "unknown"})


def test_names_that_come_and_go() -> None:
    found = diff(
        summary(tensor("b"), tensor("a"), tensor("kind")), summary(tensor("b"), Blob("kind", None), tensor("c"))
    )
    assert (found.removed, found.added, found.same) == (["a", "kind"], ["c", "kind"], 1)
    assert not found.is_empty


def test_one_chunk_that_differs_is_a_difference() -> None:
    one, other = tensor("x", pieces=2), tensor("x", pieces=2)
    changed = Tensor("x", "float32", (4,), 4, (other.chunks[0], Chunk((2,), (2,), None, B)))
    assert diff(summary(one), summary(changed)).different == ["x"]


def test_values_that_were_looked_at() -> None:
    found = diff(
        summary(tensor("a", None), tensor("b", None), tensor("c", None)),
        summary(tensor("a", None), tensor("b", None), tensor("c", None)),
    )
    settled = found.resolved({"a": True, "b": False})
    assert (settled.different, settled.unknown, settled.same) == (["b"], ["c"], 1)
