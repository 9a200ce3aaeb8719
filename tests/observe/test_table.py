from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from aiockpt.observe.report import Report
from aiockpt.observe.table import table_of

LOAD = Report(
    kind="load",
    uri="s3://bucket/ckpt",
    rank=0,
    elapsed_s=2.5,
    phases={"plan": 0.5, "transfer": 2.0},
    wanted_bytes=4_000_000_000,
    received_bytes=5_000_000_000,
    operations={"GetObject": 7},
    slices=4,
    stretches=40,
    unproven_bytes=3_000,
)


def printed(reports: list[Report]) -> list[list[str]]:
    out = io.StringIO()
    Console(file=out, width=100).print(table_of(reports))
    return [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in out.getvalue().split("\n")
    ]


def test_one_report() -> None:
    rows = printed([LOAD])
    assert rows[0][0].endswith("load s3://bucket/ckpt")
    for row in (
        ["", "rank 0"],
        ["total", "2.500 s"],
        ["transfer", "2.000 s"],
        ["moved", "5 GB"],
        ["moved / wanted", "1.250"],
        ["GB/s", "2"],
        ["requests", "7"],
        ["slices", "4 in 40 ranges"],
        ["not compared", "3 kB"],
    ):
        assert row in rows
    assert not [row for row in rows if row[0] in {"commit", "first byte"}]  # there was none


def test_several_ranks_and_all_of_them() -> None:
    rows = printed([LOAD, replace(LOAD, rank=1, elapsed_s=3.0, first_byte_s=0.02)])
    assert ["", "rank 0", "rank 1", "all"] in rows
    assert ["total", "2.500 s", "3.000 s", "3.000 s"] in rows
    assert ["requests", "7", "7", "14"] in rows
    assert ["first byte", "", "0.020 s", "0.020 s"] in rows


def test_reports_of_different_loads_have_no_table() -> None:
    with pytest.raises(ValueError, match="one save or load"):
        table_of([])
