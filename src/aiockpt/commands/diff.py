"""``aiockpt diff``: what differs between two checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from torch.distributed.checkpoint.metadata import Metadata

from aiockpt.commands.inspect import metadata_at
from aiockpt.commands.parameters import PLACE
from aiockpt.commands.session import Session, command
from aiockpt.commands.words import count
from aiockpt.dcp.names import METADATA
from aiockpt.errors import MetadataError
from aiockpt.inspection.diff import Diff
from aiockpt.inspection.diff import diff as compare
from aiockpt.inspection.summary import Tensor, summarize
from aiockpt.model import ObjectId
from aiockpt.transfer.metadata import MetadataByName
from aiockpt.transfer.values import batches, load_bytes

EXAMPLES = """\
  aiockpt diff s3://bucket/run/step-1000 s3://bucket/run/step-2000
  aiockpt diff --values s3://bucket/a s3://bucket/b && echo the same
  aiockpt diff --json s3://bucket/run/step-1000 ./step-1000
"""


@command(EXAMPLES)
@click.argument("one", type=PLACE)
@click.argument("other", type=PLACE)
@click.option("--values", is_flag=True, help="Fetch and compare what the metadata cannot.")
def diff(session: Session, *, one: ObjectId | Path, other: ObjectId | Path, values: bool) -> bool:
    """Compare two checkpoints: tensors added, removed, of another shape or dtype, and of other values.

    From the metadata alone, by the CRC32s in them; what these cannot tell is named, or compared with --values, for
    which both must be in S3. Exits with 1 if there are differences.
    """
    if values and not (isinstance(one, ObjectId) and isinstance(other, ObjectId)):
        raise click.UsageError("--values needs both checkpoints in S3: put the folder there, or get the other.")
    before, after = metadata_at(session, one), metadata_at(session, other)
    found = compare(summarize(before.values()), summarize(after.values()))
    if values:
        assert isinstance(one, ObjectId)
        assert isinstance(other, ObjectId)
        pair = (one, _whole(before, one)), (other, _whole(after, other))
        found = found.resolved(_same_values(session, *pair, found.unknown))
    if session.as_json:
        session.print_json({"one": str(one), "other": str(other), **_document(found)})
    else:
        _print(session, found)
    return found.is_empty


def _whole(parts: MetadataByName, base: ObjectId) -> Metadata:
    if METADATA not in parts:
        raise MetadataError(f"{base.uri} has metadata of its own for each rank, whose values cannot be compared")
    return parts[METADATA]


def _same_values(
    session: Session, one: tuple[ObjectId, Metadata], other: tuple[ObjectId, Metadata], names: Sequence[str]
) -> dict[str, bool]:
    """Whether values are the same bit by bit, by name."""
    same: dict[str, bool] = {}
    with session.bar("comparing") as bar:
        for batch in batches(one[1], names):
            first, second = (load_bytes(session.store, base, metadata, batch) for base, metadata in (one, other))
            same |= {name: first[name] == second[name] for name in batch}
            bar.advance(sum(map(len, first.values())))
    return same


def _document(found: Diff) -> dict[str, Any]:
    return {
        "same": found.is_empty and not found.unknown,
        "removed": list(found.removed),
        "added": list(found.added),
        "reshaped": [
            {"name": one.name, "from": _form_document(one), "to": _form_document(other)}
            for one, other in found.reshaped
        ],
        "different": list(found.different),
        "unknown": list(found.unknown),
        "same_count": found.same,
    }


def _form_document(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "shape": list(tensor.shape)}


def _print(session: Session, found: Diff) -> None:
    for name in found.removed:
        session.print(f"- {name}", "red")
    for name in found.added:
        session.print(f"+ {name}", "green")
    for one, other in found.reshaped:
        session.print(f"~ {one.name}: {_form(one)} became {_form(other)}", "yellow")
    for name in found.different:
        session.print(f"~ {name}: other values", "yellow")
    changed = len(found.reshaped) + len(found.different)
    session.print(
        f"{len(found.removed)} removed, {len(found.added)} added, {changed} changed, {found.same} the same", "bold"
    )
    if found.unknown:
        session.say(
            f"Values not compared, as the metadata cannot: {count(len(found.unknown), 'name')} (first: "
            f"{found.unknown[0]}): pass --values."
        )


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"
