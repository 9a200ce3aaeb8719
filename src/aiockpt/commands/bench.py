"""``aiockpt bench``: how fast saves and loads are, in one's own bucket or on the local endpoint."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import click

from aiockpt.blocking.store import Store
from aiockpt.commands.parameters import S3_URI
from aiockpt.commands.session import Session, command
from aiockpt.commands.words import size
from aiockpt.config import S3ClientConfig
from aiockpt.measuring.rounds import Rounds, Sample
from aiockpt.measuring.spread import Spread, hardware, significant
from aiockpt.measuring.workload import mixed
from aiockpt.model import ObjectId
from aiockpt.testing import LocalEndpoint

GB_S, CPU = "GB/s", "client CPU s/GB"

EXAMPLES = """\
  aiockpt bench
  aiockpt bench s3://bucket/scratch --size-gb 8 --rounds 5
  aiockpt bench --json --size-gb 0.5 | jq '.rows[].values["GB/s"].median'
"""


@command(EXAMPLES)
@click.argument("uri", type=S3_URI, required=False)
@click.option(
    "--size-gb", type=click.FloatRange(min=0, min_open=True), default=1.2, show_default=True, help="Of the state dict."
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Measured, after one to warm up."
)
def bench(session: Session, *, uri: ObjectId | None, size_gb: float, rounds: int) -> None:
    """Measure dcp.save and dcp.load of a transformer's state dict below URI, or on a local endpoint.

    What is written is deleted again. The comparison with other libraries is in the repository's bench/.
    """
    with _place(session, uri) as (store, base):
        measured = Rounds(store, base / f"aiockpt-bench-{uuid.uuid4().hex[:8]}", mixed(int(size_gb * 1e9)))
        samples = []
        with session.bar("measuring", int(size_gb * 2e9) * (rounds + 1)) as bar:
            for _ in range(rounds + 1):
                both = measured.run()
                samples.append(both)
                bar.advance(sum(sample.nbytes for sample in both))
    saves, loads = zip(*samples[1:], strict=True)
    rows = {"save": _values(saves), "load": _values(loads)}
    where = base.uri if uri else "a local endpoint"
    title = f"dcp.save and dcp.load of {size(saves[0].nbytes)}, {where}"
    if session.as_json:
        session.print_json(
            {
                "hardware": hardware(),
                "title": title,
                "rows": [
                    {
                        "contender": "aiockpt",
                        "variant": variant,
                        "values": {name: asdict(spread) for name, spread in values.items()},
                    }
                    for variant, values in rows.items()
                ],
            }
        )
        return
    session.print(f"{title}; {hardware()}")
    session.print_table(
        ("", GB_S, CPU),
        [(variant, *(_words(spread) for spread in values.values())) for variant, values in rows.items()],
        numbers=(GB_S, CPU),
    )


def _values(samples: Sequence[Sample]) -> dict[str, Spread]:
    return {
        GB_S: Spread.of(sample.gb_per_s for sample in samples),
        CPU: Spread.of(sample.cpu_s_per_gb for sample in samples),
    }


def _words(spread: Spread) -> str:
    return f"{significant(spread.median)} ({significant(spread.least)} to {significant(spread.largest)})"


@contextmanager
def _place(session: Session, uri: ObjectId | None) -> Iterator[tuple[Store, ObjectId]]:
    """Where to measure, with the settings that the adapters have by default."""
    config = session.store.config.merged(memory_bytes=S3ClientConfig.memory_bytes)
    if uri is not None:
        yield Store(config, session.store.region), uri
        return
    with LocalEndpoint(buckets=["bench"]) as endpoint, _environment(endpoint.environ()):
        yield Store(config.merged(endpoint_url=endpoint.url), endpoint.region), ObjectId("bench", "")


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for a while, as botocore finds credentials there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
