"""The terminal, on which names of users are printed as they are."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from ssd_lightning.require import visible


class _Screen(Console):
    """A console on which no text of a stranger can command the terminal; colours and progress bars are rich's own."""

    def render_str(self, text: str, **settings: Any) -> Text:
        """Make the text visible before it is measured, so that columns of tables stay in line."""
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Make visible what was made a rich text elsewhere, such as the description of a progress bar."""
        for segment in super().render(renderable, options):
            # Colours are added later, and movements of the cursor are control segments.
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def screen() -> Console:
    """Return a console for tables and lines without markup: ``[bold]`` or ``:banana:`` may be the name of a class."""
    return _Screen(markup=False, emoji=False, highlight=False)
