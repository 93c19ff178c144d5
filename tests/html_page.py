"""An HTML page, read as a browser reads it."""

from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "wbr", "br", "hr", "input", "link"}
"""Elements without an end tag."""


class Page(HTMLParser):
    """The elements and texts of a page. Reading it asserts that every element is closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.alternatives: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self._texts: list[str] = []
        self.feed(self.source)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags[tag] += 1
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        self.ids += [value or "" for name, value in attributes if name == "id"]
        if tag in ("img", "svg"):
            self.alternatives.append(values.get("alt") or values.get("aria-label") or "")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self._texts.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self._texts).split())

    def table(self, first_title: str) -> list[dict[str, str]]:
        """Return the rows of the table with this first title, by the titles of their columns."""
        [found] = [rows for rows in self.tables if rows[0][0] == first_title]
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]
