"""Each benchmark runs, tiny: every contender that is installed finds its bytes, and the results can be read.

Nothing here is timed. What is counted (bytes, requests) is held to its bar, where a tiny run is large enough for it.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from bench.__main__ import BENCHMARKS, main
from bench.contenders import BARE, FSSPEC, NULL, OURS, PEER, TWO_THREADS
from bench.measure import Sample
from bench.report import Report
from bench.transfer import BUSIEST, OTHERS, add_thread_rows
from click.testing import CliRunner

from aiockpt.model import MiB

TINY = {
    "first": ["--size-gb=0.002", f"--contender={OURS}"],
    "interference": ["--size-gb=0.002"],
    "load": ["--size-gb=0.002"],
    "reshard": ["--size-gb=0.002", f"--contender={OURS}", "--dimension=0"],
    "save": ["--size-gb=0.002"],
    "scaling": ["--sizes-gb=0.002,0.004"],
    "shaped": ["--size-gb=0.002", "--latency-s=0.001"],
    "small": ["--counts=20,40", "--objects=1,2", f"--contender={OURS}"],
    "staged": ["--size-gb=0.002", f"--contender={OURS}"],
    "tls": ["--size-gb=0.002", f"--contender={OURS}", f"--contender={TWO_THREADS}"],
}

PEERS = {name for name, package in ((PEER, "s3torchconnector"), (FSSPEC, "s3fs")) if find_spec(package)}


def run(name: str, *arguments: str) -> None:
    outcome = CliRunner().invoke(main, [name, "--rounds=1", *TINY[name], *arguments], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output


def results(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    run(name, f"--json={folder / 'results.json'}", *arguments)
    read: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return read


def test_every_benchmark_is_tried() -> None:
    assert TINY.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("name", sorted(TINY))
def test_runs(name: str, tmp_path: Path) -> None:
    found = results(name, tmp_path)
    contenders = {row["contender"] for row in found["rows"]}
    assert OURS in contenders
    assert contenders <= {OURS, TWO_THREADS, PEER, FSSPEC, BARE, NULL}
    assert found["hardware"]
    assert all(
        spread["least"] <= spread["median"] <= spread["largest"]
        for row in found["rows"]
        for spread in row["values"].values()
    )


def test_interference_of_a_process() -> None:
    run("interference", "--checkpointer=process", f"--contender={OURS}")


@pytest.mark.parametrize("peer", sorted({PEER, FSSPEC}))
def test_peers_take_part(peer: str, tmp_path: Path) -> None:
    if peer not in PEERS:
        pytest.skip(f"{peer} is not installed")
    found = results("load", tmp_path, f"--contender={OURS}", f"--contender={peer}")
    assert {row["contender"] for row in found["rows"]} == {OURS, peer, BARE}


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("load", f"--contender={OURS}", f"--plot={tmp_path / 'load.png'}")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_ours_fetches_and_sends_each_byte_once(tmp_path: Path) -> None:
    for name in ("load", "save"):
        rows = results(name, tmp_path, f"--contender={OURS}")["rows"]
        moved = [row["values"]["bytes moved / needed"]["largest"] for row in rows if row["contender"] == OURS]
        assert max(moved) < 1.1  # archives' frames and the metadata are some of 2 MB


def test_the_time_of_loop_threads_is_told() -> None:
    """By what the busiest has used, whichever it was; a peer cannot tell."""
    report = Report("of threads")
    two = [Sample(2.0, 3.0, MiB, int(2e9), notes) for notes in ({"a": 1.0, "b": 0.4}, {"a": 0.6, "b": 1.2})]
    results = {(TWO_THREADS, "load"): two, (PEER, "load"): [Sample(4.0, 6.0, MiB, int(2e9))]}
    add_thread_rows(report, {key: [(sample, None) for sample in samples] for key, samples in results.items()})
    assert report.median(TWO_THREADS, "load", BUSIEST) == pytest.approx(0.55)
    assert report.median(TWO_THREADS, "load", OTHERS) == pytest.approx(0.25)
    assert report.median(PEER, "load", BUSIEST) is None
    assert report.median(PEER, "load", "GB/s") == pytest.approx(0.5)
