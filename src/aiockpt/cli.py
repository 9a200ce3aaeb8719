"""The command line, ``aiockpt``: its commands by name, each imported when it is run.

Importing a command may mean importing torch, which takes seconds; help, completion and other commands need not wait.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from aiockpt.commands.failures import INTERRUPTED

#: Where each command is (module:attribute), and its line in the overview.
COMMANDS = {
    "bench": ("aiockpt.commands.bench:bench", "Measure saves and loads."),
    "cp": ("aiockpt.commands.cp:cp", "Copy a checkpoint between buckets and folders."),
    "demo": ("aiockpt.demo.command:demo", "Train, save to S3, resume: is every bit the same?"),
    "diff": ("aiockpt.commands.diff:diff", "Say what differs between two checkpoints."),
    "get": ("aiockpt.commands.cp:get", "Fetch a checkpoint into a folder."),
    "inspect": ("aiockpt.commands.inspect:inspect", "Show the tensors of a checkpoint."),
    "ls": ("aiockpt.commands.ls:ls", "List the checkpoints below a prefix."),
    "plan": ("aiockpt.commands.plan:plan", "Foresee a load: bytes, requests, time, cost."),
    "put": ("aiockpt.commands.cp:put", "Write a checkpoint from a folder to a bucket."),
    "rm": ("aiockpt.commands.rm:rm", "Delete a checkpoint, its metadata first."),
    "serve": ("aiockpt.demo.serve:serve", "Run a local S3 endpoint, for trying things out."),
    "sweep": ("aiockpt.commands.sweep:sweep", "Remove what killed writers left."),
    "verify": ("aiockpt.commands.verify:verify", "Compare every byte of a checkpoint with its checksum."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Names of the commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """Import a command; None if there is no such."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Import and run a command; Ctrl-C ends either with an exit code of its own."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of the commands, and options, without importing anything."""
        names = [
            CompletionItem(name, help=COMMANDS[name][1]) for name in sorted(COMMANDS) if name.startswith(incomplete)
        ]
        return names + super(click.Group, self).shell_complete(ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """The overview, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="aiockpt")
def main() -> None:
    """Checkpoint I/O for PyTorch on S3."""
