"""Some faults of the matrix over TLS, where a connection ends, breaks and stalls in ways of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from aiockpt.model import MiB
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from dcp.checkpoints import Place, emptied, random_tensor, same_bits
from servers.base import S3Server, make_bucket
from servers.certificate import Certificate

#: Three parts, and small items beside them.
STATE = {
    "large": random_tensor((12, 256, 1024), torch.float32),
    "small": {str(seed): random_tensor((300,), torch.bfloat16, seed) for seed in range(5)},
    "step": 3,
}


@pytest.fixture(scope="module")
def endpoint(certificate: Certificate) -> Iterator[LocalEndpoint]:
    files = {name: str(getattr(certificate, name)) for name in ("chain", "key", "authority")}
    with LocalEndpoint(tls_cert=files["chain"], tls_key=files["key"], tls_ca=files["authority"]) as made:
        yield made


@pytest.fixture
def behind_tls(endpoint: LocalEndpoint, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    server = S3Server(
        "tls", endpoint.url, endpoint.access_key, endpoint.secret_key, endpoint.region, certificate.authority
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    yield Place(server, make_bucket(server))
    endpoint.clear_faults()


@pytest.mark.parametrize("loop_threads", [1, 2])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.RESET, key=".distcp", count=2, after_bytes=100_000),
        Fault(FaultKind.RESET, key=".distcp", count=2, after_bytes=None),
        Fault(FaultKind.END_EARLY, key=".distcp", count=2, after_bytes=100_000),
        Fault(FaultKind.END_EARLY, key=".distcp", count=2, after_bytes=None),
        Fault(FaultKind.STALL, key=".distcp", count=2, after_bytes=100_000),
        Fault(FaultKind.FLIP_BIT, key=".distcp", count=1, after_bytes=999),
        Fault(FaultKind.CLOSE, count=None),
        Fault(FaultKind.ERROR, key=".distcp", count=2),
    ],
    ids=lambda fault: f"{fault.kind.name}-{fault.after_bytes}",
)
def test_faults_are_outlived(behind_tls: Place, endpoint: LocalEndpoint, fault: Fault, loop_threads: int) -> None:
    settings = {
        "part_size": 5 * MiB,
        "backoff_base_s": 0.001,
        "backoff_cap_s": 0.005,
        "stall_timeout_s": 0.3,
        "loop_threads": loop_threads,
    }
    endpoint.add_fault(fault)
    behind_tls.save(STATE, "ckpt", None, **settings)
    endpoint.clear_faults()
    endpoint.add_fault(fault)
    assert same_bits(behind_tls.load(emptied(STATE), "ckpt", None, **settings), STATE)
