"""Help texts that say what was written.

Typer hands them to Rich as markup, which takes ``[fp16]`` for the name of a style and shows nothing. With

    app = typer.Typer(cls=LiteralGroup, ...)

every docstring and every option's help is text, brackets and all. The lines of a paragraph are joined: Rich would keep
the breaks of the source, wherever they fall in the terminal's width.
"""

import re
from typing import Any

from rich.markup import escape
from typer.core import TyperGroup


class LiteralGroup(TyperGroup):
    """A group of commands without markup in any help text, its own and its commands'."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in (self, *self.commands.values()):
            for field in ("help", "short_help", "epilog"):
                if text := getattr(command, field):
                    setattr(command, field, escape(_joined(text)))
            for parameter in command.params:
                if text := getattr(parameter, "help", None):
                    setattr(parameter, "help", escape(text))  # noqa: B010 - not every parameter has one


def _joined(text: str) -> str:
    """Paragraphs of one line each; a paragraph that begins with a form feed or a backspace is laid out by hand."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(part if part.startswith(("\b", "\f")) else " ".join(part.split()) for part in paragraphs)
