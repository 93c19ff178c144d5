"""Lists of pictures and caches of any content: they are read, or refused with the name of the file."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from voc_xml import write_pair

from ssd_lightning.data.bananas.dataset import Bananas
from ssd_lightning.data.folders import DataFolder
from ssd_lightning.data.formats.annotations import distinct
from ssd_lightning.data.formats.cache import cache_file, load
from ssd_lightning.data.formats.voc_folder import VOCFolder, listed_xml
from ssd_lightning.data.formats.voc_xml import read_xml

LINES = st.lists(
    st.sampled_from(["a", "a.png", "a 1", "../a", "/etc/passwd", "\\a", "b" * 5000, "a/" * 3000, "\0", ""])
)


@settings(max_examples=60, deadline=1000)
@given(content=st.binary(max_size=80) | LINES.map(lambda lines: "\n".join(lines).encode()))
def test_any_list_is_read_or_refused_with_the_name_of_a_file(made_once, content: bytes):
    folder = made_once("any_list", lambda folder: write_pair(folder, "a", [("cat", 1, 1, 9, 9)]))
    (folder / "train.txt").write_bytes(content)
    files = DataFolder(folder)
    try:
        listed = listed_xml(files, "train.txt")
    except ValueError as error:
        assert "train.txt" in str(error)  # noqa: PT017  # some contents are no text
        return
    for path in listed:
        try:
            assert read_xml(path, files).names == ["cat"]
        except ValueError as error:
            assert path in str(error)  # noqa: PT017  # most lines name no file


ARRAYS = hnp.arrays(
    st.sampled_from([np.int64, np.float64, np.uint8, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=2, max_side=3)
)


@settings(max_examples=30, deadline=1000)
@given(spoilt=st.dictionaries(st.sampled_from(["sizes", "counts", "names", "boxes", "sources", "numbers"]), ARRAYS))
def test_any_cache_is_whole_or_made_anew(made_once, spoilt: dict[str, np.ndarray]):
    folder = made_once(
        "any_cache", lambda folder: [write_pair(folder / n, n, [("cat", 1, 1, 9, 9)]) for n in ("train", "val")]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSD_CACHE", str(folder / "cache"))
        key = f"voc {folder.resolve()}"
        cache_file(key).unlink(missing_ok=True)
        VOCFolder(folder).train()
        with np.load(cache_file(key)) as file:
            columns = dict(file)
        np.savez(cache_file(key), **{**columns, **spoilt})
        known = load(key)
        if known is not None:
            assert len(known.annotations.boxes) == known.annotations.counts.sum()
        assert len(VOCFolder(folder).train()) <= 1


def test_a_table_that_never_ends_is_not_opened(tmp_path: Path):
    (tmp_path / "bananas_train" / "images").mkdir(parents=True)
    write_pair(tmp_path / "bananas_train" / "images", "a")
    os.mkfifo(tmp_path / "bananas_train" / "label.csv")
    with pytest.raises(ValueError, match=r"label\.csv: expected a file, got a named pipe$"):
        Bananas(tmp_path).train()


def test_given_class_names_have_a_longest():
    assert distinct(["a" * 200]) == ("a" * 200,)
    with pytest.raises(ValueError, match=r"^classes: expected at most 200 characters, got 201"):
        distinct(["b", "a" * 201])
