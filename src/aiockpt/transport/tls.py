"""TLS contexts for the bulk connections."""

from __future__ import annotations

import ssl

from aiockpt.errors import ConfigError

#: What to do about a TLS that fails.
TLS_ADVICE = "name the authority with ca_bundle (or AWS_CA_BUNDLE), or check the endpoint URL's scheme and port"

#: A connection that ends during the handshake says nothing about certificates.
_PASSING = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


def is_lasting(exc: BaseException) -> bool:
    """Whether a failure of TLS would come again at another try: not if the connection was merely lost."""
    return not isinstance(exc, _PASSING)


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
