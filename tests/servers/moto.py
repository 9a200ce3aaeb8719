"""moto's server: a wide API and stored checksums, in memory; takes any signature."""

from __future__ import annotations

import sys

from servers.base import LocalServer, S3Server
from servers.process import HOST


class MotoServer(LocalServer):
    """Keeps everything in the memory of one process. Up in 1 s."""

    def _launch(self, port: int) -> S3Server:
        tls = ("-c", self.certificate.chain, "-k", self.certificate.key) if self.certificate else ()
        self._run(
            "moto",
            sys.executable,
            "-P",
            "-m",
            "moto.server",
            "-H",
            HOST,
            "-p",
            str(port),
            *tls,
            port=port,
            tls=True,
        )
        url, authority = self._endpoint(port)
        return S3Server(
            name="moto",
            endpoint_url=url,
            access_key="moto-access",
            secret_key="moto-secret",
            ca_bundle=authority,
            checks_signature=False,
            checks_region=False,
            checks_crc32=False,
            keeps_connections=False,
        )
