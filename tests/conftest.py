"""No AWS settings of the machine reach any test; S3 servers (``servers/``) run for those that ask."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # so that `servers` is importable; tests are not a package

pytest_plugins = ["servers.fixtures"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, whose children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, so that a change that has nothing to do with it never fails on one. To look for new
# ones, with another seed each time:
#   pytest tests/fuzz --hypothesis-profile fuzz -o timeout=0 -o faulthandler_timeout=0
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("fuzz", max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def inherited_environ() -> dict[str, str]:
    """The environment as pytest got it, for what must reach the outside: pip."""
    return dict(os.environ)


@pytest.fixture(scope="session", autouse=True)
def isolated_environ(
    inherited_environ: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """No AWS settings, credentials or proxies of the machine reach a test, nor does an instance's role."""
    nowhere = tmp_path_factory.mktemp("aws")
    with pytest.MonkeyPatch.context() as patch:
        for name in inherited_environ:
            if name.startswith("AWS_") or name.lower().endswith("_proxy"):
                patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", str(nowhere / "no-config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere / "no-credentials"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield
