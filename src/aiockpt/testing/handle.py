"""The endpoint's handle: starts the process, stops it, and speaks to its admin listener. Synchronous."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

from aiockpt.errors import ConnectError, LocalProtocolError
from aiockpt.testing.faults import Fault
from aiockpt.testing.shaping import Shape
from aiockpt.testing.stats import RequestRecord, Stats

#: Seconds that the process has to end by itself, and that an admin request may take.
_STOP_TIMEOUT_S = 5.0
_ADMIN_TIMEOUT_S = 60.0


class LocalEndpoint:
    """A local S3 endpoint in a process of its own, started by ``start`` or on entering ``with``.

    The process ends with ``close``, with the ``with`` block, and when the process that started it is gone.

    Args:
        folder: keeps the objects as files; None: in memory.
        port: 0 for any free one.
        shape: the network that it pretends to be behind.
        buckets: those to make.
        tls_cert, tls_key: PEM files; with them it serves https.
        tls_ca: PEM file that clients are to trust, for ``environ``.
        anonymous: whether unsigned requests are served.
        reserve_bytes: memory that the process faults in before it is ready, for measurements.

    Attributes:
        url: of the endpoint, once started.
        admin_url: of its admin listener.
        pid: of its process.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        port: int = 0,
        shape: Shape | None = None,
        buckets: Sequence[str] = ("bucket",),
        *,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        tls_ca: str | Path | None = None,
        anonymous: bool = False,
        reserve_bytes: int = 0,
    ) -> None:
        self.access_key = "aiockpt"
        self.secret_key = "aiockpt-secret"  # noqa: S105  # no secret
        self.region = "us-east-1"
        self.url = ""
        self.admin_url = ""
        self.pid = 0
        self._tls_ca = tls_ca
        self._process: subprocess.Popen[bytes] | None = None
        valued = {
            "--folder": folder,
            "--port": port,
            "--access-key": self.access_key,
            "--region": self.region,
            "--tls-cert": tls_cert,
            "--tls-key": tls_key,
            "--reserve-bytes": reserve_bytes,
            **_shape_arguments(shape or Shape()),
        }
        self._arguments = [f"{name}={value}" for name, value in valued.items() if value is not None]
        self._arguments += [f"--bucket={bucket}" for bucket in buckets]
        self._arguments += ["--anonymous"] * anonymous

    def start(self) -> Self:
        """Start the process and wait until it serves.

        Raises:
            ConnectError: it did not come up; says why.
        """
        command = [sys.executable, "-m", "aiockpt.testing", "--while-stdin", *self._arguments]
        self._process = subprocess.Popen(  # noqa: S603  # our own program
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for its parent, whose end ends it
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise ConnectError("the local endpoint did not start; see its standard error")
        ready = json.loads(line)
        if why := ready.get("error"):
            self.close()
            raise ConnectError(f"the local endpoint did not start: {why}")
        self.url, self.admin_url, self.pid = ready["url"], ready["admin_url"], self._process.pid
        return self

    def close(self) -> None:
        """Stop the process; does nothing if it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        with process:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def environ(self) -> dict[str, str]:
        """The environment variables by which botocore and what is built on it find this endpoint."""
        variables = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return variables | ({"AWS_CA_BUNDLE": str(self._tls_ca)} if self._tls_ca else {})

    def stats(self) -> Stats:
        """The counters since the last reset."""
        return Stats(**self._admin("GET", "/stats"))

    def reset_stats(self) -> None:
        """Start counting afresh, and empty the request log."""
        self._admin("DELETE", "/stats")

    def requests(self) -> list[RequestRecord]:
        """The requests that ended since the last reset."""
        return [RequestRecord(**record) for record in self._admin("GET", "/requests")]

    def set_shape(self, shape: Shape) -> None:
        """Change the network, for what moves from now on."""
        self._admin("PUT", "/shape", asdict(shape))

    def add_fault(self, fault: Fault) -> None:
        """Add a fault; it counts requests from now on."""
        self._admin("POST", "/faults", asdict(fault))

    def clear_faults(self) -> None:
        """Drop all faults, and let stalled connections go on."""
        self._admin("DELETE", "/faults")

    def drop_uploads(self) -> None:
        """Forget all multipart uploads under way, as a lifecycle rule of the bucket would."""
        self._admin("DELETE", "/uploads")

    def flip_bit(self, bucket: str, key: str, at_byte: int) -> None:
        """Invert the lowest bit of a stored byte, and leave ETag and checksums as they were: bit rot."""
        self._admin("POST", _object_path(bucket, key), {"flip_bit_at_byte": at_byte})

    def replace_object(self, bucket: str, key: str, data: bytes) -> None:
        """Create or replace an object behind its readers' backs."""
        self._admin("PUT", _object_path(bucket, key), data)

    def _admin(self, method: str, path: str, body: dict[str, Any] | bytes | None = None) -> Any:
        payload = json.dumps(body).encode() if isinstance(body, dict) else body
        connection = http.client.HTTPConnection(urlsplit(self.admin_url).netloc, timeout=_ADMIN_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request(method, path, payload)
            response = connection.getresponse()
            answer = json.loads(response.read())
        if response.status != http.HTTPStatus.OK:
            raise LocalProtocolError(f"the local endpoint refuses {method} {path}: {answer['error']}")
        return answer


def _shape_arguments(shape: Shape) -> dict[str, float | None]:
    return {
        "--first-byte-latency": shape.first_byte_latency_s,
        "--connection-bytes-per-s": shape.connection_bytes_per_s,
        "--total-bytes-per-s": shape.total_bytes_per_s,
    }


def _object_path(bucket: str, key: str) -> str:
    return f"/object/{quote(bucket)}/{quote(key)}"
