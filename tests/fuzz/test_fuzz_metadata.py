"""Any bytes as metadata: checked metadata, or ``MetadataError``; in little memory."""

from __future__ import annotations

import pickle
from contextlib import suppress

from hypothesis import given

from aiockpt.dcp.metadata import dump_metadata, load_metadata
from aiockpt.dcp.opcodes import looked_through
from aiockpt.errors import MetadataError
from aiockpt.model import MiB
from dcp.test_metadata import WHERE, sample
from fuzz.mutations import little_memory, mutated

SAMPLE = sample()
SAMPLE.planner_data = [SAMPLE.planner_data, {1}, frozenset("x"), b"bytes", bytearray(b"x"), 1j, 1 << 70, -1.5, slice(1)]
PICKLES = [pickle.dumps(SAMPLE, protocol) for protocol in (2, 3, 4, 5)]
PICKLES.append(dump_metadata(SAMPLE)[: looked_through(dump_metadata(SAMPLE)).end])


@given(mutated([*PICKLES, dump_metadata(SAMPLE)]))
def test_any_bytes_as_metadata(data: bytes) -> None:
    with little_memory(MiB + 2000 * len(data)), suppress(MetadataError):
        loaded = load_metadata(data, WHERE)
        for place in (loaded.storage_data or {}).values():
            assert ".." not in place.relative_path.split("/")
            assert 0 <= place.offset <= place.offset + place.length


def test_the_sound_ones_are_sound() -> None:
    for data in PICKLES:
        assert load_metadata(data, WHERE) == SAMPLE
