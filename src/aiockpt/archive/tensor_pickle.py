"""The pickle that torch.save writes for one CPU tensor (its ``data.pkl``): from facts to bytes.

One job: the bytes. Reading them back is `tensor_unpickle`'s. The pickle is of protocol 2; what varies with
the tensor are its dtype, its numbers and, since empty tuples are not memoised, the memo slots after them.
Dtypes that had a storage class of their own in old torch use ``_rebuild_tensor_v2``; the newer ones
``_rebuild_tensor_v3``, which names the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

# The storage classes' names are frozen: new dtypes never get one.
STORAGE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.complex128: "ComplexDoubleStorage",
    torch.complex64: "ComplexFloatStorage",
}


def _dtypes_known_to_this_torch(*names: str) -> dict[str, torch.dtype]:
    return {name: getattr(torch, name) for name in names if hasattr(torch, name)}


# fmt: off
NAMED_DTYPES: dict[str, torch.dtype] = _dtypes_known_to_this_torch(
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    "float4_e2m1fn_x2", "uint16", "uint32", "uint64", "complex32",
    "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2",
)
# fmt: on

_STORAGE = (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v%d\nq\x00((X\x07\x00\x00\x00storageq\x01c%b\nq\x02"
    b"X\x01\x00\x00\x000q\x03X\x03\x00\x00\x00cpuq\x04"
)
_OFFSET = b"tq\x05QK\x00"  # closes the storage; its offset 0
_HOOKS = b"ccollections\nOrderedDict\nq%c)Rq%c"
_TUPLE_ENDS = {1: b"\x85q", 2: b"\x86q", 3: b"\x87q"}


def _opening_and_closings(dtype: torch.dtype) -> tuple[bytes, ...]:
    """What comes before the numbers; what comes after them for 0-d tensors; and for all others."""
    if dtype in STORAGE_NAMES:
        opening = _STORAGE % (2, b"torch\n" + STORAGE_NAMES[dtype].encode())
        return opening, *(_HOOKS % (n, n + 1) + b"tq%cRq%c." % (n + 2, n + 3) for n in (6, 8))
    opening = _STORAGE % (3, b"torch.storage\nUntypedStorage")
    name = str(dtype).removeprefix("torch.").encode()
    closing = (_HOOKS % (n, n + 1) + b"ctorch\n%b\nq%ctq%cRq%c." % (name, n + 2, n + 3, n + 4) for n in (6, 8))
    return opening, *closing


_PIECES = {dtype: _opening_and_closings(dtype) for dtype in (*STORAGE_NAMES, *NAMED_DTYPES.values())}


def picklable(dtype: torch.dtype) -> bool:
    """Whether `tensor_pickle` knows this dtype."""
    return dtype in _PIECES


@lru_cache(maxsize=4096)
def _int(value: int) -> bytes:
    if value < 1 << 8:
        return b"K%c" % value
    if value < 1 << 16:
        return b"M" + value.to_bytes(2, "little")
    if value < 1 << 31:
        return b"J" + value.to_bytes(4, "little")
    nbytes = value.bit_length() // 8 + 1
    return b"\x8a%c" % nbytes + value.to_bytes(nbytes, "little")


def _tuple(values: Sequence[int], memo: bytes) -> bytes:
    numbers = b"".join(map(_int, values))
    if len(values) <= 3:
        return numbers + _TUPLE_ENDS[len(values)] + memo
    return b"(" + numbers + b"tq" + memo


def tensor_pickle(
    dtype: torch.dtype,
    shape: Sequence[int],
    stride: Sequence[int],
    payload_nbytes: int,
    *,
    requires_grad: bool,
) -> bytes:
    """The pickle of a tensor whose storage holds its *payload_nbytes* and nothing else.

    Raises:
        KeyError: a dtype that is not `picklable`.
    """
    opening, scalar_closing, closing = _PIECES[dtype]
    units = payload_nbytes if dtype not in STORAGE_NAMES else payload_nbytes // dtype.itemsize
    grad = b"\x88" if requires_grad else b"\x89"
    if not shape:
        return b"%b%b%b))%b%b" % (opening, _int(units), _OFFSET, grad, scalar_closing)
    numbers = (_int(units), _OFFSET, _tuple(shape, b"\x06"), _tuple(stride, b"\x07"), grad)
    return opening + b"".join(numbers) + closing
