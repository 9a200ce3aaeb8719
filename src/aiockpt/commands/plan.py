"""``aiockpt plan``: what a load by a given number of ranks would fetch, take and cost, from metadata alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from aiockpt.commands.parameters import S3_URI
from aiockpt.commands.session import Session, command
from aiockpt.commands.words import count, duration, size
from aiockpt.config import S3ClientConfig
from aiockpt.dcp.metadata import load_metadata
from aiockpt.dcp.names import METADATA
from aiockpt.errors import MetadataError
from aiockpt.inspection.cost import PRICE_PER_1000_GETS_USD, Link, load_s, requests_usd
from aiockpt.inspection.forecast import Forecast, forecast
from aiockpt.inspection.matching import name_filter
from aiockpt.inspection.sharding import World, read_items
from aiockpt.model import ObjectId
from aiockpt.plan.concurrency import start_connections
from aiockpt.transfer.metadata import fetch_metadata

EXAMPLES = """\
  aiockpt plan s3://bucket/run/step-1000 --world-size 64
  aiockpt plan s3://bucket/run/step-1000 --world-size 8 --shard-dim 1 --gbps 100 --latency-ms 15
  aiockpt plan s3://bucket/run/step-1000 --world-size 512 --rank 0 --rank 511 --json
"""


@command(EXAMPLES)
@click.argument("uri", type=S3_URI)
@click.option("--world-size", type=click.IntRange(min=1), required=True, help="How many ranks load.")
@click.option("--rank", "ranks", type=click.IntRange(min=0), multiple=True, help="Only these ranks; repeatable.")
@click.option(
    "--shard-dim",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The dimension along which tensors are cut; those with fewer along their last one.",
)
@click.option("--replicate", multiple=True, metavar="GLOB", help="Tensors that every rank loads whole; repeatable.")
@click.option(
    "--gbps",
    type=click.FloatRange(min=0, min_open=True),
    default=S3ClientConfig.throughput_target_gbps,
    show_default=True,
    help="Gigabits a second of each rank's link.",
)
@click.option(
    "--latency-ms",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    help="From a request to its first byte.",
)
@click.option(
    "--price-per-1000-gets",
    type=click.FloatRange(min=0),
    default=PRICE_PER_1000_GETS_USD,
    show_default=True,
    help="US dollars; the default is S3 Standard's in us-east-1.",
)
def plan(
    session: Session,
    *,
    uri: ObjectId,
    world_size: int,
    ranks: tuple[int, ...],
    shard_dim: int,
    replicate: tuple[str, ...],
    gbps: float,
    latency_ms: float,
    price_per_1000_gets: float,
) -> None:
    """Foresee a load of the checkpoint at URI by --world-size ranks: bytes, requests, time, cost.

    Only the metadata are fetched; requests are planned by the code that a load plans them with. Tensors are taken to
    be cut as FSDP cuts them; scalars, objects and --replicate'd tensors are loaded whole by every rank. The time is a
    bound from below: what else uses the links, and the work on what arrives, come on top.
    """
    if any(rank >= world_size for rank in ranks):
        raise click.UsageError(f"--rank counts from 0 to {world_size - 1}.")
    data = session.store.run(lambda engine: fetch_metadata(engine, uri)).get(METADATA)
    if data is None:
        raise MetadataError(f"{uri.uri} has metadata of its own for each rank: only as many ranks can load it")
    metadata = load_metadata(data, uri.uri)
    world = World(world_size, shard_dim, name_filter(replicate) if replicate else lambda _: False)
    config = S3ClientConfig(throughput_target_gbps=gbps)
    link = Link(gbps * 1e9, latency_ms / 1000, start_connections(config.throughput_target_gbps, config.max_connections))
    foreseen = {
        rank: forecast(metadata, uri, read_items(metadata, world, rank), config) for rank in ranks or range(world_size)
    }
    rows = [_row(rank, one, len(data), link) for rank, one in foreseen.items()]
    totals = _totals(rows, price_per_1000_gets)
    if session.as_json:
        assumed = {"shard_dim": shard_dim, "replicate": list(replicate), **asdict(link)}
        assumed["price_per_1000_gets_usd"] = price_per_1000_gets
        session.print_json(
            {"uri": uri.uri, "world_size": world_size, "assumed": assumed, "ranks": rows, "totals": totals}
        )
        return
    _print(session, rows, totals)


def _row(rank: int, one: Forecast, metadata_nbytes: int, link: Link) -> dict[str, Any]:
    """A rank's line, its metadata included."""
    fetched, wanted = one.fetched_bytes + metadata_nbytes, one.wanted_bytes + metadata_nbytes
    return {
        "rank": rank,
        "gets": one.gets + 1,
        "heads": one.heads,
        "objects": one.objects,
        "wanted_bytes": wanted,
        "fetched_bytes": fetched,
        "amplification": fetched / wanted,
        "seconds": load_s(one, metadata_nbytes, link),
        "exact": one.exact,
    }


def _totals(rows: Sequence[dict[str, Any]], per_1000_usd: float) -> dict[str, Any]:
    sums = {name: sum(row[name] for row in rows) for name in ("gets", "heads", "wanted_bytes", "fetched_bytes")}
    return {
        **sums,
        "amplification": sums["fetched_bytes"] / sums["wanted_bytes"],
        "seconds": max(row["seconds"] for row in rows),
        "requests_usd": requests_usd(sums["gets"] + sums["heads"], per_1000_usd),
        "exact": all(row["exact"] for row in rows),
    }


def _print(session: Session, rows: Sequence[dict[str, Any]], totals: dict[str, Any]) -> None:
    headings = ("rank", "objects", "requests", "wanted", "fetched", "amplification", "time")
    session.print_table(headings, [_cells(row) for row in rows], numbers=headings)
    session.print(
        f"{count(len(rows), 'rank')}: {count(totals['gets'] + totals['heads'], 'request')} for "
        f"${totals['requests_usd']:.6f}, {size(totals['fetched_bytes'])} fetched for {size(totals['wanted_bytes'])} "
        f"wanted, at least {duration(totals['seconds'])}",
        "bold",
    )
    if not totals["exact"]:
        session.say("Requests are estimated: a load this large adapts to what it meets.")


def _cells(row: dict[str, Any]) -> Sequence[str]:
    return (
        str(row["rank"]),
        f"{row['objects']:,}",
        f"{row['gets'] + row['heads']:,}",
        size(row["wanted_bytes"]),
        size(row["fetched_bytes"]),
        f"{row['amplification']:.3f}",
        duration(row["seconds"]),
    )
