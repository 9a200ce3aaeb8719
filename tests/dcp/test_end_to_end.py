"""``dcp.save``, ``dcp.load`` and ``dcp.async_save`` of one process, through the local endpoint."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from typing import IO, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, WriteItem, WriteItemType

from aiockpt import S3ReaderConstructor
from aiockpt.archive.tensor_pickle import NAMED_DTYPES, STORAGE_NAMES
from aiockpt.errors import AiockptError, ConnectError, TargetMismatch
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, StateDict, emptied, failure, load, random_tensor, same_bits, save

#: DCP itself does not know the size of torch's bits*
DTYPES = [*STORAGE_NAMES, *(dtype for name, dtype in NAMED_DTYPES.items() if not name.startswith("bits"))]
#: safetensors has none of these
NOT_IN_SAFETENSORS = {
    *(dtype for name, dtype in NAMED_DTYPES.items() if name.startswith("float4")),
    torch.complex128,
    NAMED_DTYPES.get("complex32"),
}


def small_and_large(dtype: torch.dtype) -> StateDict:
    """One below, one above each threshold of the pipelines."""
    return {
        "scalar": random_tensor((), dtype, 1),
        "one": random_tensor((1,), dtype, 2),
        "small": random_tensor((3, 5), dtype, 3),
        "large": random_tensor((300_000 // dtype.itemsize + 1,), dtype, 4),
        "empty": random_tensor((0, 4), dtype, 5),
    }


def layouts() -> StateDict:
    """Tensors of the same elements, laid out in all sorts of ways, small and large."""
    state: StateDict = {}
    for name, side in (("small", 8), ("large", 300)):
        base = random_tensor((side, side), torch.float32, side)
        cube = random_tensor((4, 6, side, side), torch.float32, side + 1)
        state[name] = {
            "transposed": base.t(),
            "stepped": base[::2, ::3],
            "columns": base[:, 2:5],
            "rows of a larger storage": base[2:5],
            "one of a larger storage": base[3, 4],
            "expanded": base[:1].expand(side, side),
            "channels last": cube.to(memory_format=torch.channels_last),
            "permuted": cube.permute(3, 0, 2, 1),
            "flipped": base.flip(0),
            "parameter": torch.nn.Parameter(base.clone()),
            "requires grad": base.clone().requires_grad_(),
            "not a leaf": (base.clone().requires_grad_() * 2),
            "conjugated": torch.view_as_complex(base.view(side, side // 2, 2)).conj(),
            "negated": torch.view_as_complex(base.view(side, side // 2, 2)).conj().imag,
            "storage offset": torch.as_strided(base, (side - 1, 3), (side, 2), 5),
            "unit dimensions": base[:, None, :, None],
        }
    return state


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("form", SerializationFormat)
def test_every_dtype(local: Place, dtype: torch.dtype, form: SerializationFormat) -> None:
    if form is SerializationFormat.SAFETENSORS and dtype in NOT_IN_SAFETENSORS:
        pytest.skip("safetensors does not know it")
    state = small_and_large(dtype)
    local.save(state, serialization_format=form)
    assert same_bits(local.load(emptied(state)), state)


@pytest.mark.parametrize("form", SerializationFormat)
@pytest.mark.parametrize("single_file_per_rank", [True, False])
@pytest.mark.parametrize("thread_count", [1, 3])
def test_every_layout(local: Place, form: SerializationFormat, single_file_per_rank: bool, thread_count: int) -> None:
    state = layouts()
    local.save(state, serialization_format=form, single_file_per_rank=single_file_per_rank, thread_count=thread_count)
    assert same_bits(local.load(emptied(state)), state)


def test_targets_of_every_layout(local: Place) -> None:
    local.save(
        {"w": random_tensor((8, 6, 4, 10), torch.float32), "big": random_tensor((2, 6, 300, 100), torch.float32)}
    )
    for name, shape in (("w", (8, 6, 4, 10)), ("big", (2, 6, 300, 100))):
        stored = random_tensor(shape, torch.float32)
        targets = {
            "row-major": torch.zeros(shape),
            "channels last": torch.zeros(shape).to(memory_format=torch.channels_last),
            "reversed": torch.zeros(shape[::-1]).permute(3, 2, 1, 0),
            "stepped": torch.zeros(*shape[:3], 2 * shape[3])[..., ::2],
            "inside": torch.zeros(*shape[:3], shape[3] + 2)[..., 1:-1],
            "parameter": torch.nn.Parameter(torch.zeros(shape)),
        }
        for what, target in targets.items():
            version = target._version
            local.load({name: target})
            assert same_bits(target, stored), what
            assert target._version >= version


def test_targets_of_another_dtype_are_cast(local: Place) -> None:
    state = {"small": torch.randn(7, 5), "large": torch.randn(400, 500), "ints": torch.arange(200_000)}
    local.save(state)
    target = {
        "small": torch.zeros(7, 5, dtype=torch.bfloat16),
        "large": torch.zeros(400, 500, dtype=torch.float64),
        "ints": torch.zeros(200_000, dtype=torch.float32),
    }
    local.load(target)
    assert all(same_bits(target[name], state[name].to(target[name].dtype)) for name in state)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_attributes_and_quantised_tensors_go_through_torch(local: Place) -> None:
    quantised = torch.quantize_per_tensor(torch.randn(100, 300), 0.1, 3, torch.qint8)
    marked = torch.randn(4)
    marked.mark = "x"  # type: ignore[attr-defined]
    local.save({"q": quantised, "marked": marked})
    target = {"q": torch.quantize_per_tensor(torch.zeros(100, 300), 0.1, 3, torch.qint8), "marked": torch.zeros(4)}
    local.load(target)
    assert torch.equal(target["q"].int_repr(), quantised.int_repr())
    assert torch.equal(target["marked"], marked)


def test_a_buffer_is_a_subclass_too(local: Place) -> None:
    state = {"b": torch.nn.Buffer(torch.randn(300, 300)), "s": torch.nn.Buffer(torch.randn(3))}
    local.save(state)
    target = {"b": torch.nn.Buffer(torch.zeros(300, 300)), "s": torch.zeros(3)}
    assert same_bits(local.load(target), state)


OBJECTS = {
    "none": None,
    "step": 7,
    "lr": 0.1,
    "betas": (0.9, 0.999),
    "text": "ü" * 1000,
    "bytes": bytes(range(256)) * 2000,
    "nested": {"list": [1, "two", 3.0, None], "set": {1, 2}},
    "rng": torch.get_rng_state(),
}


@pytest.mark.parametrize("form", SerializationFormat)
def test_objects_beside_tensors(local: Place, form: SerializationFormat) -> None:
    state = OBJECTS | {"w": torch.randn(3, 3)}
    local.save(state, serialization_format=form)
    assert same_bits(local.load(emptied(state)), state)


class Counter:
    """Stateful, as DCP has it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.weight = torch.full((3,), float(count))

    def state_dict(self) -> StateDict:
        return {"count": self.count, "weight": self.weight}

    def load_state_dict(self, state: StateDict) -> None:
        self.count, self.weight = state["count"], state["weight"]


def test_stateful_objects(local: Place) -> None:
    local.save({"counter": Counter(5)})
    counter = Counter(0)
    local.load({"counter": counter})
    assert counter.count == 5
    assert counter.weight.tolist() == [5.0] * 3


def test_a_model_and_its_optimizer_resume(local: Place) -> None:
    def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.Linear(300, 64))
        return model, torch.optim.AdamW(model.parameters())

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        loss = model(torch.linspace(0, 1, 64)).square().sum()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    model, optimizer = made()
    step(model, optimizer)
    local.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    expected = [step(model, optimizer) for _ in range(3)]

    model, optimizer = made()
    step(model, optimizer)  # so that the optimizer has state to fill
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    local.load(state)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    assert [step(model, optimizer) for _ in range(3)] == expected


def test_partial_loads(local: Place) -> None:
    state = {f"w{n}": random_tensor((n + 1, 50_000), torch.float32, n) for n in range(4)} | {"step": 3}
    local.save(state)
    for names in (["w0"], ["w1", "w3"], ["step"]):
        wanted = {name: state[name] for name in names}
        assert same_bits(local.load(emptied(wanted)), wanted)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("kind", list(dcp.state_dict_saver.AsyncCheckpointerType))
def test_async_save(local: Place, local_endpoint: LocalEndpoint, kind: Any) -> None:
    state: StateDict = {"w": torch.randn(200, 200), "step": 4}
    expected = {"w": state["w"].clone(), "step": 4}
    future: Any = dcp.async_save(state, storage_writer=local.writer(), async_checkpointer_type=kind)
    state["w"].zero_()
    future.result()
    assert same_bits(local.load(emptied(expected)), expected)
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "PutObject", status=403, code="AccessDenied", count=None))
    future = dcp.async_save(state, storage_writer=local.writer(overwrite=True), async_checkpointer_type=kind)
    with pytest.raises(CheckpointException, match=f"AccessDenied.*{local.uri('ckpt/__0_1.distcp')}"):
        future.result()
    local_endpoint.clear_faults()
    assert same_bits(local.load(emptied(expected)), expected)


def test_checkpoint_id_beside_our_storage(local: Place) -> None:
    state = {"w": torch.randn(3)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=local.uri("elsewhere"), storage_writer=local.writer("unused"))
        target = {"w": torch.zeros(3)}
        dcp.load(target, checkpoint_id=local.uri("elsewhere"), storage_reader=local.reader("unused"))
    assert same_bits(target, state)
    assert local.keys() == ["elsewhere/.metadata", "elsewhere/__0_0.distcp"]


def test_one_reader_for_several_loads_and_checkpoints(local: Place) -> None:
    first, second = {"w": torch.randn(3), "x": torch.randn(300, 300)}, {"w": torch.randn(3), "y": torch.randn(2)}
    local.save(first, "first")
    local.save(second, "second")
    reader = local.reader("first")
    assert same_bits(load(emptied(first), reader), first)
    assert same_bits(load({"w": torch.zeros(3)}, reader), {"w": first["w"]})
    reader.reset(local.uri("second"))
    assert same_bits(load(emptied(second), reader), second)
    reader.reset(local.uri("first"))
    assert same_bits(load(emptied(first), reader), first)


def test_one_writer_for_several_saves(local: Place) -> None:
    writer = local.writer("first")
    for name in ("first", "second"):
        writer.reset(local.uri(name))
        save({"name": name, "w": torch.randn(3)}, writer)
    for name in ("first", "second"):
        assert local.load({"name": None}, name) == {"name": name}


def test_readers_and_writers_pickle_before_and_after_use(local: Place) -> None:
    state = {"w": torch.randn(3), "step": 3}
    writer, reader = local.writer(thread_count=2), local.reader(reader_constructor=S3ReaderConstructor.range_based())
    for again in range(2):
        writer, reader = pickle.loads(pickle.dumps(writer)), pickle.loads(pickle.dumps(reader))
        state["step"] = again
        save(state, writer)
        assert same_bits(load(emptied(state), reader), state)
    assert writer.thread_count == 2


def test_no_dist(local: Place) -> None:
    state = {"w": torch.randn(3)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=local.writer(), no_dist=True)
        target = {"w": torch.zeros(3)}
        dcp.load(target, storage_reader=local.reader(), no_dist=True)
    assert same_bits(target, state)


def test_overwriting_warns_or_is_refused(local: Place) -> None:
    state = {"w": torch.randn(3)}
    local.save(state)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")
        with pytest.warns(UserWarning, match="overwrit"):
            dcp.save({"w": torch.ones(3)}, storage_writer=local.writer())
        with pytest.raises(CheckpointException, match="already exists"):
            dcp.save({"w": torch.ones(3)}, storage_writer=local.writer(overwrite=False))
    assert local.load({"w": torch.zeros(3)})["w"].tolist() == [1.0] * 3


class Doubled(StreamTransformExtension):
    """Writes every byte twice."""

    @staticmethod
    def registry_name() -> str:
        return "stream.doubled"

    @staticmethod
    def from_descriptor(version: str) -> Doubled:
        return Doubled()

    def get_descriptor(self) -> str:
        return "stream.doubled/1"

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        class Doubler(io.RawIOBase):
            def write(self, data: Any) -> int:
                output.write(bytes(byte for byte in bytes(data) for _ in range(2)))
                return len(data)

            def close(self) -> None:
                if not self.closed:
                    super().close()
                    output.close()

        return Doubler()  # type: ignore[return-value]

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:  # noqa: A002  # torch's name
        return io.BytesIO(input.read()[::2])


def test_stream_extensions(local: Place) -> None:
    state = {"w": random_tensor((40, 50), torch.float32), "t": random_tensor((5, 6), torch.float32).t(), "o": {"x": 1}}
    local.save(state, _extensions=[Doubled()])
    registry = ExtensionRegistry()
    registry.register(Doubled)
    reader = local.reader()
    reader.transforms.extension_registry = registry
    assert same_bits(load(emptied(state), reader), state)
    assert len(local.get("ckpt/__0_0.distcp")) > 2 * 40 * 50 * 4


class HalfPlanner(DefaultSavePlanner):
    """Casts as it saves, and says so."""

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        for item in plan.items:
            if item.tensor_data is not None:
                item.tensor_data.properties.dtype = torch.float16
        return plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        data = super().resolve_data(write_item)
        return data if isinstance(data, io.BytesIO) else data.to(torch.float16)


class Silent(DefaultSavePlanner):
    """Changes tensors as it saves them, and leaves the metadata as they were: stock DCP does not notice either."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._change = change

    def transform_object(self, write_item: WriteItem, obj: Any) -> Any:
        obj = super().transform_object(write_item, obj)
        return self._change(obj) if write_item.type is WriteItemType.TENSOR else obj


@pytest.mark.parametrize("planner", [HalfPlanner, lambda: Silent(torch.Tensor.half)])
@pytest.mark.parametrize("shape", [(3, 5), (400, 500)])
def test_planners_that_cast(local: Place, planner: Callable[[], DefaultSavePlanner], shape: tuple[int, int]) -> None:
    state = {"w": torch.randn(shape), "step": 3}
    local.save(state, planner=planner())
    target = local.load({"w": torch.zeros(shape), "step": None})
    assert same_bits(target, {"w": state["w"].half().float(), "step": 3})  # type: ignore[attr-defined]


@pytest.mark.parametrize(("dtype", "other"), [(torch.bfloat16, torch.float16), (torch.float32, torch.int32)])
@pytest.mark.parametrize("shape", [(3, 5), (400, 500)])
def test_planners_that_cast_to_what_is_as_large(
    local: Place, dtype: torch.dtype, other: torch.dtype, shape: tuple[int, int]
) -> None:
    """The bytes are those that the metadata prove; the archive says what they mean."""
    state = {"w": (100 * torch.randn(shape)).to(dtype)}
    local.save(state, planner=Silent(lambda tensor: tensor.to(other)))
    target = local.load({"w": torch.zeros(shape, dtype=dtype)})
    assert same_bits(target, {"w": state["w"].to(other).to(dtype)})


@pytest.mark.parametrize("shape", [(3, 5), (400, 500)])
def test_a_planner_that_transposes_behind_the_metadata_is_told(local: Place, shape: tuple[int, int]) -> None:
    local.save({"w": torch.randn(shape)}, planner=Silent(lambda tensor: tensor.t().contiguous()))
    with pytest.raises(CheckpointException) as caught:
        local.load({"w": torch.zeros(shape)})
    assert isinstance(failure(caught.value), AiockptError)


def test_a_planner_that_changes_shapes_behind_the_metadata_is_told(local: Place) -> None:
    local.save({"w": torch.randn(400, 500)}, planner=Silent(lambda tensor: tensor[:10].clone()))
    with pytest.raises(CheckpointException) as caught:
        local.load({"w": torch.zeros(400, 500)})
    assert isinstance(failure(caught.value), AiockptError)


class TemporaryTargets(DefaultLoadPlanner):
    """Loads into tensors of its own and copies them when they are committed."""

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return torch.empty_like(super().resolve_tensor(read_item))

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        super().resolve_tensor(read_item).copy_(tensor)


def test_planners_with_targets_of_their_own(local: Place) -> None:
    state = {"w": torch.randn(400, 500), "s": torch.randn(3), "e": torch.zeros(0, 3)}
    local.save(state)
    assert same_bits(local.load(emptied(state), planner=TemporaryTargets()), state)


def test_allow_partial_load(local: Place) -> None:
    local.save({"w": torch.ones(3)})
    target = {"w": torch.zeros(3), "new": torch.full((2,), 7.0)}
    with pytest.raises(CheckpointException, match="new"):
        local.load(dict(target))
    local.load(target, planner=DefaultLoadPlanner(allow_partial_load=True))
    assert target["w"].tolist() == [1.0] * 3
    assert target["new"].tolist() == [7.0] * 2


class Twice(DefaultLoadPlanner):
    """Asks for every stored chunk twice, as replicated and resharded targets do."""

    def create_local_plan(self) -> LoadPlan:
        plan = super().create_local_plan()
        return LoadPlan([item for item in plan.items for _ in range(2)])


@pytest.mark.parametrize("constructor", ["dcp_optimized", "sequential", "range_based"])
@pytest.mark.parametrize("form", SerializationFormat)
def test_a_chunk_that_is_asked_for_twice(local: Place, constructor: str, form: SerializationFormat) -> None:
    if form is SerializationFormat.SAFETENSORS and constructor != "dcp_optimized":
        pytest.skip("stock DCP cannot read these item by item")
    state = {"w": torch.randn(400, 500), "s": torch.randn(3), "t": torch.randn(4), "step": 3}
    local.save(state, serialization_format=form)
    made = getattr(S3ReaderConstructor, constructor)()
    assert same_bits(local.load(emptied(state), planner=Twice(), reader_constructor=made), state)


class TwoChunks(DefaultSavePlanner):
    """Cuts tensors in two chunks, as a rank with several shards of one tensor does."""

    def create_local_plan(self) -> SavePlan:
        from dataclasses import replace

        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        plan = super().create_local_plan()
        items = []
        for item in plan.items:
            if item.tensor_data is None or len(item.tensor_data.size) != 2:
                items.append(item)
                continue
            rows, columns = item.tensor_data.size
            for number, (start, end) in enumerate([(0, rows // 3), (rows // 3, rows)]):
                offset = torch.Size([start, 0])
                chunk = ChunkStorageMetadata(offset, torch.Size([end - start, columns]))
                items.append(
                    replace(
                        item,
                        type=WriteItemType.SHARD,
                        index=MetadataIndex(item.index.fqn, offset, number),
                        tensor_data=replace(item.tensor_data, chunk=chunk),
                    )
                )
        self.plan = replace(plan, items=items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type is not WriteItemType.SHARD:
            return super().resolve_data(write_item)
        assert write_item.tensor_data
        chunk = write_item.tensor_data.chunk
        tensor: torch.Tensor = self.state_dict[write_item.index.fqn]
        return tensor[chunk.offsets[0] : chunk.offsets[0] + chunk.sizes[0]]


@pytest.mark.parametrize("form", SerializationFormat)
@pytest.mark.parametrize("single_file_per_rank", [True, False])
def test_two_chunks_of_one_tensor_from_one_rank(
    local: Place, form: SerializationFormat, single_file_per_rank: bool
) -> None:
    state = {"w": torch.randn(400, 500), "v": torch.randn(9, 2), "s": torch.randn(3)}
    local.save(state, planner=TwoChunks(), serialization_format=form, single_file_per_rank=single_file_per_rank)
    assert same_bits(local.load(emptied(state)), state)


@pytest.mark.parametrize("shape", [(4, 3), (400, 501), (3,)])
@pytest.mark.parametrize("stored", [(3, 4), (400, 500)])
def test_targets_of_another_shape(local: Place, stored: tuple[int, ...], shape: tuple[int, ...]) -> None:
    local.save({"w": torch.ones(stored)})
    target = torch.zeros(shape)
    with pytest.raises((CheckpointException, ValueError)) as caught:
        local.load({"w": target})
    assert "w" in str(caught.value)
    assert not target.any()


def test_a_planner_that_gives_another_shape(local: Place) -> None:
    class Wrong(DefaultLoadPlanner):
        def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
            return torch.zeros(2, 2)

    for shape in ((3, 4), (400, 500)):
        local.save({"w": torch.ones(shape)})
        with pytest.raises(CheckpointException) as caught:
            local.load({"w": torch.zeros(shape)}, planner=Wrong())
        error = failure(caught.value)
        assert isinstance(error, TargetMismatch)
        assert "'w'" in str(error)
        assert str(tuple(shape)) in str(error)


def test_dcp_to_torch_save(local: Place, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's tool makes its own reader; the steps that it takes, with ours, and the tool itself with ours put in."""
    from torch.distributed.checkpoint import format_utils

    state = {"model": {"w": torch.randn(300, 300), "s": torch.randn(3)}, "step": 3}
    local.save(state)
    monkeypatch.setattr(format_utils, "FileSystemReader", lambda path: local.reader())
    dcp_to_torch_save(local.uri("ckpt"), tmp_path / "plain.pt")
    assert same_bits(torch.load(tmp_path / "plain.pt", weights_only=False), state)


def test_rank_local_metadata(local: Place) -> None:
    state = {"w": torch.randn(300, 300), "step": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=local.writer(), use_collectives=False)
    target = emptied(state)
    local.load(target)
    assert same_bits(target, state)
    assert local.keys() == ["ckpt/__0.metadata", "ckpt/__0_0.distcp"]


def test_prepare_local_plan_gives_back_the_same_plan_sorted(local: Place) -> None:
    state = {f"w{n}": torch.randn(30, 30) for n in range(5)}
    local.save(state)
    reader = local.reader()
    planner = DefaultLoadPlanner()
    metadata = reader.read_metadata()
    planner.set_up_planner(emptied(state), metadata, True)
    reader.set_up_storage_reader(metadata, True)
    plan = planner.create_local_plan()
    plan.items.reverse()
    assert reader.prepare_local_plan(plan) is plan
    offsets = [reader.storage_data[item.storage_index].offset for item in plan.items]
    assert offsets == sorted(offsets)


def test_an_empty_state(local: Place) -> None:
    local.save({})
    assert local.load({}) == {}


def test_names_of_any_kind(local: Place) -> None:
    state = {"": torch.ones(1), "a.b": torch.ones(2), "a/b": torch.ones(3), "ü \n": torch.ones(4), "__metadata__x": 1}
    local.save(state)
    assert same_bits(local.load(emptied(state)), state)


@pytest.mark.parametrize("path", ["", "a/", "deep/er/est", "with space/+%25/ü"])
def test_checkpoints_anywhere_in_the_bucket(local: Place, path: str) -> None:
    state = {"w": torch.randn(30, 30)}
    local.save(state, path)
    assert same_bits(local.load(emptied(state), path), state)
    base = path.rstrip("/") + "/" if path else ""
    assert local.keys() == sorted([f"{base}.metadata", f"{base}__0_0.distcp"])


def test_behind_tls_with_a_private_authority(behind_tls: Place) -> None:
    state = {
        "large": random_tensor((1500, 1000), torch.float32),
        "small": random_tensor((7,), torch.bfloat16),
        "step": 3,
    }
    behind_tls.save(state)
    assert same_bits(behind_tls.load(emptied(state)), state)


def test_an_authority_that_nobody_named_is_not_trusted(behind_tls: Place) -> None:
    with pytest.raises(CheckpointException) as error:
        behind_tls.save({"w": torch.zeros(3)}, ca_bundle=None, max_attempts=1)
    assert isinstance(failure(error.value), ConnectError)
    assert "ca_bundle" in str(failure(error.value))
