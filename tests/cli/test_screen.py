"""Names of classes, runs and folders are printed as users wrote them."""

import pytest
from rich.table import Table

from ssd_lightning.cli.screen import screen

NAMES = ["[/x]", "[bold]red[/bold]", ":banana:", "a\\", "[link=file:///]b", "[", "100"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_without_markup(name: str, capsys: pytest.CaptureFixture[str]):
    screen().print(f"Results: {name}", soft_wrap=True)
    table = Table(title=f"title {name}")
    table.add_column(f"column {name}")
    table.add_row(f"cell {name}")
    screen().print(table)
    out = capsys.readouterr().out
    for place in ("Results:", "title", "column", "cell"):
        assert f"{place} {name}" in out


def test_long_lines_are_not_broken(capsys: pytest.CaptureFixture[str]):
    screen().print("a/" * 300, soft_wrap=True)
    assert capsys.readouterr().out == "a/" * 300 + "\n"
