"""A private certificate authority and one certificate for loopback, as PEM files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Certificate:
    """Paths of the server's certificate chain, its key, and the authority that clients must trust."""

    chain: Path
    key: Path
    authority: Path

    @classmethod
    def issue(cls, folder: Path) -> Certificate:
        """Make a new authority and its certificate for 127.0.0.1 and localhost, in `folder`."""
        made = cls(folder / "server.pem", folder / "server.key", folder / "authority.pem")
        authority = trustme.CA()
        leaf = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(made.authority)
        leaf.private_key_pem.write_to_path(made.key)
        for blob in leaf.cert_chain_pems:
            blob.write_to_path(made.chain, append=True)
        return made

    def client_context(self) -> ssl.SSLContext:
        """A context that trusts this authority only."""
        return ssl.create_default_context(cafile=self.authority)
