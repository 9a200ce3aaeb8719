from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from aiockpt.errors import ConfigError
from aiockpt.transport.tls import client_context
from servers.certificate import Certificate


def test_verification_is_on(certificate: Certificate) -> None:
    context = client_context(str(certificate.authority), verify=True)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1


def test_verification_is_off_only_by_name() -> None:
    context = client_context(None, verify=False)
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname


def test_a_missing_bundle_is_a_setting_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        client_context(str(tmp_path / "missing.pem"), verify=True)


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"bundle\.pem"):
        client_context(str(bundle), verify=True)
