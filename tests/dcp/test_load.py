"""How much a load fetches, and what it makes of damage and failures; on the local endpoint, which counts."""

from __future__ import annotations

import mmap
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from aiockpt.dcp import staging
from aiockpt.dcp.proof import ATTRIBUTE
from aiockpt.dcp.slices import MAX_STRIDE_GAP_BYTES
from aiockpt.errors import ChecksumMismatch, IntegrityError, MetadataError, NotFound, S3Exception, ShortRead
from aiockpt.model import KiB, MiB
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, StateDict, emptied, failure, nbytes_of, random_tensor, same_bits

MODEL = {
    "large": random_tensor((1000, 1000), torch.float32, 1),
    "middle": random_tensor((300, 400), torch.float32, 2),
    "small": random_tensor((100, 100), torch.float32, 3),
    "transposed": random_tensor((500, 600), torch.float32, 4).t(),
}


def data_gets(endpoint: LocalEndpoint) -> list[Any]:
    return [r for r in endpoint.requests() if r.operation == "GetObject" and r.key.endswith(".distcp")]


def fetched(endpoint: LocalEndpoint) -> int:
    """Bytes of data objects that were sent since the last reset."""
    return sum(record.body_bytes_out for record in data_gets(endpoint))


class Slices(DefaultLoadPlanner):
    """Loads slices of stored tensors into whole targets: what resharding asks for."""

    def __init__(self, starts: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self._starts = starts
        self.committed: list[str] = []

    def create_local_plan(self) -> LoadPlan:
        items = []
        for name, start in self._starts.items():
            target = self.state_dict[name]
            zeros = torch.Size([0] * target.dim())
            index = MetadataIndex(name, zeros)
            items.append(ReadItem(LoadItemType.TENSOR, index, zeros, index, torch.Size(start), target.shape))
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        tensor: torch.Tensor = self.state_dict[read_item.dest_index.fqn]
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        self.committed.append(read_item.dest_index.fqn)


@pytest.mark.parametrize("form", SerializationFormat)
@pytest.mark.parametrize("single_file_per_rank", [True, False])
def test_a_whole_load_fetches_what_there_is(
    local: Place, local_endpoint: LocalEndpoint, form: SerializationFormat, single_file_per_rank: bool
) -> None:
    local.save(MODEL, serialization_format=form, single_file_per_rank=single_file_per_rank)
    local_endpoint.reset_stats()
    assert same_bits(local.load(emptied(MODEL)), MODEL)
    probes = 64 * KiB * len(local.keys("ckpt/__")) if form is SerializationFormat.SAFETENSORS else 0
    assert fetched(local_endpoint) <= 1.01 * nbytes_of(MODEL) + probes


def test_staged_tensors_are_fetched_once_however_little_memory_there_is(
    local: Place, local_endpoint: LocalEndpoint
) -> None:
    """Targets of another layout are staged block by block; heads and tails come with their neighbours, not again."""
    state = {f"w{n}": random_tensor((300, 600), torch.float32, n) for n in range(20)}
    local.save(state)
    (key,) = local.keys("ckpt/__")
    stored_bytes = len(local.get(key))
    local_endpoint.reset_stats()
    targets = {name: torch.zeros(600, 300).t() for name in state}
    assert same_bits(local.load(targets, memory_bytes=4 * MiB), state)
    assert fetched(local_endpoint) == stored_bytes


def test_staging_memory_is_used_again_and_bounded(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks' sizes: a load makes no more than the budget, a save little more, of what it could make."""
    made: list[int] = []

    def make(fileno: int, nbytes: int, *, flags: int) -> mmap.mmap:
        made.append(nbytes)
        return mmap.mmap(fileno, nbytes, flags=flags)

    monkeypatch.setattr(staging, "mmap", SimpleNamespace(**{**vars(mmap), "mmap": make}))
    state = {f"w{n}": random_tensor((700 + 40 * n, 1800), torch.float32, n)[:, ::2] for n in range(30)}
    local.save(state, memory_bytes=8 * MiB, part_size=5 * MiB)
    assert 0 < sum(made) <= 32 * MiB < nbytes_of(state)  # with the first part, which waits
    made.clear()
    halves = {f"h{n}": random_tensor((270, 2200), torch.float32, n)[:, ::2] for n in range(50)}  # of slabs of 2 MiB
    local.save(halves, "halves", memory_bytes=16 * MiB, part_size=5 * MiB)
    assert 0 < sum(made) <= 20 * MiB < nbytes_of(halves)
    made.clear()
    targets = {name: torch.zeros(tensor.shape[::-1]).t() for name, tensor in state.items()}
    assert same_bits(local.load(targets, memory_bytes=8 * MiB), state)
    assert 0 < sum(made) <= 32 * MiB


def test_a_whole_load_takes_few_requests(local: Place, local_endpoint: LocalEndpoint) -> None:
    state = {f"w{n}": random_tensor((100, 20), torch.float32, n) for n in range(1000)}
    local.save(state)
    local_endpoint.reset_stats()
    assert same_bits(local.load(emptied(state)), state)
    assert fetched(local_endpoint) <= 1.25 * nbytes_of(state)  # an archive adds 1.5 KB to 8 KB
    assert local_endpoint.stats().requests_total <= 16


def test_one_percent_fetches_about_that(local: Place, local_endpoint: LocalEndpoint) -> None:
    state = {f"w{n}": random_tensor((100, 1000), torch.float32, n) for n in range(20)} | {"x": torch.randn(200, 100)}
    local.save(state)
    local_endpoint.reset_stats()
    wanted = {"x": state["x"]}
    assert same_bits(local.load(emptied(wanted)), wanted)
    assert nbytes_of(wanted) < 0.011 * nbytes_of(state)
    assert fetched(local_endpoint) <= nbytes_of(wanted) + 4 * KiB


def test_every_second_item_leaves_the_others_out(local: Place, local_endpoint: LocalEndpoint) -> None:
    state = {f"w{n}": random_tensor((1024, 1024), torch.float32, n) for n in range(8)}
    local.save(state)
    local_endpoint.reset_stats()
    wanted = {name: tensor for name, tensor in state.items() if int(name[1:]) % 2}
    assert same_bits(local.load(emptied(wanted)), wanted)
    assert fetched(local_endpoint) <= 1.01 * nbytes_of(wanted)


@pytest.mark.parametrize("form", SerializationFormat)
@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_rows_fetch_what_they_need(
    local: Place, local_endpoint: LocalEndpoint, form: SerializationFormat, ranks: int
) -> None:
    state = {"w": random_tensor((1000, 1000), torch.float32, 1), "v": random_tensor((999, 500), torch.bfloat16, 2)}
    local.save(state, serialization_format=form)
    local_endpoint.reset_stats()
    needed = 0
    for rank in range(ranks):
        parts = {name: torch.tensor_split(tensor, ranks)[rank] for name, tensor in state.items()}
        starts: dict[str, tuple[int, ...]] = {
            name: (_start(tensor.shape[0], ranks, rank), 0) for name, tensor in state.items()
        }
        planner = Slices(starts)
        assert same_bits(local.load(emptied(parts), planner=planner), parts)
        assert sorted(planner.committed) == ["v", "w"]
        needed += nbytes_of(parts)
    headers = ranks * 64 * KiB if form is SerializationFormat.SAFETENSORS else 0
    assert fetched(local_endpoint) <= 1.05 * needed + headers


def _start(rows: int, ranks: int, rank: int) -> int:
    return rank * (rows // ranks) + min(rank, rows % ranks)


def test_closely_strided_columns_are_fetched_with_their_gaps(local: Place, local_endpoint: LocalEndpoint) -> None:
    state = {"w": random_tensor((1000, 1000), torch.float32, 1)}
    local.save(state)
    local_endpoint.reset_stats()
    part = {"w": state["w"][:, 250:500]}
    assert same_bits(local.load(emptied(part), planner=Slices({"w": (0, 250)})), part)
    assert fetched(local_endpoint) <= 1.01 * nbytes_of(state)
    assert len(data_gets(local_endpoint)) <= 4


def test_widely_strided_columns_leave_their_gaps_out(local: Place, local_endpoint: LocalEndpoint) -> None:
    columns = 2 * (MAX_STRIDE_GAP_BYTES // 4 + KiB)
    state = {"w": random_tensor((5, columns), torch.float32, 1)}
    local.save(state)
    local_endpoint.reset_stats()
    part = {"w": state["w"][:, : columns // 2].contiguous()}
    assert same_bits(local.load(emptied(part), planner=Slices({"w": (0, 0)})), part)
    assert fetched(local_endpoint) <= nbytes_of(part) + 5 * 2 * 16 * KiB  # with the blocks in which rows begin and end


@pytest.mark.parametrize("rows", [30, 60, 120, 240, 960])
def test_slices_of_small_tensors_leave_the_rest_out(local: Place, local_endpoint: LocalEndpoint, rows: int) -> None:
    """Neighbours of 58 KB to 1.8 MB, of which a rank among twice as many wants half; below 128 KB, it may get all."""
    state = {f"{number}": random_tensor((rows, 480), torch.float32, number) for number in range(10)}
    local.save(state)
    halves = {name: tensor[: rows // 2] for name, tensor in state.items()}
    target = emptied(halves)
    local_endpoint.reset_stats()
    local.load(target, planner=Slices(dict.fromkeys(state, (0, 0))))
    assert same_bits(target, halves)
    most = 1.05 * nbytes_of(halves) if rows > 60 else 1.1 * nbytes_of(state)
    assert fetched(local_endpoint) <= most


def test_damage_is_found_in_slices_of_small_tensors(local: Place, local_endpoint: LocalEndpoint) -> None:
    """Whether they are fetched alone (halves, by their blocks) or with the rest (fifths, by the archive's CRC32)."""
    state = {"w": random_tensor((240, 240), torch.float32, 1)}
    local.save(state)
    local_endpoint.flip_bit(local.bucket, "ckpt/__0_0.distcp", 16 * KiB)
    for part in (2, 5):
        target = {"w": torch.zeros(240 // part, 240)}
        with pytest.raises(CheckpointException) as caught:
            local.load(target, planner=Slices({"w": (0, 0)}))
        error = failure(caught.value)
        assert isinstance(error, ChecksumMismatch)
        assert "'w'" in str(error)


@pytest.mark.parametrize(
    "spoilt", [lambda packed: packed[:-4], lambda _: b"", lambda _: 7, lambda packed: b"\x7f" + packed[1:]]
)
@pytest.mark.parametrize("checksum", ["crc32", "off"])
@pytest.mark.parametrize("rows", [48, 1024], ids=["small", "large"])
def test_slices_of_items_whose_proof_does_not_fit(local: Place, rows: int, checksum: str, spoilt: Any) -> None:
    """It may be another checkpoint's; without comparing, nobody minds."""
    state = {"w": random_tensor((rows, 1024), torch.float32, 1)}
    local.save(state)
    metadata = pickle.loads(local.get("ckpt/.metadata"))
    for place in metadata.storage_data.values():
        setattr(place, ATTRIBUTE, spoilt(getattr(place, ATTRIBUTE)))
    local.client.put_object(Bucket=local.bucket, Key="ckpt/.metadata", Body=pickle.dumps(metadata))
    target = {"w": torch.zeros(12, 1024)}
    planner = Slices({"w": (12, 0)})
    if checksum == "off":
        assert same_bits(local.load(target, planner=planner, checksum="off"), {"w": state["w"][12:24]})
        return
    with pytest.raises(CheckpointException) as caught:
        local.load(target, planner=planner)
    assert isinstance(failure(caught.value), MetadataError)


@pytest.mark.parametrize("form", SerializationFormat)
def test_slices_of_every_kind(local: Place, form: SerializationFormat) -> None:
    state = {"w": random_tensor((6, 50, 400), torch.float32, 1), "small": random_tensor((4, 5, 6), torch.int16, 2)}
    local.save(state, serialization_format=form)
    for starts, sizes in [
        ((0, 0, 0), (1, 1, 1)),
        ((2, 3, 1), (2, 2, 3)),
        ((3, 0, 0), (1, 5, 6)),
        ((0, 4, 0), (4, 1, 6)),
        ((0, 0, 5), (4, 5, 1)),
    ]:
        index = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
        part = {name: tensor[index] for name, tensor in state.items()}
        assert same_bits(local.load(emptied(part), planner=Slices(dict.fromkeys(state, starts))), part)
        cast = {name: torch.zeros(sizes, dtype=torch.float64) for name in state}
        local.load(cast, planner=Slices(dict.fromkeys(state, starts)))
        assert all(same_bits(cast[name], part[name].double()) for name in state)


def load_fails(place: Place, state: StateDict, **kwargs: Any) -> BaseException:
    with pytest.raises(CheckpointException) as caught:
        place.load(emptied(state), **kwargs)
    return failure(caught.value)


#: where in the object of the one tensor a bit is flipped: elements, and the frame around them
@pytest.mark.parametrize("shape", [(400, 500), (30, 40)], ids=["large", "small"])
@pytest.mark.parametrize("place", ["first byte", "pickle", "elements", "last byte"])
def test_bits_flipped_on_the_way_are_fetched_again(
    local: Place, local_endpoint: LocalEndpoint, shape: tuple[int, int], place: str
) -> None:
    state = {"w": random_tensor(shape, torch.float32, 1)}
    local.save(state)
    size = len(local.get("ckpt/__0_0.distcp"))
    at = {"first byte": 0, "pickle": 100, "elements": 2000, "last byte": size - 1}[place]
    local_endpoint.add_fault(Fault(FaultKind.FLIP_BIT, operation="GetObject", key=".distcp", after_bytes=at, count=1))
    assert same_bits(local.load(emptied(state)), state)
    assert local_endpoint.stats().faults == 1


def test_bits_flipped_on_the_way_to_a_store_that_compares_nothing(local: Place, local_endpoint: LocalEndpoint) -> None:
    """The archive's own CRC32 is the proof that always holds."""
    local_endpoint.add_fault(Fault(FaultKind.IGNORE_CHECKSUMS, count=None))
    local_endpoint.add_fault(Fault(FaultKind.FLIP_BIT, "UploadPart", after_bytes=2_000_000))
    state = {"w": torch.ones(2500, 1000)}
    local.save(state)
    with pytest.raises(CheckpointException) as caught:
        local.load(emptied(state))
    error = failure(caught.value)
    assert isinstance(error, ChecksumMismatch)
    assert all(word in str(error) for word in ("'w'", local.uri("ckpt/__0_0.distcp")))


@pytest.mark.parametrize("shape", [(400, 500), (30, 40)], ids=["large", "small"])
def test_bits_flipped_at_rest_name_tensor_object_and_place(
    local: Place, local_endpoint: LocalEndpoint, shape: tuple[int, int]
) -> None:
    state = {"v": torch.randn(5), "layers.0.w": random_tensor(shape, torch.float32, 1)}
    local.save(state)
    size = len(local.get("ckpt/__0_0.distcp"))
    local_endpoint.flip_bit(local.bucket, "ckpt/__0_0.distcp", size - 3000)
    error = load_fails(local, state)
    assert isinstance(error, ChecksumMismatch)
    stored = local.reader().read_metadata().storage_data
    assert stored
    offset = next(place.offset for index, place in stored.items() if index.fqn == "layers.0.w")
    for fact in ("layers.0.w", local.uri("ckpt/__0_0.distcp"), str(offset)):
        assert fact in str(error)


@pytest.mark.parametrize(
    "value",
    [
        random_tensor((400, 500), torch.float32, 1).t(),
        random_tensor((40, 50), torch.float32, 1).t(),
        random_tensor((400, 500), torch.complex64, 1).conj(),
        list(range(5000)),
    ],
    ids=["large transposed", "small transposed", "conjugated", "object"],
)
def test_damage_is_found_in_items_of_every_kind(local: Place, local_endpoint: LocalEndpoint, value: Any) -> None:
    state = {"w": value}
    local.save(state)
    size = len(local.get("ckpt/__0_0.distcp"))
    local_endpoint.add_fault(
        Fault(FaultKind.FLIP_BIT, operation="GetObject", key=".distcp", after_bytes=size // 2, count=1)
    )
    assert same_bits(local.load(emptied(state)), state)
    assert local_endpoint.stats().faults == 1
    local_endpoint.flip_bit(local.bucket, "ckpt/__0_0.distcp", size // 2)
    error = load_fails(local, state)
    assert isinstance(error, ChecksumMismatch)
    assert "'w'" in str(error)


@pytest.mark.parametrize("shape", [(400, 500), (40, 50)], ids=["large", "small"])
def test_with_checksums_off_nobody_looks(local: Place, local_endpoint: LocalEndpoint, shape: tuple[int, int]) -> None:
    state = {"w": random_tensor(shape, torch.float32, 1)}
    local.save(state)
    local_endpoint.flip_bit(local.bucket, "ckpt/__0_0.distcp", 5000)
    assert not same_bits(local.load(emptied(state), checksum="off"), state)


@pytest.mark.parametrize("kind", [FaultKind.RESET, FaultKind.END_EARLY, FaultKind.ERROR, FaultKind.CLOSE])
def test_broken_answers_are_made_good(local: Place, local_endpoint: LocalEndpoint, kind: FaultKind) -> None:
    local.save(MODEL)
    local_endpoint.add_fault(Fault(kind, operation="GetObject", key=".distcp", after_bytes=1000, count=3))
    assert same_bits(local.load(emptied(MODEL)), MODEL)


@pytest.mark.parametrize("length", [0, 100, 400_000])
def test_a_truncated_object(local: Place, length: int) -> None:
    state = {"w": random_tensor((400, 500), torch.float32, 1)}
    local.save(state)
    local.put("ckpt/__0_0.distcp", local.get("ckpt/__0_0.distcp")[:length])
    error = load_fails(local, state, max_attempts=2)
    assert isinstance(error, S3Exception)
    assert local.uri("ckpt/__0_0.distcp") in str(error)


def test_a_missing_data_object(local: Place) -> None:
    local.save(MODEL)
    local.client.delete_object(Bucket=local.bucket, Key="ckpt/__0_0.distcp")
    error = load_fails(local, MODEL)
    assert isinstance(error, NotFound)
    assert isinstance(error, FileNotFoundError)
    assert local.uri("ckpt/__0_0.distcp") in str(error)


def test_an_object_of_garbage(local: Place) -> None:
    local.save(MODEL)
    size = len(local.get("ckpt/__0_0.distcp"))
    local.put("ckpt/__0_0.distcp", bytes(size))
    assert isinstance(load_fails(local, MODEL), MetadataError | IntegrityError)


def test_metadata_that_promises_too_much(local: Place) -> None:
    local.save({"w": torch.ones(400, 500)}, "large")
    local.save({"w": torch.ones(40, 50)}, "ckpt")
    local.put("ckpt/.metadata", local.get("large/.metadata"))
    assert isinstance(load_fails(local, {"w": torch.ones(400, 500)}), ShortRead | S3Exception | MetadataError)


class Failing(DefaultLoadPlanner):
    """Raises when the second tensor is resolved, or committed."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self._method = method
        self._calls = 0

    def _count(self, method: str) -> None:
        if method == self._method:
            self._calls += 1
            if self._calls == 2:
                raise ZeroDivisionError(method)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        self._count("resolve_tensor")
        return cast("torch.Tensor", super().resolve_tensor(read_item))

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        self._count("commit_tensor")
        super().commit_tensor(read_item, tensor)

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        self._count("load_bytes")
        super().load_bytes(read_item, value)


@pytest.mark.parametrize("method", ["resolve_tensor", "commit_tensor", "load_bytes"])
def test_a_failing_planner_is_what_is_raised_and_the_next_load_works(
    local: Place, local_endpoint: LocalEndpoint, method: str
) -> None:
    state = MODEL | {"a": 1, "b": 2}
    local.save(state)
    assert isinstance(load_fails(local, state, planner=Failing(method)), ZeroDivisionError)
    assert same_bits(local.load(emptied(state)), state)
    assert local_endpoint.stats().requests_current == 0


def test_little_memory_is_enough(local: Place) -> None:
    """Targets that need staging, with a budget below one block."""
    state = {"w": random_tensor((1500, 2000), torch.float32, 1), "small": torch.randn(100), "o": "x" * 100_000}
    local.save(state, memory_bytes=MiB)
    target = {"w": torch.zeros(2000, 1500).t(), "small": torch.zeros(200)[::2], "o": None}
    assert same_bits(local.load(target, memory_bytes=MiB), state)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_several_checkpoints_at_once(local: Place) -> None:
    """Threads share an engine, a budget and connections, and nothing else."""
    states = [{"w": random_tensor((500, 1000), torch.float32, n), "n": n} for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: save_quietly(local, states[n], f"c{n}"), range(4)))
        loaded = list(pool.map(lambda n: load_quietly(local, emptied(states[n]), f"c{n}"), range(4)))
    assert same_bits(loaded, states)


def save_quietly(place: Place, state: StateDict, name: str) -> None:
    dcp.save(state, storage_writer=place.writer(name), no_dist=True)


def load_quietly(place: Place, state: StateDict, name: str) -> StateDict:
    dcp.load(state, storage_reader=place.reader(name), no_dist=True)
    return state
