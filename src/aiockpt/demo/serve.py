"""``aiockpt serve``: the local endpoint in the foreground."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from pathlib import Path

import click

from aiockpt.errors import ConnectError
from aiockpt.testing import LocalEndpoint, Shape

EXAMPLES = """\b
Examples:
  aiockpt serve --port 9000 --folder /tmp/objects
  aiockpt serve --first-byte-latency 0.02 --connection-bandwidth 90e6
"""

_AWAITED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGCHLD})


@click.command(epilog=EXAMPLES)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1; by default any free one.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep objects here, not in memory.")
@click.option("--bucket", "buckets", multiple=True, default=["bucket"], show_default=True, help="Repeatable.")
@click.option("--anonymous", is_flag=True, help="Serve unsigned requests too.")
@click.option("--first-byte-latency", type=float, default=0.0, metavar="S", help="Seconds before an answer begins.")
@click.option("--connection-bandwidth", type=float, metavar="B/S", help="Bytes a second of each connection.")
@click.option("--total-bandwidth", type=float, metavar="B/S", help="Bytes a second of all connections together.")
def serve(
    *,
    port: int,
    folder: Path | None,
    buckets: tuple[str, ...],
    anonymous: bool,
    first_byte_latency: float,
    connection_bandwidth: float | None,
    total_bandwidth: float | None,
) -> None:
    """Run a local S3 endpoint until Ctrl-C, for trying things out. It listens on 127.0.0.1 only.

    Prints the environment variables by which botocore, and so aiockpt, finds it.
    """
    shape = Shape(first_byte_latency, connection_bandwidth, total_bandwidth)
    endpoint = LocalEndpoint(folder, port, shape, buckets, anonymous=anonymous)
    try:
        endpoint.start()
    except ConnectError as error:
        raise click.ClickException(str(error)) from error
    with contextlib.closing(endpoint):
        # Blocked before anybody is told that it serves, so that no signal comes too early for ``_wait``, and before its
        # look at the process (the only child), so that none is lost between the look and the wait.
        signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
        for name, value in endpoint.environ().items():
            click.echo(f"export {name}={shlex.quote(value)}")
        click.echo(f"# serving s3://{' s3://'.join(buckets)}; Ctrl-C ends it")
        _wait()


def _wait() -> None:
    """Wait for Ctrl-C or a request to end; the signals are blocked.

    Raises:
        ClickException: the endpoint's process ended by itself.
    """
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is not None or signal.sigwait(_AWAITED) == signal.SIGCHLD:
        raise click.ClickException("the endpoint's process ended by itself; see above")
