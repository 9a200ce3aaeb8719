from __future__ import annotations

import pickle
import random
import tracemalloc

import pytest
import torch

from aiockpt.archive.surprise import Surprise
from aiockpt.archive.tensor_pickle import tensor_pickle
from aiockpt.archive.tensor_unpickle import TensorFacts, tensor_facts
from archive.torch_items import DTYPES

GOOD = tensor_pickle(torch.float32, (2, 3), (3, 1), 24, requires_grad=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (7,), (1 << 40, 2), (2, 3, 4, 5)])
def test_facts_come_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    stride, nbytes = tuple(range(len(shape))), dtype.itemsize * 70_000
    written = tensor_pickle(dtype, shape, stride, nbytes, requires_grad=True)
    assert tensor_facts(written) == TensorFacts(dtype, shape, stride, 0, "0", nbytes)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code ran",)


# fmt: off
UNSOUND = {
    "empty": b"",
    "no stop": GOOD[:-1],
    "goes on": GOOD + b".",
    "another protocol": pickle.dumps(1, 4),
    "code": pickle.dumps(_Evil(), 2),
    "a number": b"\x80\x02K\x01.",
    "two values": b"\x80\x02K\x01K\x01.",
    "pop of nothing": b"\x80\x02t.",
    "tuple below mark": b"\x80\x02K\x01(\x85.",
    "unknown memo": b"\x80\x02h\x01.",
    "huge memo index": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "huge string": b"\x80\x02X\xff\xff\xff\x7f.",
    "a reference to a number": b"\x80\x02K\x01Q.",
    "unknown storage": GOOD.replace(b"FloatStorage", b"FloorStorage"),
    "on a GPU": GOOD.replace(b"cpu", b"gpu"),
    "a call of a call": GOOD.replace(b"Rq\x0b.", b"Rq\x0b)R."),
    "untyped in v2": GOOD.replace(b"ctorch\nFloatStorage", b"ctorch.storage\nUntypedStorage"),
    "v3 of typed": GOOD.replace(b"_v2", b"_v3"),
    "hooks": GOOD.replace(b")Rq\x09", b"K\x01\x85Rq\x09"),
    "negative size": GOOD.replace(b"K\x02K\x03\x86", b"J\xff\xff\xff\xffK\x03\x86"),
    "string size": GOOD.replace(b"K\x02K\x03\x86", b"h\x01K\x03\x86"),
    "one stride": GOOD.replace(b"K\x03K\x01\x86", b"K\x03\x85"),
}
# fmt: on


@pytest.mark.parametrize("unsound", UNSOUND.values(), ids=UNSOUND.keys())
def test_other_pickles_are_surprises(unsound: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert unsound != GOOD
    with pytest.raises(Surprise):
        tensor_facts(unsound)
    assert not capsys.readouterr().out


def test_edits_give_facts_or_surprises_in_little_memory() -> None:
    rng = random.Random(5)
    tracemalloc.start()
    for _ in range(4_000):
        edited = bytearray(GOOD)
        for _ in range(rng.randrange(1, 4)):
            edited[rng.randrange(len(edited))] = rng.randrange(256)
        try:
            tensor_facts(bytes(edited))
        except Surprise:
            continue
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
