from __future__ import annotations

import gc
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._shard.sharded_tensor import init_from_local_shards
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor, Replicate, init_device_mesh
from torch.distributed.tensor import Shard as ShardPlacement
from zlib_ng import zlib_ng

from aiockpt import crc
from aiockpt.archive.torchsave import storage_view
from aiockpt.dcp import lent_memory, snapshot
from aiockpt.dcp.blocks import block_bounds
from aiockpt.dcp.proof import ProofWriter
from aiockpt.dcp.snapshot import LARGE_BYTES, proof_of
from aiockpt.model import KiB, MiB
from dcp.checkpoints import Place, emptied, random_tensor, raw_bytes, same_bits, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*ShardedTensor")

take = snapshot.snapshot
LARGE = {
    "v": random_tensor((7, 100_003), torch.bfloat16, 2),  # the next one is aligned all the same
    "w": random_tensor((1100, 1024), torch.float32, 1),
    "rows": random_tensor((256, 1111), torch.float32, 3),
    "least": random_tensor((LARGE_BYTES,), torch.uint8, 4),
}
STATE = {"model": {**LARGE, "small": random_tensor((30,), torch.float32, 3)}, "list": [torch.tensor(3), 5], "step": 7}


class Anything:
    def __init__(self, value: int) -> None:
        self.value = value


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    """Tensors of any dtype, below and above what is large, laid out in any way, in any nest."""
    large = LARGE_BYTES // 4
    shapes = st.sampled_from(
        [(), (0,), (3, 0), (1,), (5, 3), (large,), (large // 4, 5), (2, large // 2, 3), (large + 1,)]
    )
    dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.complex64, torch.float64])
    layouts = st.sampled_from(["as it is", "transposed", "stepped", "expanded", "conjugated", "parameter"])

    @st.composite
    def tensors(draw: st.DrawFn) -> torch.Tensor:
        tensor = random_tensor(draw(shapes), draw(dtypes), draw(st.integers(0, 9)))
        match draw(layouts):
            case "transposed" if tensor.dim() > 1:
                return tensor.transpose(0, -1)
            case "stepped" if tensor.dim():
                return tensor[::2]
            case "expanded" if tensor.dim() == 1 and tensor.numel() < 10:
                return tensor.expand(3, *tensor.shape)
            case "conjugated" if tensor.is_complex():
                return tensor.conj()
            case "parameter" if tensor.is_floating_point():
                return torch.nn.Parameter(tensor)
            case _:
                return tensor

    leaves = st.one_of(tensors(), st.integers(), st.text(max_size=3), st.none(), st.booleans())
    nests = st.recursive(leaves, lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner)), max_leaves=4)
    return draw(st.dictionaries(st.text(max_size=3), nests, max_size=4))


@given(states())
@settings(max_examples=60)
def test_it_is_what_stock_dcp_would_copy(state: dict[str, Any]) -> None:
    ours, theirs = take(state), BlockingAsyncStager().stage(state)
    assert same_bits(ours, state)
    assert same_bits(ours, theirs)
    for one, other in zip(leaves(ours), leaves(theirs), strict=True):
        assert (one.stride(), one.requires_grad, type(one)) == (other.stride(), other.requires_grad, type(other))


def leaves(nest: Any) -> list[torch.Tensor]:
    if isinstance(nest, torch.Tensor):
        return [nest]
    if isinstance(nest, dict):
        nest = list(nest.values())
    return [leaf for part in nest for leaf in leaves(part)] if isinstance(nest, list | tuple) else []


def test_later_changes_are_not_in_it() -> None:
    state = {"large": torch.ones(MiB), "small": torch.ones(3), "object": Anything(3)}
    copy = take(state)
    for tensor in (state["large"], state["small"]):
        assert isinstance(tensor, torch.Tensor)
        tensor.zero_()
    state["object"].value = 4  # type: ignore[attr-defined]
    assert (copy["large"].min(), copy["small"].min(), copy["object"].value) == (1, 1, 3)


def test_its_memory_is_used_again_once_it_is_gone_and_not_before() -> None:
    first = take(LARGE)
    at = first["w"].data_ptr()
    second = take(LARGE)
    assert at not in {tensor.data_ptr() for tensor in second.values()}
    del second
    kept = first.pop("v")
    del first
    assert at not in {tensor.data_ptr() for tensor in take(LARGE).values()}  # the rest of it is still used
    del kept
    assert take(LARGE)["w"].data_ptr() == at


def test_each_tensor_has_a_storage_of_its_own() -> None:
    copy = take(LARGE)
    assert [tensor.untyped_storage().nbytes() for tensor in copy.values()] == [one.nbytes for one in LARGE.values()]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in copy.values())
    copy["w"].fill_(0)
    assert same_bits(copy["v"], LARGE["v"])


def test_small_tensors_have_no_proof_and_lie_where_torch_puts_them() -> None:
    lent_memory._kept.clear()
    small = take({"small": torch.ones(10)})["small"]
    assert proof_of(small) is None
    assert not lent_memory._kept


@pytest.mark.parametrize("name", LARGE)
def test_proofs_are_what_a_save_would_take(name: str) -> None:
    tensor = take(LARGE)[name]
    expected = ProofWriter(tensor.nbytes, tensor.shape)
    assert name != "rows" or expected.bounds != block_bounds(tensor.nbytes, 1)
    crc32 = expected.add(storage_view(tensor))
    known = proof_of(tensor.detach())
    assert known is not None
    assert known.packed() == expected.packed()
    assert known.add(storage_view(tensor)) == crc32


def test_what_has_been_changed_in_place_has_none() -> None:
    copy = take(LARGE)
    copy["w"][3].mul_(2)
    assert proof_of(copy["w"]) is None
    assert proof_of(copy["v"]) is not None


#: Other elements than a tensor's, which lie in the same memory; some have as many bytes.
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "slice": lambda tensor: tensor[:500],
    "transposed": lambda tensor: tensor.t(),
    "expanded": lambda tensor: tensor[:1].expand(tensor.shape),
    "conjugated": lambda tensor: torch.view_as_complex(tensor.view(-1, 2)).conj(),
}


@pytest.mark.parametrize("other", VIEWS.values(), ids=VIEWS)
def test_other_bytes_have_none_wherever_they_lie(other: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert proof_of(other(take(LARGE)["w"])) is None


def test_the_same_bytes_have_it_whatever_they_are_taken_for() -> None:
    known = proof_of(take(LARGE)["w"].view(torch.bfloat16).view(-1))
    assert known is not None
    assert known.add(storage_view(LARGE["w"])) == zlib.crc32(raw_bytes(LARGE["w"]))


@pytest.fixture
def nothing_taken() -> None:
    """By tests before, whose failures may hold copies."""
    gc.collect()
    assert not snapshot._taken


@pytest.mark.usefixtures("nothing_taken")
def test_proofs_end_with_the_memory_that_they_are_of() -> None:
    copy = take(LARGE)
    assert len(snapshot._taken) == len(LARGE)
    del copy
    assert not snapshot._taken


def test_in_inference_mode() -> None:
    usual = take(LARGE)["w"]
    with torch.inference_mode():
        copy = take(LARGE)
        assert proof_of(copy["w"]) is None
        assert proof_of(torch.from_numpy(usual.numpy())) is None
    assert same_bits(copy, LARGE)


def test_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert take(LARGE)["w"].is_meta  # as in stock DCP


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # which stock DCP does
def test_tensors_without_memory() -> None:
    with FakeTensorMode():
        assert take({"w": torch.ones(MiB)})["w"].shape == (MiB,)


class Refusing(torch.Tensor):
    """Can be copied, and not be taken apart."""

    def view(self, *_: Any) -> Any:
        raise AssertionError


def test_subclasses_are_copied_their_own_way() -> None:
    assert same_bits(take({"w": LARGE["w"].as_subclass(Refusing)}), {"w": LARGE["w"]})


def test_sparse_tensors_of_no_elements() -> None:
    assert take({"empty": torch.zeros(0, 3).to_sparse()})["empty"].shape == (0, 3)


@pytest.mark.usefixtures("nothing_taken")
def test_without_memory_to_lend(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> memoryview:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(snapshot, "lend", refused)
    copy = take(LARGE)
    assert same_bits(copy, LARGE)
    assert not snapshot._taken


@pytest.mark.usefixtures("group")
def test_distributed_tensors() -> None:
    mesh = init_device_mesh("cpu", (1,))
    state: dict[str, Any] = {
        "sharded": DTensor.from_local(LARGE["w"], mesh, [ShardPlacement(0)]),
        "replicated": DTensor.from_local(torch.ones(5), mesh, [Replicate()]),
        "shards": init_from_local_shards([Shard.from_tensor_and_offsets(LARGE["w"].clone(), [0, 0], 0)], (1100, 1024)),
    }
    copy = take(state)
    assert same_bits(copy["sharded"].to_local(), LARGE["w"])
    assert copy["sharded"].placements == state["sharded"].placements
    assert same_bits(copy["replicated"].to_local(), torch.ones(5))
    (shard,) = copy["shards"].local_shards()
    assert same_bits(shard.tensor, LARGE["w"])
    assert proof_of(shard.tensor) is not None
    assert proof_of(copy["sharded"].to_local()) is not None
    assert shard.tensor.data_ptr() != state["shards"].local_shards()[0].tensor.data_ptr()
    assert dist.get_world_size() == 1


# ---- saved


def saved_beside(place: Place, state: dict[str, Any], name: str, planner: Any = None, **settings: Any) -> None:
    writer = place.writer(name, part_size=5 * MiB, **settings)
    saving: Any = dcp.async_save(state, storage_writer=writer, planner=planner, no_dist=True)
    saving.result()


@pytest.mark.parametrize("form", [SerializationFormat.TORCH_SAVE, SerializationFormat.SAFETENSORS])
def test_data_and_metadata_are_those_of_a_save_of_the_tensors_themselves(
    form: SerializationFormat, local: Place
) -> None:
    state = {**LARGE, "odd": random_tensor((1537, 1111), torch.float32), "small": torch.ones(5)}
    saved_beside(local, state, "beside", serialization_format=form)
    save(state, local.writer("plain", serialization_format=form))
    ours, plain = (dict_of_contents(local, name) for name in ("beside", "plain"))
    ours_metadata, plain_metadata = (local.reader(name).read_metadata() for name in ("beside", "plain"))
    del ours[".metadata"], plain[".metadata"]
    assert ours == plain
    assert {
        (place.relative_path, place.offset, place.length, place.aiockpt_crc32s)
        for place in ours_metadata.storage_data.values()
    } == {
        (place.relative_path, place.offset, place.length, place.aiockpt_crc32s)
        for place in plain_metadata.storage_data.values()
    }


def dict_of_contents(place: Place, name: str) -> dict[str, bytes]:
    return {key.removeprefix(f"{name}/"): place.get(key) for key in place.keys(f"{name}/")}


@pytest.mark.parametrize("form", [SerializationFormat.TORCH_SAVE, SerializationFormat.SAFETENSORS])
def test_a_save_reads_for_its_crc32s_no_more_than_blocks_that_parts_cut(
    form: SerializationFormat, local: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"w{n}": random_tensor((8, 512, 1024), torch.float32, n) for n in range(3)}  # 16 MiB, blocks of 64 KiB
    read: list[int] = []

    class Counting:
        crc32_combine = staticmethod(zlib_ng.crc32_combine)

        @staticmethod
        def crc32(view: Any, start: int = 0) -> int:
            read.append(len(view))
            return int(zlib_ng.crc32(view, start))

    class Planner(DefaultSavePlanner):
        def create_local_plan(self) -> SavePlan:
            patch.setattr(crc, "zlib_ng", Counting)  # from here on: the copy has been made
            return super().create_local_plan()

    with monkeypatch.context() as patch:
        saved_beside(local, state, "ckpt", Planner(), serialization_format=form)
    parts = -(-3 * 16 // 5)
    assert sum(read) <= parts * 64 * KiB + 64 * KiB  # frames and .metadata beside them
    assert same_bits(local.load(emptied(state)), state)


class Halving(DefaultSavePlanner):
    """Changes what it was given before it is saved."""

    def create_local_plan(self) -> SavePlan:
        self.state_dict["w"].mul_(0.5)
        return super().create_local_plan()


def test_a_planner_that_changes_the_copy(local: Place) -> None:
    state: dict[str, torch.Tensor] = {"w": torch.ones(3 * MiB)}
    saved_beside(local, state, "ckpt", Halving())
    assert torch.equal(local.load({"w": torch.zeros(3 * MiB)})["w"], torch.full((3 * MiB,), 0.5))
    assert torch.equal(state["w"], torch.ones(3 * MiB))


class Viewing(DefaultSavePlanner):
    """Saves other elements of the same memory."""

    def __init__(self, view: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.view = view

    def create_local_plan(self) -> SavePlan:
        self.state_dict["w"] = self.view(self.state_dict["w"])
        return super().create_local_plan()


@pytest.mark.parametrize("form", [SerializationFormat.TORCH_SAVE, SerializationFormat.SAFETENSORS])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_planner_that_saves_other_elements_of_the_copy(
    view: Callable[[torch.Tensor], torch.Tensor], form: SerializationFormat, local: Place
) -> None:
    expected = {"w": view(LARGE["w"])}
    saved_beside(local, {"w": LARGE["w"]}, "ckpt", Viewing(view), serialization_format=form)
    assert same_bits(local.load({"w": torch.zeros(expected["w"].shape, dtype=expected["w"].dtype)}), expected)


def test_a_copy_that_is_cached_is_stock_dcps(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = {"stock": torch.ones(1)}
    monkeypatch.setattr(BlockingAsyncStager, "stage", lambda _self, _state: staged)
    assert local.writer(cache_staged_state_dict=True).stage(STATE) is staged
    assert local.writer().stage(STATE) is not staged
