"""Tables that a spreadsheet opens without running a formula, and that are read back unchanged."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ssd_lightning.scoring.csv_tables import cell, read_table, value_of, write_table

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-a", "-", "=", "-banana"]
PLAIN = ["banana", "a=b", "", "'quoted'", "'", "物", "1,5", 'a "b"', "-5", "+1e-3", "-.5", "-inf"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_a_text_and_comes_back(text: str):
    written = cell(text)
    assert written[0] == "'"
    assert value_of(written) == text


@pytest.mark.parametrize("value", [*PLAIN, -5, -0.5, float("nan"), None, True])
def test_anything_else_is_written_as_it_is(value: object):
    assert cell(value) is value
    assert value_of(value) is value


def test_index_columns_and_cells_of_a_table(tmp_path: Path):
    formulas = [text for text in FORMULAS if "\r" not in text]
    table = pd.DataFrame(
        {"name": formulas, "=score": np.linspace(-1, 1, len(formulas)), "count": range(-5, len(formulas) - 5)},
        index=pd.Index(formulas[::-1], name="@class"),
    )
    before = table.copy()
    write_table(table, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(table, before)
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    for row in rows[1:]:
        assert row[0].startswith("'")
        assert row[1].startswith("'")
        assert float(row[2]) <= 1
    assert rows[0][2] == "'=score"
    read = read_table(tmp_path / "table.csv", index_col=0)
    pd.testing.assert_frame_equal(read, table, check_names=False)


def test_a_name_with_bytes_that_are_no_text(tmp_path: Path):
    table = pd.DataFrame({"picture": ["a\udcff.png"], "n": [1]})
    write_table(table, tmp_path / "table.csv", index=False)
    assert b"a\xff.png" in (tmp_path / "table.csv").read_bytes()
    assert read_table(tmp_path / "table.csv")["picture"].tolist() == ["a\udcff.png"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "table.csv").mkdir()
    with pytest.raises(OSError, match=str(tmp_path / "table.csv")):
        write_table(pd.DataFrame({"a": [1]}), tmp_path / "table.csv")
