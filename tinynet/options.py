"""What the commands of cli.py and bench/commands.py share: where they talk, and options that are lists."""

from __future__ import annotations

import typer
from rich.console import Console

terminal = Console(stderr=True)


def choice(text: str, allowed, what: str, only_one: bool = False) -> tuple[str, ...]:
    """A comma-separated option; all of `allowed` if it is empty."""
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip())) or tuple(allowed)
    for name in chosen:
        if name not in allowed:
            raise typer.BadParameter(f"there is no {what} {name!r}; choose from {', '.join(allowed)}")
    if only_one and len(chosen) != 1:
        raise typer.BadParameter(f"one {what} is wanted, not {text!r}; choose from {', '.join(allowed)}")
    return chosen


def sizes_of(text: str, most: int = 1437) -> tuple[int, ...]:
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or not all(1 <= s <= most for s in sizes):
        raise typer.BadParameter(f"batch sizes must be numbers from 1 to {most}, separated by commas; got {text!r}")
    return sizes
