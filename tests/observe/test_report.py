from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest

from aiockpt.observe.report import Phase, Report, in_units, merge

LOAD = Report(
    kind="load",
    uri="s3://bucket/ckpt",
    rank=1,
    elapsed_s=2.5,
    phases={Phase.PLAN: 0.5, Phase.TRANSFER: 2.0},
    first_byte_s=0.02,
    cpu_s=0.8,
    wanted_bytes=4_000_000_000,
    received_bytes=5_000_000_000,
    operations={"GetObject": 7, "HeadObject": 1},
    retries=2,
    hedges=1,
    throttles=3,
    slices=4,
    stretches=40,
    unproven_bytes=5_000,
)


def test_derived_numbers() -> None:
    assert LOAD.requests == 8
    assert LOAD.moved_bytes == 5_000_000_000
    assert LOAD.amplification == 1.25
    assert LOAD.gb_per_s == 2.0
    assert LOAD.cpu_s_per_gb == pytest.approx(0.2)


def test_a_save_moves_what_it_sends() -> None:
    save = replace(LOAD, kind="save", sent_bytes=4_400_000_000)
    assert save.moved_bytes == 4_400_000_000
    assert save.amplification == pytest.approx(1.1)


def test_of_nothing_there_are_no_rates() -> None:
    empty = Report(kind="load", uri="s3://bucket/ckpt")
    assert (empty.amplification, empty.gb_per_s, empty.cpu_s_per_gb, empty.requests) == (1.0, 0.0, 0.0, 0)
    assert "0 B in 0 s" in str(empty)


def test_one_line() -> None:
    assert str(LOAD) == (
        "load s3://bucket/ckpt (rank 1): 4 GB in 2.5 s, 2 GB/s, requests 8, retries 2, hedges 1, "
        "amplification 1.250, CPU 0.2 s/GB, not compared 5 kB"
    )
    assert str(replace(LOAD, unproven_bytes=0)).endswith("CPU 0.2 s/GB")


def test_json_has_fields_and_derived_numbers() -> None:
    data = json.loads(json.dumps(LOAD.to_dict()))
    assert data["phases"] == {"plan": 0.5, "transfer": 2.0}
    assert (data["requests"], data["amplification"], data["wanted_bytes"]) == (8, 1.25, 4_000_000_000)


def test_it_pickles() -> None:
    assert pickle.loads(pickle.dumps(LOAD)) == LOAD


def test_of_several_ranks_counts_add_up_and_times_are_the_longest() -> None:
    other = replace(
        LOAD,
        rank=0,
        elapsed_s=3.0,
        phases={Phase.TRANSFER: 1.0, Phase.VERIFY: 0.1},
        first_byte_s=0.01,
        operations={"GetObject": 3},
    )
    both = merge([LOAD, other])
    assert (both.rank, both.ranks) == (None, 2)
    assert (both.elapsed_s, both.first_byte_s) == (3.0, 0.01)
    assert both.phases == {"plan": 0.5, "transfer": 2.0, "verify": 0.1}
    assert both.operations == {"GetObject": 10, "HeadObject": 1}
    assert (both.wanted_bytes, both.retries, both.hedges, both.throttles) == (8_000_000_000, 4, 2, 6)
    assert (both.slices, both.stretches, both.cpu_s) == (8, 80, 1.6)
    assert both.unproven_bytes == 10_000
    assert "(2 ranks)" in str(both)
    assert merge([both, LOAD]).ranks == 3


def test_merged_alone_it_stays_what_it_is() -> None:
    assert merge([LOAD]) == LOAD


@pytest.mark.parametrize("reports", [[], [LOAD, replace(LOAD, kind="save")], [LOAD, replace(LOAD, uri="s3://b/x")]])
def test_only_reports_of_one_load_can_be_merged(reports: list[Report]) -> None:
    with pytest.raises(ValueError, match="one save or load"):
        merge(reports)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.235 MB"), (5e9, "5 GB"), (2.5e15, "2500 TB")],
)
def test_units(nbytes: float, text: str) -> None:
    assert in_units(nbytes) == text
