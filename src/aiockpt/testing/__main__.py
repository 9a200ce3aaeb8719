"""``python -m aiockpt.testing``: the local S3 endpoint as a process.

Prints one JSON line with its URLs when it is ready, and serves until it is terminated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
import sys
from pathlib import Path

import uvloop

from aiockpt.testing.admin import Admin
from aiockpt.testing.connection import Connection
from aiockpt.testing.folder import FolderStore
from aiockpt.testing.memory import BlockPool
from aiockpt.testing.server import Endpoint
from aiockpt.testing.service import Credentials
from aiockpt.testing.shaping import Network, Shape
from aiockpt.testing.state import State
from aiockpt.testing.store import MemoryStore, Store

_HOST = "127.0.0.1"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aiockpt.testing", description="A local S3 endpoint.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--admin-port", type=int, default=0, help="counters, shape and faults; 0: any free one")
    parser.add_argument("--folder", type=Path, help="keep objects as files here instead of in memory")
    parser.add_argument("--bucket", action="append", default=[], help="make this bucket; may be repeated")
    parser.add_argument("--access-key", default="aiockpt")
    parser.add_argument("--anonymous", action="store_true", help="serve unsigned requests too")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--tls-cert", type=Path, help="PEM certificate chain; serves https")
    parser.add_argument("--tls-key", type=Path, help="its PEM key")
    parser.add_argument("--first-byte-latency", type=float, default=0.0, metavar="S")
    parser.add_argument("--connection-bytes-per-s", type=float)
    parser.add_argument("--total-bytes-per-s", type=float)
    parser.add_argument("--reserve-bytes", type=int, default=0, help="memory to fault in before serving")
    parser.add_argument("--while-stdin", action="store_true", help="stop when standard input ends")
    arguments = parser.parse_args()
    if bool(arguments.tls_cert) != bool(arguments.tls_key):
        parser.error("--tls-cert and --tls-key go together")
    return arguments


def _endpoint(arguments: argparse.Namespace) -> Endpoint:
    store: Store = FolderStore(arguments.folder) if arguments.folder else MemoryStore()
    for bucket in arguments.bucket:
        store.create_bucket(bucket)
    shape = Shape(arguments.first_byte_latency, arguments.connection_bytes_per_s, arguments.total_bytes_per_s)
    credentials = Credentials(arguments.access_key, arguments.anonymous)
    return Endpoint(State(store, arguments.region), Network(shape), credentials, BlockPool(arguments.reserve_bytes))


def _tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    if not arguments.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    return context


class _EndOfInput(asyncio.Protocol):
    """Sets an event when a pipe ends."""

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the protocol's signature
        self._ended.set()


async def _main(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    try:
        server, admin_server = await _listening(arguments)
    except OSError as error:  # a port that is taken, a folder that cannot be made
        _tell({"error": str(error)})
        return
    port, admin_port = (one.sockets[0].getsockname()[1] for one in (server, admin_server))
    scheme = "https" if arguments.tls_cert else "http"
    _tell({"url": f"{scheme}://{_HOST}:{port}", "admin_url": f"http://{_HOST}:{admin_port}"})
    if arguments.while_stdin:
        await loop.connect_read_pipe(lambda: _EndOfInput(stop), sys.stdin)
    await stop.wait()
    server.close()
    admin_server.close()


async def _listening(arguments: argparse.Namespace) -> tuple[asyncio.Server, asyncio.Server]:
    """The server of objects, and that of the test's own wishes."""
    loop = asyncio.get_running_loop()
    endpoint, tls = _endpoint(arguments), _tls(arguments)
    admin, unshaped = Admin(endpoint), Network(Shape())
    server = await loop.create_server(
        lambda: Connection(endpoint.serve, endpoint.network), _HOST, arguments.port, ssl=tls, backlog=1024
    )
    return server, await loop.create_server(lambda: Connection(admin.serve, unshaped), _HOST, arguments.admin_port)


def _tell(first: dict[str, str]) -> None:
    """Say where it serves, or why it does not: one line, the interface to whoever started this."""
    print(json.dumps(first), flush=True)  # noqa: T201


if __name__ == "__main__":
    uvloop.run(_main(_arguments()))
