from __future__ import annotations

import pytest
import torch

from commands.conftest import Run, document
from dcp.checkpoints import Place


@pytest.fixture
def uri(local: Place) -> str:
    local.save({"w": torch.ones(3)})
    local.put("ckpt/notes.txt", b"a user's")
    return local.uri("ckpt")


def test_a_checkpoint_and_nothing_else(aiockpt: Run, local: Place, uri: str) -> None:
    answer = document(aiockpt("rm", "--yes", "--json", uri))
    assert answer == {"uri": uri, "metadata": ["ckpt/.metadata"], "data": ["ckpt/__0_0.distcp"]}
    assert local.keys() == ["ckpt/notes.txt"]
    assert aiockpt("rm", "-y", uri).exit_code == 3


def test_for_people(aiockpt: Run, uri: str) -> None:
    assert aiockpt("rm", "-y", uri).stdout == f"{uri}: deleted, 2 objects\n"


def test_nobody_to_ask(aiockpt: Run, local: Place, uri: str) -> None:
    result = aiockpt("rm", uri)
    assert result.exit_code == 2
    assert "pass --yes" in result.stderr
    assert len(local.keys()) == 3


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("y\n", 0)])
def test_asking(aiockpt: Run, local: Place, uri: str, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
    monkeypatch.setattr("aiockpt.commands.rm.interactive", lambda: True)
    result = aiockpt("rm", uri, stdin=answer)
    assert result.exit_code == code, result.output
    assert f"Delete {uri} (1 data object)?" in result.stderr
    assert len(local.keys()) == (3 if code else 1)
