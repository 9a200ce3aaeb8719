"""Fixtures: each server starts at most once a session, on first use, and stops at its end.

    swift, moto, rclone, swift_tls, moto_tls, rclone_tls   one S3Server
    s3_server, tls_server                                  the test runs once on each of the three
    bucket, tls_bucket                                     a fresh bucket on s3_server, on tls_server
    certificate                                            the private authority behind the TLS servers
    local_endpoint                                         our own: no faults, no shaping, no uploads, counters at zero
    local_bucket                                           a fresh bucket on it

For a bucket on a certain server, call ``servers.base.make_bucket(server)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from servers.base import S3Server, make_bucket
from servers.certificate import Certificate
from servers.moto import MotoServer
from servers.rclone import RcloneServer
from servers.swift import SwiftServer, install_swift

if TYPE_CHECKING:
    from aiockpt.testing import LocalEndpoint

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.issue(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def swift_python(inherited_environ: dict[str, str]) -> Path:
    cache, constraints = REPOSITORY / ".cache" / "servers", REPOSITORY / ".ci" / "constraints.txt"
    return install_swift(cache, constraints, inherited_environ)


@pytest.fixture(scope="session")
def swift(server_folder: Path, swift_python: Path) -> Iterator[S3Server]:
    with SwiftServer(server_folder / "swift", swift_python) as server:
        yield server


@pytest.fixture(scope="session")
def swift_tls(server_folder: Path, swift_python: Path, certificate: Certificate) -> Iterator[S3Server]:
    with SwiftServer(server_folder / "swift-tls", swift_python, certificate) as server:
        yield server


@pytest.fixture(scope="session")
def moto(server_folder: Path) -> Iterator[S3Server]:
    with MotoServer(server_folder / "moto") as server:
        yield server


@pytest.fixture(scope="session")
def moto_tls(server_folder: Path, certificate: Certificate) -> Iterator[S3Server]:
    with MotoServer(server_folder / "moto-tls", certificate) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(server_folder: Path) -> Iterator[S3Server]:
    with RcloneServer(server_folder / "rclone") as server:
        yield server


@pytest.fixture(scope="session")
def rclone_tls(server_folder: Path, certificate: Certificate) -> Iterator[S3Server]:
    with RcloneServer(server_folder / "rclone-tls", certificate) as server:
        yield server


@pytest.fixture(scope="session", params=["swift", "moto", "rclone"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture(scope="session", params=["swift_tls", "moto_tls", "rclone_tls"])
def tls_server(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return make_bucket(s3_server)


@pytest.fixture
def tls_bucket(tls_server: S3Server) -> str:
    return make_bucket(tls_server)


@pytest.fixture(scope="session")
def endpoint_process() -> Iterator[LocalEndpoint]:
    from aiockpt.testing import LocalEndpoint  # here: if it cannot be imported, only its users fail

    with LocalEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def local_endpoint(endpoint_process: LocalEndpoint) -> Iterator[LocalEndpoint]:
    from aiockpt.testing import Shape

    endpoint_process.drop_uploads()  # of tests before, which may have been about just that
    endpoint_process.reset_stats()
    yield endpoint_process
    endpoint_process.clear_faults()
    endpoint_process.set_shape(Shape())


@pytest.fixture
def local_bucket(local_endpoint: LocalEndpoint) -> str:
    endpoint = local_endpoint
    name = make_bucket(S3Server("local", endpoint.url, endpoint.access_key, endpoint.secret_key))
    endpoint.reset_stats()
    return name
