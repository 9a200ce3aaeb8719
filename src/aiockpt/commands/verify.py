"""``aiockpt verify``: every stored byte against its checksum."""

from __future__ import annotations

import time
from typing import Any

import click

from aiockpt.commands.parameters import S3_URI
from aiockpt.commands.session import Session, command
from aiockpt.commands.words import count, duration, size
from aiockpt.model import ObjectId
from aiockpt.transfer.verify import Finding, Verdict
from aiockpt.transfer.verify import verify as verify_checkpoint

EXAMPLES = """\
  aiockpt verify s3://bucket/run/step-1000
  aiockpt verify -q s3://bucket/run/step-1000 || echo damaged
"""


@command(EXAMPLES)
@click.argument("uri", type=S3_URI)
def verify(session: Session, *, uri: ObjectId) -> bool:
    """Read all of the checkpoint at URI and compare every byte with its CRC32; say which tensor is bad, and where.

    Exits with 1 if anything is damaged. What has no CRC32, as whoever saved it noted none, is named as not checked.
    """
    begun_s = time.monotonic()
    with session.bar("verifying") as bar:
        verdict = verify_checkpoint(session.store, uri, bar.advance)
    seconds = time.monotonic() - begun_s
    if session.as_json:
        session.print_json(_document(uri, verdict, seconds))
    else:
        _print(session, verdict, seconds)
    return not verdict.damaged


def _print(session: Session, verdict: Verdict, seconds: float) -> None:
    for finding in verdict.damaged:
        session.print(f"damaged: {finding.name}: {finding.reason}", "red")
    for finding in verdict.unproven:
        session.print(f"not checked: {finding.name}, {finding.place}: it has no CRC32")
    read = f"{count(verdict.items, 'item')}, {size(verdict.nbytes)} in {duration(seconds)}"
    result = f"{count(len(verdict.damaged), 'item')} damaged" if verdict.damaged else "no damage found"
    session.print(
        f"{read}, {size(int(verdict.nbytes / seconds))}/s: {result}", "bold red" if verdict.damaged else "bold"
    )


def _document(uri: ObjectId, verdict: Verdict, seconds: float) -> dict[str, Any]:
    return {
        "uri": uri.uri,
        "ok": not verdict.damaged,
        "items": verdict.items,
        "nbytes": verdict.nbytes,
        "seconds": seconds,
        "damaged": [_finding(finding) | {"reason": finding.reason} for finding in verdict.damaged],
        "unproven": [_finding(finding) for finding in verdict.unproven],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    place = finding.place
    return {
        "name": finding.name,
        "object": place and place.path,
        "start": place and place.start,
        "end": place and place.end,
    }
