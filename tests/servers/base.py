"""What all S3 servers of the suite have in common: how tests see one, and how one is started and stopped."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config

from servers.certificate import Certificate
from servers.process import HOST, ServerProcess, free_port

REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 server, as a client needs to know it, and which of S3's rules it keeps.

    The rules are facts about the pinned versions, each held by ``test_smoke.py``.

    Attributes:
        ca_bundle: the authority to trust, for https.
        checks_signature: a request signed with a wrong secret is refused (403).
        checks_region: a request signed for another region is refused (400).
        checks_crc32: a PUT or part whose ``x-amz-checksum-crc32`` does not fit its bytes is refused (400).
        keeps_if_none_match: ``If-None-Match: *`` on PUT does not overwrite (412).
        keeps_part_minimum: a multipart upload with a part under 5 MiB before the last is refused (400).
        keeps_connections: answers leave the connection open for the next request.
    """

    name: str
    endpoint_url: str
    access_key: str
    secret_key: str
    region: str = REGION
    ca_bundle: Path | None = None
    checks_signature: bool = True
    checks_region: bool = True
    checks_crc32: bool = True
    keeps_if_none_match: bool = True
    keeps_part_minimum: bool = True
    keeps_connections: bool = True

    def environ(self) -> dict[str, str]:
        """The environment variables that lead botocore (and so aiockpt) to this server."""
        variables = {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }
        if self.ca_bundle:
            variables["AWS_CA_BUNDLE"] = str(self.ca_bundle)
        return variables

    def client_arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``create_client`` of a botocore or aiobotocore session."""
        return {
            "service_name": "s3",
            "endpoint_url": self.endpoint_url,
            "region_name": self.region,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "verify": str(self.ca_bundle) if self.ca_bundle else None,
        }


@cache
def _session() -> Any:
    return botocore.session.Session()  # kept, because it holds botocore's parsed service model


def make_bucket(server: S3Server) -> str:
    """Make a bucket with a name never used before; returns the name."""
    name = f"test-{uuid.uuid4().hex}"
    config = Config(s3={"addressing_style": "path"})
    with closing(_session().create_client(**server.client_arguments(), config=config)) as client:
        client.create_bucket(Bucket=name)
    return name


class LocalServer(ABC):
    """An S3 server on loopback: one or several processes with their files in `folder`; TLS if certified."""

    def __init__(self, folder: Path, certificate: Certificate | None = None) -> None:
        self.folder = folder
        self.certificate = certificate
        self._processes: list[ServerProcess] = []

    def start(self) -> S3Server:
        """Start the processes and return once all of them answer.

        Raises:
            RuntimeError: one of them did not come up; all are stopped again.
        """
        self.folder.mkdir(parents=True)
        try:
            server = self._launch(free_port())
            for process in self._processes:
                process.wait_until_answering()
        except BaseException:
            self.stop()
            raise
        return server

    def stop(self) -> None:
        """Stop the processes, the last started first."""
        while self._processes:
            self._processes.pop().stop()

    def __enter__(self) -> S3Server:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @abstractmethod
    def _launch(self, port: int) -> S3Server:
        """Start the processes, the S3 one on `port`, without waiting for them."""

    def _run(self, name: str, *argv: str | Path, port: int, tls: bool = False) -> None:
        context = self.certificate.client_context() if tls and self.certificate else None
        self._processes.append(ServerProcess(argv, port=port, log=self.folder / f"{name}.log", tls=context))

    def _endpoint(self, port: int) -> tuple[str, Path | None]:
        """The URL of a port, and the authority to trust there."""
        if self.certificate:
            return f"https://{HOST}:{port}", self.certificate.authority
        return f"http://{HOST}:{port}", None
