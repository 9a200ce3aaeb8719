from __future__ import annotations

import asyncio
import inspect

import pytest

import aiockpt
from aiockpt.awaitable import functions
from aiockpt.awaitable.engine import Engine
from aiockpt.config import S3ClientConfig
from awaitable.states import STATE
from dcp.checkpoints import Place, emptied, same_bits


@pytest.mark.parametrize("by", ["config", "option"])
async def test_a_checkpoint_there_and_back(config: S3ClientConfig, local: Place, by: str) -> None:
    way = {"config": config} if by == "config" else {"endpoint_url": local.server.endpoint_url}
    uri = local.uri("ckpt")
    seen: list[object] = []
    saved = await aiockpt.save(STATE, uri, region="us-east-1", on_progress=seen.append, **way)
    loaded = emptied(STATE)
    report = await aiockpt.load(loaded, uri, region="us-east-1", on_progress=seen.append, **way)
    assert same_bits(loaded, STATE)
    assert (saved.kind, report.kind) == ("save", "load")
    assert len(seen) >= 2
    names = {name async for name, _ in aiockpt.load_tensors(uri, names=["a"], region="us-east-1", **way)}
    assert names == {"a"}


def test_a_background_save_of_a_program_without_a_loop(config: S3ClientConfig, local: Place) -> None:
    save = aiockpt.save_in_background(STATE, local.uri("ckpt"), config=config, region="us-east-1")
    save.staged.result(20)
    assert save.result(20).uri == local.uri("ckpt")
    assert same_bits(local.load(emptied(STATE)), STATE)


def test_a_background_save_goes_on_without_its_loop(config: S3ClientConfig, local: Place) -> None:
    async def begin() -> aiockpt.awaitable.saving.BackgroundSave:
        return aiockpt.save_in_background(STATE, local.uri("ckpt"), config=config, region="us-east-1")

    assert asyncio.run(begin()).result(20).kind == "save"


@pytest.mark.parametrize("name", ["save", "save_in_background", "load", "load_tensors"])
def test_functions_and_methods_take_the_same(name: str) -> None:
    function = dict(inspect.signature(getattr(functions, name)).parameters)
    method = dict(inspect.signature(getattr(Engine, name)).parameters)
    del method["self"], function["config"], function["region"]
    assert list(function) == list(method)
    assert all(function[name].default == method[name].default for name in method)
    assert getattr(aiockpt, name) is getattr(functions, name)
