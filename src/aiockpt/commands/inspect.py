"""``aiockpt inspect``: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from aiockpt.commands.parameters import PLACE
from aiockpt.commands.session import Session, command
from aiockpt.commands.words import count, size
from aiockpt.inspection import summary as summaries
from aiockpt.inspection.matching import name_filter
from aiockpt.inspection.summary import Summary, summarize
from aiockpt.model import ObjectId
from aiockpt.transfer.metadata import MetadataByName, read_local_metadata, read_metadata

EXAMPLES = """\
  aiockpt inspect s3://bucket/run/step-1000
  aiockpt inspect s3://bucket/run/step-1000 --match 'layers.0.*' --chunks
  aiockpt inspect ./step-1000 --regex 'bias$' --json
"""


@command(EXAMPLES)
@click.argument("place", type=PLACE)
@click.option("--match", "globs", multiple=True, metavar="GLOB", help="Only names that match; repeatable.")
@click.option("--regex", "regexes", multiple=True, metavar="REGEX", help="Only names in which it is found; repeatable.")
@click.option("--chunks", is_flag=True, help="A line for each stored chunk: where it lies.")
def inspect(
    session: Session, *, place: ObjectId | Path, globs: tuple[str, ...], regexes: tuple[str, ...], chunks: bool
) -> None:
    """Show the tensors and objects of the checkpoint at PLACE, an s3:// URI or a folder, from its metadata alone."""
    try:
        wanted = name_filter(globs, regexes)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    whole = summarize(metadata_at(session, place).values())
    shown = replace(
        whole,
        tensors=tuple(tensor for tensor in whole.tensors if wanted(tensor.name)),
        blobs=tuple(blob for blob in whole.blobs if wanted(blob.name)),
    )
    if session.as_json:
        session.print_json({"uri": name_of(place), **_document(shown)})
        return
    if chunks:
        _print_chunks(session, shown)
    else:
        _print_tensors(session, shown)
    if not shown.tensors and not shown.blobs and (globs or regexes):
        session.say(f"No name matches, of {len(whole.tensors) + len(whole.blobs)}.")
    for blob in shown.blobs:
        session.print(f"{blob.name}: a serialized object, {_words(blob.place)}")
    session.print(_totals_line(shown), "bold")


def metadata_at(session: Session, place: ObjectId | Path) -> MetadataByName:
    """The metadata of a checkpoint, wherever it is."""
    if isinstance(place, Path):
        return read_local_metadata(place)
    return session.store.run(lambda engine: read_metadata(engine, place))


def name_of(place: ObjectId | Path) -> str:
    """A place as users write it."""
    return str(place)


def _print_tensors(session: Session, shown: Summary) -> None:
    session.print_table(
        ("tensor", "dtype", "shape", "size", "chunks", "objects"),
        [
            (
                tensor.name,
                tensor.dtype,
                str(list(tensor.shape)),
                size(tensor.nbytes),
                str(len(tensor.chunks)),
                str(len(tensor.objects)),
            )
            for tensor in shown.tensors
        ],
        numbers=("size", "chunks", "objects"),
    )


def _print_chunks(session: Session, shown: Summary) -> None:
    rows = [
        (tensor.name, tensor.dtype, str(list(chunk.offsets)), str(list(chunk.sizes)), _words(chunk.place))
        for tensor in shown.tensors
        for chunk in tensor.chunks
    ]
    session.print_table(("tensor", "dtype", "from", "shape", "place"), rows)


def _words(place: summaries.Place | None) -> str:
    return str(place) if place else "missing"


def _totals_line(shown: Summary) -> str:
    return (
        f"{count(len(shown.tensors), 'tensor')}, {count(shown.elements, 'element')}, {size(shown.nbytes)}; "
        f"{count(len(shown.blobs), 'serialized object')}; "
        f"{size(shown.stored_nbytes)} stored in {count(len(shown.objects), 'object')} by {count(shown.ranks, 'rank')}"
    )


def _document(shown: Summary) -> dict[str, Any]:
    return {
        "tensors": [_tensor_document(tensor) for tensor in shown.tensors],
        "blobs": [{"name": blob.name, **_place_document(blob.place)} for blob in shown.blobs],
        "totals": {
            "tensors": len(shown.tensors),
            "elements": shown.elements,
            "nbytes": shown.nbytes,
            "blobs": len(shown.blobs),
            "stored_nbytes": shown.stored_nbytes,
            "objects": len(shown.objects),
            "ranks": shown.ranks,
        },
    }


def _tensor_document(tensor: summaries.Tensor) -> dict[str, Any]:
    chunks: Sequence[dict[str, Any]] = [
        {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes), **_place_document(chunk.place)}
        for chunk in tensor.chunks
    ]
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "nbytes": tensor.nbytes,
        "chunks": chunks,
    }


def _place_document(place: summaries.Place | None) -> dict[str, Any]:
    return {"object": place and place.path, "start": place and place.start, "end": place and place.end}
