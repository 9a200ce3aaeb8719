"""Places for runs: fixtures of the DCP tests."""

from dcp.conftest import foreign, free_port, local  # noqa: F401  # fixtures
