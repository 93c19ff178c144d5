"""Names of classes, runs and folders are printed as users wrote them."""

import io
import re

import pytest
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ssd_lightning.cli.errors import fail
from ssd_lightning.cli.screen import screen
from ssd_lightning.require import visible

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


COMMANDS = "\x1b]0;owned\x07\x1b[31mX\r\x9b2J\u202e\udcc2\udc9b"
SEEN = r"\x1b]0;owned\x07\x1b[31mX\r\x9b2J\u202e\x9b"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_no_text_commands_the_terminal(is_terminal: bool, monkeypatch: pytest.MonkeyPatch):
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
    console = screen()
    console.file, console.width = io.StringIO(), 200
    table = Table(f"column {COMMANDS}", title=f"title {COMMANDS}", style="red")
    table.add_row(f"cell {COMMANDS}")
    table.add_row("short")
    console.print(f"line {COMMANDS}", soft_wrap=True)
    console.print(Text(f"text {COMMANDS}", style="bold"), table)
    with Progress(TextColumn("{task.description}", markup=False), BarColumn(), console=console) as progress:
        progress.add_task(COMMANDS, total=1)
    out = console.file.getvalue()
    assert [place for place in ("line", "column", "title", "cell") if f"{place} {SEEN}" not in out] == []
    # A text of rich drops these two by itself.
    seen = SEEN.replace(r"\x07", "").replace(r"\r", "")
    assert f"text {seen}" in out
    # The column of a progress bar is cut to the width that rich measured before.
    assert seen[:10] in out.rpartition("└")[2]
    # Only colours and movements of the cursor of rich itself are left.
    rest = re.sub(r"\x1b\[[0-9;]*[mK]|\x1b\[1A|\x1b\[\?25[lh]|\r(?=\x1b|$)", "", out)
    assert set(re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", rest)) <= {"\r"} & set(rest)
    assert ("\x1b[1m" in out, "\x1b[31m" in out) == (is_terminal, is_terminal)
    # The columns of a table are as wide as what is seen.
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines() if "│" in line]
    assert len(lines) == 2
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (COMMANDS, SEEN),
        ("two\nlines\tü 香蕉 \\x1b", "two\nlines\tü 香蕉 \\x1b"),
        ("a\udcff\ud800", "a\udcff\\ud800"),
        ("\x00\x7f", r"\x00\x7f"),
    ],
)
def test_what_is_seen_of_a_text(text: str, shown: str):
    assert visible(text) == visible(visible(text)) == shown


def test_a_message_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        fail("ssd-train", f"loss: {COMMANDS}")
    assert capsys.readouterr().err == f"ssd-train: loss: {SEEN}\n"


def test_a_name_does_not_pretend_to_be_a_line_of_a_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        fail("ssd-check", "a\nssd-check: all is good.xml: expected a file, got none")
    assert capsys.readouterr().err == "ssd-check: a\\nssd-check: all is good.xml: expected a file, got none\n"
    with pytest.raises(SystemExit):
        fail("ssd-predict", "2 of 3 pictures could not be read:\n  a.png\n  b.png")
    assert capsys.readouterr().err == "ssd-predict: 2 of 3 pictures could not be read:\n  a.png\n  b.png\n"


def test_long_lines_are_not_broken(capsys: pytest.CaptureFixture[str]):
    screen().print("a/" * 300, soft_wrap=True)
    assert capsys.readouterr().out == "a/" * 300 + "\n"
