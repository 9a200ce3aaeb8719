"""Runs one of OpenStack Swift's servers in the foreground. Executed by the Python of Swift's own environment.

    python swift_launch.py FOLDER proxy ACCOUNT_PORT CONTAINER_PORT OBJECT_PORT
    python swift_launch.py FOLDER account|container|object

FOLDER holds ``swift.conf`` and the server's ``<name>.conf``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import swift.common.utils  # type: ignore[import-not-found, unused-ignore]  # lives in another environment
from swift.common.ring import RingBuilder  # type: ignore[import-not-found, unused-ignore]
from swift.common.wsgi import run_wsgi  # type: ignore[import-not-found, unused-ignore]


def use_configuration(folder: Path) -> None:
    """Point Swift at our ``swift.conf``: its entry points have no option for that."""
    for module in (swift.common.utils, swift.common.utils.config):
        if hasattr(module, "SWIFT_CONF_FILE"):
            module.SWIFT_CONF_FILE = str(folder / "swift.conf")


def write_ring(folder: Path, name: str, port: int) -> None:
    """Tell the proxy that everything of this kind lies on one device, behind one port."""
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    address = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1.0, "meta": "", **address})
    builder.rebalance()
    builder.get_ring().save(str(folder / f"{name}.ring.gz"))


def main(folder: Path, server: str, *ports: str) -> int:
    """Serve until terminated."""
    use_configuration(folder)
    for name, port in zip(("account", "container", "object"), ports):  # noqa: B905  # backends are given no ports
        write_ring(folder, name, int(port))
    return int(run_wsgi(str(folder / f"{server}.conf"), f"{server}-server") or 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
