"""``aiockpt demo``: the experiment on the local endpoint or on a real bucket, with its tables and its exit status."""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console

from aiockpt.demo.experiment import Experiment, Surroundings
from aiockpt.demo.job import Recipe
from aiockpt.demo.launch import WorkerFailed
from aiockpt.demo.show import checks_table, moves_table
from aiockpt.errors import ConnectError
from aiockpt.testing import LocalEndpoint

_SHAPE = Recipe()

EXAMPLES = """\b
Examples:
  aiockpt demo
  aiockpt demo --bucket my-bucket --region eu-central-1
  aiockpt demo --tamper head.weight
"""


@click.command(epilog=EXAMPLES)
@click.option("--bucket", help="A real bucket, instead of the local endpoint's; credentials as botocore finds them.")
@click.option("--endpoint-url", help="The bucket's endpoint, if it is not AWS's.")
@click.option("--region", default="us-east-1", show_default=True, help="The bucket's region.")
@click.option("--prefix", default="aiockpt-demo", show_default=True, help="Where in the bucket checkpoints go.")
@click.option("--steps", default=_SHAPE.steps, show_default=True, help="Optimizer steps of the whole run.")
@click.option("--save-at", default=_SHAPE.save_at, show_default=True, help="Step after which to save.")
@click.option("--layers", default=_SHAPE.layers, show_default=True, help="Blocks of the transformer.")
@click.option("--dim", default=_SHAPE.dim, show_default=True, help="Width of the transformer.")
@click.option("--heads", default=_SHAPE.heads, show_default=True, help="Attention heads.")
@click.option("--context", default=_SHAPE.context, show_default=True, help="Bytes of text in a sequence.")
@click.option("--batch", default=_SHAPE.batch, show_default=True, help="Sequences a step, for each process.")
@click.option("--ranks", default=2, show_default=True, help="Processes of the distributed run.")
@click.option("--skip-distributed", is_flag=True, help="Only the run with one process.")
@click.option("--tamper", metavar="PARAMETER", help="Flip a bit of this parameter after loading: the demo must fail.")
@click.option("--timeout", default=300.0, show_default=True, help="Longest time in seconds for one training.")
def demo(
    *,
    bucket: str | None,
    endpoint_url: str | None,
    region: str,
    prefix: str,
    ranks: int,
    skip_distributed: bool,
    tamper: str | None,
    timeout: float,
    **shape: Any,
) -> None:
    """Train, save to S3, resume in new processes: is every bit the same?

    A small transformer learns Python's own sources; its checkpoint goes to S3 and back through PyTorch's DCP.
    First with one process, then with torchrun and sharded parameters, resumed by as many ranks and by one process.
    Exits with 0 only if all losses and all of the final state equal those of an uninterrupted run.
    """
    recipes = _recipes(shape, 0 if skip_distributed else ranks)
    if endpoint_url and not bucket:
        raise click.UsageError("--endpoint-url needs --bucket")
    console, begun = Console(), time.monotonic()
    with _surroundings(console, bucket, endpoint_url, region, prefix, timeout) as around:
        findings = [_run(around, recipe, tamper) for recipe in recipes]
    console.print(moves_table(move for one in findings for move in one.moves))
    console.print(checks_table(check for one in findings for check in one.checks))
    same = all(check.passed for one in findings for check in one.checks)
    verdict = "[green]All the same, to the last bit.[/]" if same else "[bold red]NOT the same: see above.[/]"
    console.print(f"{verdict} ({time.monotonic() - begun:.0f} s)")
    if bucket:
        console.print(f"The checkpoints stay below {around.checkpoints}", soft_wrap=True)
    sys.exit(0 if same else 1)


def _recipes(shape: dict[str, int], ranks: int) -> list[Recipe]:
    """The runs to make: one process, and several if `ranks` is not 0."""
    if ranks == 1:
        raise click.UsageError("--ranks must be at least 2")
    try:
        return [Recipe(**shape, shards=shards) for shards in (1, ranks) if shards]
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@contextmanager
def _surroundings(
    console: Console, bucket: str | None, endpoint_url: str | None, region: str, prefix: str, timeout_s: float
) -> Iterator[Surroundings]:
    """A real bucket as named, or the local endpoint for as long as it is needed."""
    folder = f"{prefix.strip('/')}/{uuid.uuid4().hex[:8]}"

    def announce(text: str) -> None:
        console.print(f"[dim]{text} …[/]")

    if bucket:
        yield Surroundings(f"s3://{bucket}/{folder}", region, endpoint_url, {}, None, announce, timeout_s)
        return
    with _local_endpoint() as endpoint:

        def count_requests() -> int:
            seen = endpoint.stats().requests
            return sum(seen.values()) - seen.get("ListObjectsV2", 0)  # the demo's own, to count objects

        yield Surroundings(
            f"s3://demo/{folder}",
            endpoint.region,
            endpoint.url,
            endpoint.environ(),
            count_requests,
            announce,
            timeout_s,
        )


@contextmanager
def _local_endpoint() -> Iterator[LocalEndpoint]:
    try:
        endpoint = LocalEndpoint(buckets=["demo"]).start()
    except ConnectError as error:
        raise click.ClickException(str(error)) from error
    with contextlib.closing(endpoint):
        yield endpoint


def _run(around: Surroundings, recipe: Recipe, tamper: str | None) -> Experiment:
    experiment = Experiment(around, recipe, tamper)
    try:
        experiment.run(sorted({recipe.shards, 1}, reverse=True))
    except WorkerFailed as error:
        raise click.ClickException(str(error)) from error
    return experiment
