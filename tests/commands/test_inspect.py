from __future__ import annotations

from pathlib import Path

import pytest
import torch

from commands.conftest import Run, document, lines
from dcp.checkpoints import Place

STATE = {"model": {"w": torch.ones(300, 10), "b": torch.ones(3, dtype=torch.bfloat16)}, "step": 5}


@pytest.fixture
def uri(local: Place) -> str:
    local.save(STATE)
    return local.uri("ckpt")


def test_everything(aiockpt: Run, uri: str) -> None:
    answer = document(aiockpt("inspect", uri, "--json"))
    assert answer["uri"] == uri
    b, w = answer["tensors"]
    assert (b["name"], b["dtype"], b["shape"], b["nbytes"]) == ("model.b", "bfloat16", [3], 6)
    assert (w["name"], w["dtype"], w["shape"], w["nbytes"]) == ("model.w", "float32", [300, 10], 12000)
    (chunk,) = w["chunks"]
    assert (chunk["offsets"], chunk["sizes"], chunk["object"]) == ([0, 0], [300, 10], "__0_0.distcp")
    assert [blob["name"] for blob in answer["blobs"]] == ["step"]
    stored = sum(one["end"] - one["start"] for one in [chunk, b["chunks"][0], answer["blobs"][0]])
    assert answer["totals"] == {
        "tensors": 2, "elements": 3003, "nbytes": 12006, "blobs": 1, "stored_nbytes": stored, "objects": 1, "ranks": 1,
    }  # fmt: skip


def test_for_people(aiockpt: Run, uri: str) -> None:
    table = lines(aiockpt("inspect", uri))
    assert table[0] == ["tensor", "dtype", "shape", "size", "chunks", "objects"]
    assert table[1] == ["model.b", "bfloat16", "[3]", "6", "B", "1", "1"]
    assert table[2] == ["model.w", "float32", "[300,", "10]", "12.0", "kB", "1", "1"]
    assert table[3][:4] == ["step:", "a", "serialized", "object,"]
    assert table[4][:5] == ["2", "tensors,", "3,003", "elements,", "12.0"]


def test_chosen_names_and_their_chunks(aiockpt: Run, uri: str) -> None:
    table = lines(aiockpt("inspect", uri, "--chunks", "--match", "*.w", "--regex", "^st"))
    assert table[1][:6] == ["model.w", "float32", "[0,", "0]", "[300,", "10]"]
    assert table[1][6] == "__0_0.distcp"
    assert table[2][0] == "step:"
    assert len(table) == 4


def test_a_folder(aiockpt: Run, uri: str, local: Place, tmp_path: Path) -> None:
    folder = local.sync_down("ckpt", tmp_path)
    there, here = (document(aiockpt("inspect", place, "--json")) for place in (uri, folder))
    assert here.pop("uri") == str(folder)
    assert there.pop("uri") == uri
    assert here == there


def test_what_is_not_there(aiockpt: Run, local: Place, tmp_path: Path) -> None:
    for place in (local.uri("none"), tmp_path):
        result = aiockpt("inspect", place)
        assert result.exit_code == 3
        assert result.stderr.startswith(f"Error: there is no complete checkpoint at {place}")


def test_that_no_name_matches_is_said(aiockpt: Run, uri: str) -> None:
    result = aiockpt("inspect", uri, "--match", "no-such-*")
    assert result.exit_code == 0
    assert "No name matches, of " in result.stderr


def test_a_broken_expression_is_a_usage_error(aiockpt: Run, uri: str) -> None:
    result = aiockpt("inspect", uri, "--regex", "(")
    assert result.exit_code == 2
    assert "'(' is no regular expression" in result.stderr
