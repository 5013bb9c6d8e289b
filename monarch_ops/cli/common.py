"""What the commands share."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text


def show(found: dict[str, Any]) -> None:
    """Names and values as a table; of dictionaries and lists one entry per line."""
    table = Table(show_header=False, box=None)
    for name, value in found.items():
        if isinstance(value, dict):
            value = [f"{kernel}: {', '.join(names)}" for kernel, names in value.items()]
        table.add_row(name, "\n".join(value) or "none" if isinstance(value, list) else str(value))
    Console().print(table)


def write_json(file: Path, value: Any) -> str:
    """Write a JSON file, with the folder that it is in; gives its text."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n", "utf-8")
    return text


def show_found(found: Any, text: str | None = None) -> None:
    """All that it renders for the terminal, or the text instead, if there is one."""
    if text is not None:
        typer.echo(text)
        return
    for part in found.rendered():
        Console().print(part)


def extra(module: str) -> ModuleType:
    """A part of this package that needs an extra, which its error names."""
    try:
        return importlib.import_module(module, __package__)
    except ImportError as error:
        raise typer.BadParameter(str(error)) from error


def refuse(error: Exception) -> NoReturn:
    """End with the message of an error that is the user's."""
    Console(stderr=True).print(Text(f"Error: {error}"), soft_wrap=True)
    raise typer.Exit(1) from error
