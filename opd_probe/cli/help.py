"""``--help`` of the commands: options under their headings, their names whole at any width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose options are listed by heading."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, those without a heading of their own last."""
        headed: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            record = one.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if one.param_type_name == "argument" else "Other"
                headed.setdefault(getattr(one, "rich_help_panel", None) or usual, []).append(record)
        for heading in sorted(headed, key=lambda name: name == "Other"):
            with formatter.section(heading):
                formatter.write_dl(headed[heading])


class App(typer.Typer):
    """The application: its commands show their options so."""

    def command(self, name: str | None = None, **how: Any) -> Callable[[Any], Any]:
        """As typer's."""
        return super().command(name, **{"cls": Command, **how})


class Group(TyperGroup):
    """The application's own help: each command with the whole of its first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands in their order."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, " ".join((command.help or "").split("\n\n")[0].split())))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
