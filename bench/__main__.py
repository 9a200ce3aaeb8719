"""``python -m bench NAME``: each benchmark is a module here with a command of its own name."""

from __future__ import annotations

from importlib import import_module

import click

#: Each benchmark's line in the overview.
BENCHMARKS = {
    "first": "The first call of a process beside the next one.",
    "interference": "Training steps while async_save runs in the background.",
    "load": "dcp.load of mixed tensors, from one object and from eight.",
    "reshard": "Bytes fetched by ranks that need slices of what was saved.",
    "save": "dcp.save of mixed tensors, to one object and to eight.",
    "scaling": "Memory and speed from small checkpoints to large ones.",
    "shaped": "Load and save over a link like S3's.",
    "small": "Many small tensors: the time that a storage adds to DCP's own.",
    "staged": "Load and save of tensors that have to be copied or cast on the way.",
    "tls": "Load and save over TLS.",
}


class Benchmarks(click.Group):
    """Imports a benchmark when it is asked for: help need not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Their names."""
        return sorted(BENCHMARKS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """The command of a benchmark; None if there is no such."""
        if cmd_name not in BENCHMARKS:
            return None
        command: click.Command = getattr(import_module(f"bench.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """The overview, without importing anything."""
        with formatter.section("Benchmarks"):
            formatter.write_dl(sorted(BENCHMARKS.items()))


@click.command(cls=Benchmarks, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure aiockpt beside its peers, against the local endpoint or a bucket of yours."""


if __name__ == "__main__":
    main()
