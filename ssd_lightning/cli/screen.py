"""The terminal, on which names of users are printed as they are."""

from rich.console import Console


def screen() -> Console:
    """Return a console for tables and lines without markup: ``[bold]`` or ``:banana:`` may be the name of a class."""
    return Console(markup=False, emoji=False, highlight=False)
