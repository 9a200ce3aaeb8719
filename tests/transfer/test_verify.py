from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import SerializationFormat

from aiockpt.archive.torchload import locate
from aiockpt.blocking.store import Store
from aiockpt.errors import NotFound
from aiockpt.model import MiB, ObjectId
from aiockpt.testing import LocalEndpoint
from aiockpt.transfer.metadata import read_metadata
from aiockpt.transfer.verify import Verdict, verify
from dcp.checkpoints import Place, random_tensor, same_bits, save

STATE: dict[str, Any] = {
    "large": random_tensor((3, 1_500_000), torch.float32, 1),
    "medium": random_tensor((300, 300), torch.bfloat16, 2),
    "small": random_tensor((7,), torch.complex64, 3),
    "tiny": random_tensor((9,), torch.float32, 4),
    "scalar": torch.tensor(3.0),
    "none": torch.empty(0, 3),
    "transposed": random_tensor((800, 90), torch.float32, 5).t(),
    "bool": random_tensor((70_000,), torch.bool, 6),
    "eighth": torch.zeros(1000, dtype=torch.float8_e4m3fn),
    "step": 3,
    "words": {"a": "b", "c": list(range(1000))},
}


def check(store: Store, place: Place) -> Verdict:
    return verify(store, ObjectId(place.bucket, "ckpt"), lambda *_: None)


def byte_of(store: Store, place: Place, name: str) -> tuple[str, int]:
    """The object that holds an item, and a byte of it that matters."""
    parts = store.run(lambda engine: read_metadata(engine, ObjectId(place.bucket, "ckpt")))
    (info,) = (info for index, info in parts[".metadata"].storage_data.items() if index.fqn == name)
    if not isinstance(STATE.get(name), torch.Tensor):
        return info.relative_path, info.offset + info.length // 2
    item = place.get(f"ckpt/{info.relative_path}")[info.offset : info.offset + info.length]
    return info.relative_path, info.offset + locate(item).payload_offset + 3


@pytest.mark.parametrize("settings", [{}, {"serialization_format": SerializationFormat.SAFETENSORS}])
def test_a_good_checkpoint(local: Place, store: Store, settings: dict[str, Any]) -> None:
    state = {name: value for name, value in STATE.items() if name != "transposed" or not settings}
    local.save(state, thread_count=2, **settings)
    told: list[tuple[int, int]] = []
    verdict = verify(store, ObjectId(local.bucket, "ckpt"), lambda *both: told.append(both))
    assert list(verdict.damaged) == []
    assert verdict.items == len(state) + 1  # words.a, words.c
    assert {total for _, total in told} == {verdict.nbytes}
    if not settings:
        assert list(verdict.unproven) == []
        stored = sum(len(local.get(key)) for key in local.keys("ckpt/__"))
        assert 0 < stored - verdict.nbytes < 2048  # the archive of the empty tensor
        assert sum(done for done, _ in told) >= verdict.nbytes


def test_a_checkpoint_of_stock_dcp(local: Place, store: Store, tmp_path: Path) -> None:
    save(STATE, FileSystemWriter(tmp_path, sync_files=False))
    local.sync_up(tmp_path, "ckpt")
    verdict = check(store, local)
    assert (list(verdict.damaged), verdict.items) == ([], len(STATE) + 1)


@pytest.mark.parametrize("name", ["large", "medium", "small", "transposed", "bool", "words.c"])
def test_a_flipped_bit_is_found_and_the_rest_checked(
    local: Place, store: Store, local_endpoint: LocalEndpoint, name: str
) -> None:
    local.save(STATE)
    path, byte = byte_of(store, local, name)
    local_endpoint.flip_bit(local.bucket, f"ckpt/{path}", byte)
    verdict = check(store, local)
    (damaged,) = verdict.damaged
    assert damaged.name == name
    assert damaged.place is not None
    assert damaged.place.path == path
    assert damaged.place.start < byte < damaged.place.end
    assert damaged.reason
    assert verdict.items == len(STATE) + 1


@pytest.mark.parametrize("behind", [300, 600])
def test_an_archive_is_damaged_though_what_is_in_it_can_be_loaded(
    local: Place, store: Store, local_endpoint: LocalEndpoint, behind: int
) -> None:
    """The metadata prove the elements, and a load asks for no more; others read the archive with torch."""
    local.save(STATE)
    path, byte = byte_of(store, local, "tiny")
    end = byte - 3 + STATE["tiny"].nbytes
    local_endpoint.flip_bit(local.bucket, f"ckpt/{path}", end + behind)  # where bits matter to who reads it
    local_endpoint.reset_stats()
    target = {"tiny": torch.zeros(9)}
    assert same_bits(local.load(target), {"tiny": STATE["tiny"]})
    assert local_endpoint.stats().requests_total == 2  # its metadata, and that one read
    assert [finding.name for finding in check(store, local).damaged] == ["tiny"]


def test_all_damage_is_found(local: Place, store: Store, local_endpoint: LocalEndpoint) -> None:
    local.save(STATE)
    for path, byte in [byte_of(store, local, name) for name in ("large", "small", "step")]:
        local_endpoint.flip_bit(local.bucket, f"ckpt/{path}", byte)
    assert {finding.name for finding in check(store, local).damaged} == {"large", "small", "step"}


def test_missing_and_short_objects(local: Place, store: Store) -> None:
    local.save({"w": torch.ones(3000), "v": torch.ones(2000)}, thread_count=2)
    local.client.delete_object(Bucket=local.bucket, Key="ckpt/__0_0.distcp")
    local.put("ckpt/__0_1.distcp", local.get("ckpt/__0_1.distcp")[:-1])
    verdict = check(store, local)
    reasons = sorted(finding.reason.rpartition("/")[2] for finding in verdict.damaged)
    assert reasons[0] == "__0_0.distcp is missing"
    assert reasons[1].startswith("__0_1.distcp has only ")
    assert verdict.nbytes == 0


def test_what_has_no_crc_is_not_called_good(local: Place, store: Store, tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save({"w": torch.ones(3000)}, FileSystemWriter(tmp_path, sync_files=False))
    finally:
        torch.serialization.set_crc32_options(before)
    local.sync_up(tmp_path, "ckpt")
    verdict = check(store, local)
    assert list(verdict.damaged) == []
    assert [finding.name for finding in verdict.unproven] == ["w"]


def test_metadata_that_cannot_be_loaded_are_damage(local: Place, store: Store) -> None:
    local.put("ckpt/.metadata", b"junk")
    (damaged,) = check(store, local).damaged
    assert (damaged.name, damaged.place) == (".metadata", None)


def test_no_checkpoint(local: Place, store: Store) -> None:
    with pytest.raises(NotFound):
        check(store, local)


def test_memory_stays_within_the_budget(local: Place, store: Store) -> None:
    local.save({"w": torch.zeros(30_000_000)})
    small = Store(store.config.merged(memory_bytes=8 * MiB), store.region)
    with small.lease() as lease:
        assert not check(small, local).damaged
        assert lease.engine.budget.peak_bytes <= 8 * MiB
        assert lease.engine.budget.reserved_bytes == 0
