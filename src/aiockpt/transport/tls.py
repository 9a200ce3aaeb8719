"""TLS contexts for the bulk connections."""

from __future__ import annotations

import ssl

from aiockpt.errors import ConfigError


def client_context(ca_bundle: str | None, *, verify: bool) -> ssl.SSLContext:
    """A client context that trusts ``ca_bundle`` (None: the system's authorities).

    Args:
        ca_bundle: path of a PEM file.
        verify: False accepts any certificate; only ever on the user's explicit word.

    Raises:
        ConfigError: the bundle cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=ca_bundle)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"the CA bundle {ca_bundle!r} cannot be used: {exc}") from exc
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
