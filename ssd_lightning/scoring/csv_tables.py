"""Tables in csv files, safe to open in a spreadsheet and to read back.

A spreadsheet runs a text that begins with ``=``, ``+``, ``-``, ``@`` or a tab as a formula. The text may be the name
of a class or a file. Such a text gets an apostrophe in front, which :func:`read_table` takes away again.
"""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_lightning.run_folder import replace_text

if TYPE_CHECKING:  # The process of a sweep writes cells without pandas.
    import pandas as pd

FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Beginning of a text that a spreadsheet would run, or of one that has an apostrophe for it already."""


def cell(value: Any) -> Any:
    """Return a value as it is written to a csv file: numbers as they are, and texts so that they stay texts."""
    if not isinstance(value, str) or FORMULA.match(value) is None:
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def value_of(cell: Any) -> Any:
    """Return the value that :func:`cell` wrote."""
    is_marked = isinstance(cell, str) and cell.startswith("'") and FORMULA.match(cell)
    return cell[1:] if is_marked else cell


def write_table(table: "pd.DataFrame", path: Path | str, **settings: Any) -> None:
    """Write a table as a csv file, as a whole or not at all.

    Args:
        table: any table.
        path: the file.
        settings: arguments of ``pandas.DataFrame.to_csv``.

    Raises:
        OSError: naming the file and the reason that the system gives.
    """
    written = io.StringIO()
    _mapped(table, cell).to_csv(written, lineterminator="\n", **settings)
    replace_text(Path(path), written.getvalue())


def read_table(path: Path | str, **settings: Any) -> "pd.DataFrame":
    """Read a file of :func:`write_table`.

    Args:
        path: the file.
        settings: arguments of ``pandas.read_csv``.
    """
    import pandas as pd

    return _mapped(pd.read_csv(path, encoding_errors="surrogateescape", **settings), value_of)


def _mapped(table: "pd.DataFrame", change: Any) -> "pd.DataFrame":
    """Change the texts of a table, of its index and of its columns."""
    changed = table.rename(index=change, columns=change)
    for place, dtype in enumerate(changed.dtypes):
        if dtype.kind not in "biufc":
            changed.isetitem(place, changed.iloc[:, place].map(change))
    return changed
