"""OpenStack Swift with s3api, the strict one: it checks signatures, regions, checksums, sizes of parts.

Swift wants an old setuptools, so it lives in an environment of its own, installed on first use into a cache
folder. One proxy speaks S3; an account, a container and an object server behind it keep one replica on one
"device", a folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from servers.base import REGION, LocalServer, S3Server
from servers.certificate import Certificate
from servers.process import HOST, free_port

ACCESS_KEY = "test:tester"
SECRET_KEY = "testing"

LAUNCHER = Path(__file__).with_name("swift_launch.py")
BACKENDS = ("account", "container", "object")

#: The proxy's filters from the client inwards, with their settings. s3api answers what is S3 and leans
#: on the rest: tempauth for keys, slo for multipart uploads, bulk for DeleteObjects, and so on.
FILTERS = {
    "catch_errors": "",
    "gatekeeper": "",
    "listing_formats": "",
    "bulk": "",
    "s3api": f"location = {REGION}\ns3_acl = false\ndns_compliant_bucket_names = true",
    "tempauth": f"user_test_tester = {SECRET_KEY} .admin .reseller_admin",
    "copy": "",
    "slo": "",
    "versioned_writes": "allow_object_versioning = true",
    "symlink": "",
}

SWIFT_CONF = """
[swift-hash]
swift_hash_path_suffix = local
[storage-policy:0]
name = p0
default = yes
[swift-constraints]
max_file_size = 5368709122
"""

#: workers = 0: serve in the process itself, which is then the one pid to stop.
SERVER_CONF = """
[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = 0
swift_dir = {folder}
user = {user}
log_level = WARNING
"""

BACKEND_CONF = """
devices = {folder}/node
mount_check = false
disable_fallocate = true
recon_lock_path = {folder}
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

PROXY_CONF = """
{tls}
[pipeline:main]
pipeline = {pipeline}
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
{filters}
"""


def install_swift(cache: Path, constraints: Path, environ: Mapping[str, str]) -> Path:
    """Install Swift into `cache` unless it is there; returns its Python. Several processes may do so at once.

    The environment is kept by what it is made of: other pins or another Python make another one.

    Args:
        cache: folder to keep it in, made if missing.
        constraints: pip constraints file with Swift's pins.
        environ: environment for pip, with whatever it needs to reach its index.

    Raises:
        RuntimeError: it could not be installed; with the end of pip's output.
    """
    recipe = hashlib.sha256(constraints.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache / f"swift-{recipe}"
    python = folder / "bin" / "python"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "swift.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _check_run([sys.executable, "-m", "venv", folder], environ)
            install: list[str | Path] = [
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--constraint",
                constraints,
            ]
            _check_run([*install, "swift", "setuptools"], environ)
            (folder / "complete").touch()
    return python


def _check_run(argv: list[str | Path], environ: Mapping[str, str]) -> None:
    done = subprocess.run(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"Swift could not be installed:\n{done.stdout.decode(errors='replace')[-4000:]}")


class SwiftServer(LocalServer):
    """Four processes with their data in `folder`. Up in 1 s; about 200 MB/s."""

    def __init__(self, folder: Path, python: Path, certificate: Certificate | None = None) -> None:
        super().__init__(folder, certificate)
        self.python = python

    def _launch(self, port: int) -> S3Server:
        (self.folder / "node" / "d1").mkdir(parents=True)
        (self.folder / "swift.conf").write_text(SWIFT_CONF)
        ports = [self._launch_backend(name, free_port()) for name in BACKENDS]
        self._launch_server("proxy", port, self._proxy_conf(), *map(str, ports), tls=True)
        url, authority = self._endpoint(port)
        return S3Server(
            name="swift",
            endpoint_url=url,
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            ca_bundle=authority,
        )

    def _launch_backend(self, name: str, port: int) -> int:
        self._launch_server(name, port, BACKEND_CONF.format(name=name, folder=self.folder))
        return port

    def _launch_server(self, name: str, port: int, conf: str, *argv: str, tls: bool = False) -> None:
        user = pwd.getpwuid(os.getuid()).pw_name
        head = SERVER_CONF.format(host=HOST, port=port, folder=self.folder, user=user)
        (self.folder / f"{name}.conf").write_text(head + conf)
        self._run(name, self.python, "-I", LAUNCHER, self.folder, name, *argv, port=port, tls=tls)

    def _proxy_conf(self) -> str:
        certificate = self.certificate
        sections = [f"[filter:{name}]\nuse = egg:swift#{name}\n{lines}" for name, lines in FILTERS.items()]
        return PROXY_CONF.format(
            tls=f"cert_file = {certificate.chain}\nkey_file = {certificate.key}" if certificate else "",
            pipeline=" ".join((*FILTERS, "proxy-server")),
            filters="\n".join(sections),
        )
