from __future__ import annotations

import os
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import trustme

from aiockpt.errors import ConnectError
from aiockpt.testing import LocalEndpoint


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_process_lives_as_long_as_the_block() -> None:
    with LocalEndpoint() as endpoint:
        assert is_alive(endpoint.pid)
        assert endpoint.environ()["AWS_ENDPOINT_URL_S3"] == endpoint.url
    assert not is_alive(endpoint.pid)
    endpoint.close()


def test_the_process_ends_when_its_parent_is_gone() -> None:
    code = "import os; from aiockpt.testing import LocalEndpoint; LocalEndpoint().start(); os._exit(0)"
    # The endpoint inherits its parent's standard error: that this ends says that both are gone.
    parent = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=True, timeout=30)
    assert parent.stderr == b""


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, aiockpt.testing.__main__; assert not {'torch', 'botocore', 'aiobotocore'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_port_that_is_taken(capfd: pytest.CaptureFixture[str]) -> None:
    with LocalEndpoint() as endpoint:
        port = int(endpoint.url.rpartition(":")[2])
        with pytest.raises(ConnectError, match="address already in use"):
            LocalEndpoint(port=port).start()
    assert capfd.readouterr().err == ""


def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(ca))
    certificate.private_key_pem.write_to_path(str(key))
    certificate.cert_chain_pems[0].write_to_path(str(cert))
    data = bytes(3 << 20)
    with LocalEndpoint(tls_cert=cert, tls_key=key, tls_ca=ca, anonymous=True) as endpoint:
        assert endpoint.environ()["AWS_CA_BUNDLE"] == str(ca)
        context = ssl.create_default_context(cafile=ca)
        put = urllib.request.Request(f"{endpoint.url}/bucket/x", data, method="PUT")
        with urllib.request.urlopen(put, context=context):
            pass
        with urllib.request.urlopen(f"{endpoint.url}/bucket/x", context=context) as response:
            assert response.read() == data


def test_a_folder_keeps_its_objects(tmp_path: Path) -> None:
    with LocalEndpoint(folder=tmp_path, anonymous=True) as endpoint:
        put = urllib.request.Request(f"{endpoint.url}/bucket/a/b", b"kept", method="PUT")
        with urllib.request.urlopen(put):
            pass
    assert (tmp_path / "bucket/a/b").read_bytes() == b"kept"
    with (
        LocalEndpoint(folder=tmp_path, anonymous=True) as endpoint,
        urllib.request.urlopen(f"{endpoint.url}/bucket/a/b") as response,
    ):
        assert response.read() == b"kept"


def test_uploads_are_dropped() -> None:
    with LocalEndpoint(anonymous=True) as endpoint:
        for key in "ab":
            with urllib.request.urlopen(urllib.request.Request(f"{endpoint.url}/bucket/{key}?uploads", method="POST")):
                pass
        assert endpoint.stats().uploads_open == 2
        endpoint.drop_uploads()
        assert endpoint.stats().uploads_open == 0
