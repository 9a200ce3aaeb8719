"""Looking through a pickle before it is loaded: nothing in it may make the unpickler take more than it is long.

CPython's unpickler believes what a pickle says: five bytes with a large memo index make it fill gigabytes, others
announce strings that are not there. So the opcodes are walked through first, with a regular expression
(``pickletools.genops`` is 40 times as slow). Only those pass that Python's own picklers write, from protocol 2 on. It
knows nothing of names and classes.

What opcodes do not tell is how large a tuple is whose parts come from the memo. 60 times ``t = (t, t)`` is 300 bytes,
and its hash takes for ever; 100,000 times ``t = (t,)`` overflows the stack. Nothing can interrupt that. So the pickle
comes back with an opcode behind each tuple and frozenset (but for a few small numbers, which is what most are), with
which the unpickler calls ``persistent_load`` with what it has just made: who weighs it there can refuse it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from aiockpt.errors import MetadataError

_STOP = ord(".")
_FRAME = 0x95
_LONG1 = 0x8A
_BINPERSID = b"Q"

_CUT_SHORT = "the pickle is cut short"

#: Opcodes without an argument. Not among them: DUP, BINPERSID, and those of protocols 0 and 1, which no pickler writes
#: today.
_PLAIN = rb"[()01NRabesu\]}\x81\x88\x89\x8f\x90\x92-\x94]"

#: Five bytes: the proof of a small tensor, of which there may be many (``proof.packed_whole``).
_PROOF = rb"C\x05.{5}"

#: What makes one hashable thing of several: tuples and frozensets.
_GATHERS = frozenset(b"t\x85\x86\x87\x91")

#: Opcodes with an argument of fixed length: memo, PROTO; float, and ints below the modulus of Python's hashes.
_FIXED = (rb"[hq\x80].", rb"j....")
_RARER = (rb"G........", rb"\x8a(?:\x05.{5}|\x06.{6}|\x07.{7}|\x04.{4})")

#: Ints of 8 bytes and more can share one hash, and then a dict of them takes time by the square of their number.
_MAX_WIDE_INTS = 1000

#: Numbers, and the tuple of them that a ``torch.Size`` is made of.
_INT = rb"(?:K.|M..|J....)"
_MEMO = rb"(?:\x94|q.|r....)"
_NUMBERS = rb"%b(?:(?:\x85|%b(?:\x86|%b\x87))(?:%b\x85%b?R)?)?" % (_INT, _INT, _INT, _MEMO, _MEMO)


class Pickle(NamedTuple):
    """A pickle whose opcodes are harmless.

    Attributes:
        shown: it, in one piece without frames, and with BINPERSID behind tuples and frozensets; see the module.
        end: where it ended in what was given.
    """

    shown: bytes
    end: int


def _short_strings() -> bytes:
    """SHORT_BINUNICODE of any length: in groups of 16 lengths, since alternatives are tried one by one."""
    groups = [
        rb"(?=[\x%02x-\x%02x])(?:%b)"
        % (first, first + 15, b"|".join(rb"\x%02x.{%d}" % (size, size) for size in range(first, first + 16)))
        for first in range(0, 256, 16)
    ]
    return rb"\x8c(?:%b)" % b"|".join(groups)


@lru_cache(maxsize=8)
def _run_pattern(memo_high: int) -> re.Pattern[bytes]:
    """A run of harmless opcodes that gather nothing; memo indices are below ``(memo_high + 1) << 16``."""
    memo = rb"r..[\x00-\x%02x]\x00" % memo_high
    with_argument = b"|".join((*_FIXED, _short_strings(), _NUMBERS, *_RARER, _PROOF, memo))
    return re.compile(rb"(?s)(?:%b*+(?:%b))*+%b*+" % (_PLAIN, with_argument, _PLAIN))


def _number(nbytes: int) -> Callable[[bytes, int], int]:
    """Where an argument ends that is preceded by its length."""
    return lambda data, at: at + nbytes + int.from_bytes(data[at : at + nbytes], "little")


def _two_lines(data: bytes, at: int) -> int:
    """Where a module and a name end, on lines of their own."""
    return data.index(b"\n", data.index(b"\n", at) + 1) + 1


#: The other opcodes that end a run, and where their arguments end: bytes, strings, ints, names, frames.
_ENDS: dict[int, Callable[[bytes, int], int]] = {
    _STOP: lambda _, at: at,
    **dict.fromkeys((ord("C"), _LONG1), _number(1)),
    **dict.fromkeys(b"XB", _number(4)),
    **dict.fromkeys(b"\x8d\x8e\x96", _number(8)),
    ord("c"): _two_lines,
    _FRAME: lambda _, at: at + 8,
}


def looked_through(data: bytes) -> Pickle:
    """The pickle that ``data`` begins with, if all of its opcodes are harmless.

    Raises:
        MetadataError: one is not, or it has no end.
    """
    run = _run_pattern(min(255, len(data) >> 16))
    pieces: list[bytes] = []
    at = start = wide_ints = 0
    while (at := run.match(data, at).end()) < len(data):  # type: ignore[union-attr]  # it matches nothing, too
        opcode = data[at]
        if opcode in _GATHERS:  # by far the most
            pieces += data[start : at + 1], _BINPERSID
            start = at = at + 1
            continue
        end = _end_of(data, at)
        if opcode == _STOP:
            return Pickle(b"".join((*pieces, data[start:end])), end)
        if opcode == _FRAME:
            pieces.append(data[start:at])
            start = end
        wide_ints += opcode == _LONG1
        if wide_ints > _MAX_WIDE_INTS:
            raise MetadataError(f"the pickle has more than {_MAX_WIDE_INTS} ints of 8 bytes and more, as no checkpoint")
        at = end
    raise MetadataError(_CUT_SHORT)


def _end_of(data: bytes, at: int) -> int:
    """Where the opcode at ``at`` ends, one of those that no run holds."""
    end_of = _ENDS.get(data[at])
    if end_of is None:
        raise MetadataError(f"damaged, or no checkpoint's metadata: the pickle has 0x{data[at]:02x} at {at}")
    try:
        end = end_of(data, at + 1)
    except ValueError as exc:
        raise MetadataError(_CUT_SHORT) from exc
    if end > len(data):
        raise MetadataError(_CUT_SHORT)
    return end
