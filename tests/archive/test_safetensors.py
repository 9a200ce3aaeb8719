from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from aiockpt.archive.safetensors import DTYPES, build_header, data_offset, file_order, parse_header
from aiockpt.archive.surprise import Surprise
from archive.torch_items import tensor_of

_SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
_NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
_DTYPES = st.sampled_from(sorted(DTYPES.values(), key=str))
_TENSORS = st.dictionaries(_NAMES, st.tuples(_DTYPES, _SHAPES), max_size=8)


def _file(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None) -> bytes:
    entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    data = [bytes(tensors[name].reshape(-1).view(torch.uint8).tolist()) for name, _, _ in file_order(entries)]
    return build_header(entries, metadata) + b"".join(data)


@given(_TENSORS, st.none() | st.dictionaries(_NAMES, _NAMES, max_size=1))
def test_files_are_byte_for_byte_those_of_the_package(
    kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str] | None
) -> None:
    float4 = DTYPES.get("F4")
    tensors = {name: tensor_of(d, shape) for name, (d, shape) in kinds.items() if shape or d is not float4}
    if not tensors and metadata == {}:
        return  # safetensors 0.8 writes broken JSON for this one
    ours = _file(tensors, metadata)
    assert ours == save(tensors, metadata)
    header = parse_header(ours)
    assert header.metadata == (metadata or {})
    assert header.data_offset + sum(t.end - t.start for t in header.tensors) == len(ours)
    assert data_offset(ours[:8]) == header.data_offset
    assert {t.name: (t.dtype, t.shape) for t in header.tensors} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
    }


def test_the_package_loads_what_we_write_with_several_metadata() -> None:
    content = _file({"w": torch.ones(2, 3)}, {"b": "1", "a": "2"})
    assert torch.equal(load(content)["w"], torch.ones(2, 3))
    assert parse_header(content).metadata == {"b": "1", "a": "2"}


@pytest.mark.parametrize(
    "entries",
    [
        [("w", torch.complex128, (1,))],
        [("w", torch.float32, (1,)), ("w", torch.float32, (1,))],
        [("__metadata__", torch.float32, (1,))],
        [("w", DTYPES["F4"], ())],
        [("\ud800", torch.float32, (1,))],
    ],
)
def test_what_the_format_cannot_hold_is_refused(entries: list[Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        build_header(entries, None)


def _raw(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def _entry(dtype: Any = "U8", shape: Any = (2,), offsets: Any = (0, 2), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


MALFORMED = {
    "empty": b"",
    "short length": b"\x01\x00",
    "cut": _raw(b"{}")[:-1],
    "over the cap": (100_000_001).to_bytes(8, "little"),
    "huge": b"\xff" * 8,
    "no object": _raw(b"[]"),
    "leading space": _raw(b" {}"),
    "no JSON": _raw(b"{,}"),
    "no UTF-8": _raw(b'{"\xff":1}'),
    "deep": _raw(b'{"a":' + b"[" * 100_000),
    "long number": _raw(b'{"a":' + b"9" * 5000 + b"}"),
    "name twice": _raw(b'{"a":' + json.dumps(_entry()).encode() + b',"a":' + json.dumps(_entry()).encode() + b"}"),
    "metadata numbers": _raw(b'{"__metadata__":{"a":1}}'),
    "metadata list": _raw(b'{"__metadata__":[]}'),
} | {
    name: _raw(json.dumps(content).encode())
    for name, content in {
        "no entry": {"a": 1},
        "more facts": {"a": _entry(more=1)},
        "unknown dtype": {"a": _entry("F7")},
        "dtype no string": {"a": _entry(["U8"])},
        "wrong length": {"a": _entry(shape=[3])},
        "reversed": {"a": _entry(shape=[0], offsets=[2, 0])},
        "negative": {"a": _entry(shape=[-2], offsets=[0, 2])},
        "float": {"a": _entry(shape=[2.0])},
        "bool": {"a": _entry(shape=[True], offsets=[0, 1])},
        "overflow": {"a": _entry(shape=[1 << 62, 1 << 62], offsets=[0, 0])},
        "three offsets": {"a": _entry(offsets=[0, 2, 2])},
        "starts late": {"a": _entry(offsets=[1, 3])},
        "gap": {"a": _entry(), "b": _entry(offsets=[3, 5])},
        "overlap": {"a": _entry(), "b": _entry(offsets=[1, 3])},
        "half a byte": {"a": _entry("F4", [3], [0, 2])},
    }.items()
}


@pytest.mark.parametrize("prefix", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_headers_are_surprises(prefix: bytes) -> None:
    with pytest.raises(Surprise):
        parse_header(prefix)


@given(st.binary(max_size=64), st.integers(0, 120))
def test_any_bytes_give_a_header_or_a_surprise(noise: bytes, at: int) -> None:
    good = build_header([("w", torch.float32, (2, 3)), ("b", torch.int8, (3,))], {"k": "v"})
    for prefix in (noise, good[:at] + noise + good[at + len(noise) :]):
        try:
            parse_header(prefix)
        except Surprise:
            continue
