"""Where the benchmarks store: a local endpoint of their own, or a bucket of the user's."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import botocore.session
import click

from aiockpt.testing import LocalEndpoint, Shape

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went over the wire, as the server saw it.

    Attributes:
        requests: how many.
        nbytes: of bodies, both directions.
        server_cpu_s: CPU seconds of the server.
    """

    requests: int
    nbytes: int
    server_cpu_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """The user's bucket; without one the benchmarks start a local endpoint.

    Attributes:
        bucket: its name; "" stands for the local endpoint.
        prefix: keys are below it.
        region: of the bucket.
        endpoint_url: of another service than AWS.
    """

    bucket: str = ""
    prefix: str = ""
    region: str = "us-east-1"
    endpoint_url: str | None = None


class Storage:
    """A place for objects, and the environment by which a process finds it.

    Attributes:
        environ: for the contenders' processes.
    """

    def __init__(self, bucket: str, prefix: str, environ: dict[str, str], endpoint: LocalEndpoint | None) -> None:
        self.bucket = bucket
        self.environ = environ
        self._prefix = prefix
        self._endpoint = endpoint

    def url(self, name: str) -> str:
        """The checkpoint of that name."""
        return f"s3://{self.bucket}/{self._prefix}{name}"

    def observe(self, work: Callable[[], T]) -> tuple[T, Traffic | None]:
        """Do the work; returns its result and its traffic, if the server can tell."""
        if self._endpoint is None:
            return work(), None
        self._endpoint.reset_stats()
        result = work()
        stats = self._endpoint.stats()
        return result, Traffic(stats.requests_total, stats.body_bytes_in + stats.body_bytes_out, stats.cpu_s)


@contextmanager
def open_storage(
    place: Place,
    *,
    reserve_bytes: int = 0,
    shape: Shape | None = None,
    tls: tuple[str, str, str] | None = None,
) -> Iterator[Storage]:
    """The user's bucket, or a local endpoint for as long as the block runs.

    Args:
        place: says which.
        reserve_bytes: memory that the local endpoint should have at hand for objects.
        shape: the network that the local endpoint pretends to be behind.
        tls: certificate chain, key and authority (PEM files) of a local endpoint that serves https.

    Raises:
        ClickException: a shaped network or a certificate, with a bucket of the user's.
    """
    if place.bucket:
        if shape:
            raise click.UsageError("only the local endpoint can imitate a network: leave out --bucket")
        prefix = f"{place.prefix.strip('/')}/{uuid.uuid4().hex}/".lstrip("/")
        try:
            yield Storage(place.bucket, prefix, _environ(place), None)
        finally:
            _delete(place, prefix)
        return
    chain, key, authority = tls or (None, None, None)
    with LocalEndpoint(
        shape=shape, reserve_bytes=reserve_bytes, tls_cert=chain, tls_key=key, tls_ca=authority
    ) as endpoint:
        environ = endpoint.environ() | {"AWS_ENDPOINT_URL": endpoint.url}  # the name that the CRT client knows
        if authority:
            environ["SSL_CERT_FILE"] = authority  # likewise
        yield Storage("bucket", "", environ, endpoint)


def _environ(place: Place) -> dict[str, str]:
    environ = {"AWS_REGION": place.region, "AWS_DEFAULT_REGION": place.region}
    url = place.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return environ | ({"AWS_ENDPOINT_URL": url, "AWS_ENDPOINT_URL_S3": url} if url else {})


def _delete(place: Place, prefix: str) -> None:
    session = botocore.session.get_session()
    client = session.create_client("s3", region_name=place.region, endpoint_url=place.endpoint_url)
    delete_below(client, place.bucket, prefix)


def delete_below(client: Any, bucket: str, prefix: str) -> None:
    """Delete all objects whose key starts with ``prefix``, with a botocore client."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for row in page.get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=row["Key"])
