"""Csv files with a row for each object: their columns, pictures and splits, and what is refused."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_line import refused
from voc_xml import write_picture
from yolo_folder import write_text

from ssd_lightning.data.formats import csv_pictures
from ssd_lightning.data.formats.csv_pictures import CSV
from ssd_lightning.data.formats.csv_rows import read_rows
from ssd_lightning.data.formats.findings import Finding, refuse

HEADER = "filename,class,xmin,ymin,xmax,ymax"
ROW = "a.png,cat,10,5,30,15"


def write_csv(root: Path, *lines: str, name: str = "labels.csv", pictures: str = "ab") -> Path:
    """Write a csv file, and pictures of 40×20 pixels."""
    for picture in pictures:
        write_picture(root / f"{picture}.png")
    write_text(root / name, "\n".join(lines) + "\n")
    return root


def everything(data: CSV) -> dict[str, list[tuple[str, list[float]]]]:
    """Return class and edges in pixels of all objects, by the name of their picture."""
    found = {}
    for pictures in filter(None, (data.train(), data.val(), data.test())):
        refuse(pictures.findings)
        for row, path in enumerate(pictures.paths):
            (height, width), boxes, labels, _ = pictures.truth(row)
            pixels = (boxes.astype(float) * (width, height, width, height)).round(3).tolist()
            found[path.stem] = [(data.classes[n - 1], box) for n, box in zip(labels.tolist(), pixels, strict=True)]
    return found


def split(data: CSV) -> list[list[str]]:
    parts = (data.train(), data.val(), data.test())
    return [[] if part is None else [path.stem for path in part.paths] for part in parts]


def findings(data: CSV) -> list[Finding]:
    return data.train().findings


EXPECTED = {"a": [("cat", [10, 5, 30, 15])], "b": []}


# --- columns ---


@pytest.mark.parametrize(
    ("lines", "settings"),
    [
        ((HEADER, ROW, "b.png,,,,,"), {}),
        ((HEADER, "b.png,,nan,NaN,null,", ROW), {}),
        (("image;label;x1;y1;x2;y2", "a.png;cat;10;5;30;15", "b.png;;;;;"), {}),
        (("image_path\tname\tleft\ttop\tright\tbottom", "x/a.png\tcat\t10\t5\t30\t15", "./b.png\t\t\t\t\t"), {}),
        (("Image Name| Class |X-Min|Y-Min|X-Max|Y-Max", "a.png|cat|10|5|30|15", "b.png|||||"), {}),
        (("x,y,width,height,category,file_name", "10,5,20,10,cat,a.png", ",,,,,b.png"), {}),
        (("filename,class,cx,cy,w,h", "a.png,cat,20,10,20,10", "b.png,,,,,"), {}),
        (("filename,class,cx,cy,w,h", "a.png,cat,.5,.5,.5,.5", "b.png,,,,,"), {"unit": "fractions"}),
        (("filename,class,x,y,w,h", "a.png,cat,.25,.25,.5,.5", "b.png,,,,,"), {"unit": "fractions"}),
        (("ImageID,LabelName,XMin,XMax,YMin,YMax", "a,cat,.25,.75,.25,.75", "b,,,,,"), {"unit": "fractions"}),
        (("filename,class,x,y,w,h", "a.png,cat,20,10,20,10", "b.png,,,,,"), {"box_format": "cxcywh"}),
        (
            ("p,c,l,t,r,b", "a.png,cat,10,5,30,15", "b.png,,,,,"),
            {"picture_column": "p", "class_column": "c", "box_columns": ["l", "t", "r", "b"]},
        ),
        (
            ("p,c,r,b,l,t", "a.png,cat,20,10,10,5", "b.png,,,,,"),
            {"picture_column": "P", "class_column": "c", "box_columns": list("ltrb"), "box_format": "xywh"},
        ),
        (('"filename","class","xmin","ymin","xmax","ymax"', '"a.png","cat","10","5","30","15"', '"b.png",,,,,'), {}),
        ((f"\ufeff{HEADER}\r", f"{ROW}\r", "\r", "b.png,,,,,\r", ""), {}),
        ((f"{HEADER}\r{ROW}\rb.png,,,,,",), {}),
        ((f"{HEADER},extra,", f"{ROW},1,", "b.png,,,,,,2,"), {}),
        (("a.png,10,5,30,15,cat", "b.png,,,,,"), {"header": ["image", "x1", "y1", "x2", "y2", "class"]}),
        (("a.png;10;5;30;15;cat", "b.png;;;;;"), {"header": ["image", "x1", "y1", "x2", "y2", "class"]}),
        ((HEADER.replace(",", "#"), ROW.replace(",", "#"), "b.png#####"), {"delimiter": "#"}),
        (("filename,xmin,ymin,xmax,ymax", "a.png,10,5,30,15", "b.png,,,,"), {"classes": ["cat"]}),
        ((f"{HEADER},width,height", f"{ROW},40,20", "b.png,,,,,,40,20"), {}),
    ],
)
def test_columns(tmp_path: Path, lines: tuple[str, ...], settings: dict):
    write_csv(tmp_path, *lines)
    for _ in range(2):
        assert everything(CSV(tmp_path, val_share=0.5, **settings)) == EXPECTED


def test_classes_are_texts(tmp_path: Path):
    write_csv(tmp_path, HEADER, 'a.png,"big ""cat"", 1",0,0,9,9', "b.png,07,0,0,9,9", "b.png,größe,1,1,9,9")
    assert CSV(tmp_path, val_share=0.5).classes == ("07", 'big "cat", 1', "größe")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str):
    write_picture(tmp_path / "ä.png")
    write_picture(tmp_path / "b.png")
    write_text(tmp_path / "x.csv", f"{HEADER}\nä.png,größe,0,0,9,9\nb.png,,,,,\n".encode(encoding))
    assert everything(CSV(tmp_path, val_share=0.5)) == {"ä": [("größe", [0, 0, 9, 9])], "b": []}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("class,xmin,ymin,xmax,ymax", "cat,0,0,9,9"), r"one column filename, got none.*data\.picture_column="),
        (("a," * 9999,), r"got none; columns: .{200} …\. Try "),
        (("filename#class", "a.png#cat"), r"got none.*data\.delimiter="),
        (("filename,class,a,b,c,d", "a.png,cat,0,0,9,9"), r"one column xmin, got none.*data\.box_columns="),
        (("filename,xmin,ymin,xmax,ymax", "a.png,0,0,9,9"), r"column for the class.*data\.class_column="),
        ((f"{HEADER},class", f"{ROW},cat"), r"one column class, got several"),
        (("",), r"got none"),
        ((HEADER, 'a.png,"cat,10,5,30,15'), r"line 2: cannot be read as csv"),
        ((HEADER, ROW, 'a.png,"c"at,10,5,30,15', ROW), r"line 3: cannot be read as csv"),
        ((HEADER, "a.png,c\0at,10,5,30,15"), r"got a zero byte"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, lines: tuple[str, ...], told: str):
    write_csv(tmp_path, *lines)
    with pytest.raises(ValueError, match=rf"labels\.csv(, line \d+)?: .*{told}|labels\.csv, {told}"):
        CSV(tmp_path).train()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("a.png,cat,10,5,30", "expected 6 columns, got 5"),
        ("a.png,cat,10,5,30,15,9", "expected 6 columns, got 7"),
        ("a.png,cat,10,x,30,15", "ymin: expected a number, got 'x'"),
        ("a.png,cat,10,,30,15", "ymin: expected a number, got ''"),
        ("a.png,cat,10,inf,30,15", "ymin: expected a number, got 'inf'"),
        ("gone.png,cat,10,5,30,15", "'gone.png'"),
        (",cat,10,5,30,15", "got ''"),
        ("../a.png.,cat,10,5,30,15", "'../a.png.'"),
        (f"labels.csv{ROW[5:]}", "labels.csv: cannot be read as a picture"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(tmp_path: Path, row: str, told: str):
    """The picture of the row is left out by fix=skip, since its number of objects is unknown."""
    write_csv(tmp_path, HEADER, ROW, "b.png,cat,1,1,9,9", "", row)
    data = CSV(tmp_path, val_share=0.5)
    (finding,) = findings(data)
    assert finding.kind == "unreadable"
    assert "labels.csv, line 5: " in finding.text
    assert told in finding.text
    kept = CSV(tmp_path, val_share=0.5, fix="skip")
    assert sorted(path.stem for part in (kept.train(), kept.val()) for path in part.paths) == sorted(
        "b" if row.startswith("a.png") else "ab"
    )


def test_a_class_that_is_not_utf_8_is_refused(tmp_path: Path):
    write_csv(tmp_path)
    write_text(tmp_path / "labels.csv", f"{HEADER}\n{ROW}\n".encode().replace(b"cat", b"c\xe4t"))
    assert "line 2: class: expected text in UTF-8" in findings(CSV(tmp_path))[0].text


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"unit": "percent"}, "unit"),
        ({"box_format": "yxyx"}, "box_format"),
        ({"delimiter": ", "}, "delimiter"),
        ({"box_columns": ["x", "y"]}, "box_columns"),
        ({"val": "val"}, "train"),
        ({"val_share": 0.6, "test_share": 0.4}, "val_share"),
    ],
)
def test_wrong_settings(tmp_path: Path, settings: dict, key: str):
    with pytest.raises(ValueError, match=rf"^{key}.*: expected .*, got "):
        CSV(tmp_path, **settings)


# --- checks ---


@pytest.mark.parametrize(
    ("row", "kind", "told"),
    [
        ("a.png,cow,1,1,9,9", "class", "expected one of cat, got 'cow'"),
        ("a.png,,1,1,9,9", "class", "got ''"),
        ("a.png,cat,9,1,1,9", "reversed", "xmin=9 ymin=1 xmax=1 ymax=9"),
        ("a.png,cat,9,1,9,9", "empty", "xmin=9 ymin=1 xmax=9 ymax=9"),
        ("a.png,cat,30,1,50,9", "outside", "inside a.png of 40×20 pixels, got xmin=30 ymin=1 xmax=50 ymax=9"),
    ],
)
def test_faults_are_told_with_file_and_line(tmp_path: Path, row: str, kind: str, told: str):
    write_csv(tmp_path, HEADER, "b.png,cat,1,1,9,9", ROW, row)
    parts = CSV(tmp_path, classes=["cat"], val_share=0.5)
    (finding,) = [*parts.train().findings, *parts.val().findings]
    assert (finding.kind, told in finding.text) == (kind, True)
    assert "labels.csv, line 4: " in finding.text


def test_another_size_of_the_picture(tmp_path: Path):
    write_csv(tmp_path, f"{HEADER},width,height", f"{ROW},20,40", "b.png,cat,1,1,9,9,40,20")
    parts = CSV(tmp_path, val_share=0.5)
    (finding,) = [*parts.train().findings, *parts.val().findings]
    assert "expected 40×20 pixels as a.png has upright, got 20×40" in finding.text


@pytest.mark.parametrize(
    ("unit", "box", "other"), [("pixels", ".1,.1,.9,.9", "fractions"), ("fractions", "10,5,30,15", "pixels")]
)
def test_the_other_unit(tmp_path: Path, unit: str, box: str, other: str):
    write_csv(tmp_path, HEADER, f"a.png,cat,{box}", f"b.png,cat,{box}")
    (finding,) = findings(CSV(tmp_path, unit=unit, val_share=0.5))
    assert (finding.kind, finding.text.endswith(f"Try data.unit={other}.")) == ("units", True)


def test_another_order_of_the_numbers(tmp_path: Path):
    rows = [f"{name}.png,cat,{30 + n},10,5,5" for name in "ab" for n in range(5)]
    write_csv(tmp_path, HEADER, *rows)
    first = findings(CSV(tmp_path, val_share=0.5))[0]
    assert (first.kind, first.text.endswith("Try data.box_format=xywh.")) == ("units", True)
    assert all(not found for found in [findings(CSV(tmp_path, val_share=0.5, box_format="xywh"))])


def test_pictures_without_objects_are_counted(tmp_path: Path):
    write_csv(tmp_path, HEADER, ROW, "b.png,,,,,", "c.png,,,,,", "d.png,cat,0,0,9,9", pictures="abcd")
    (remark,) = CSV(tmp_path).train().remarks
    assert (remark.kind, remark.text.endswith("without objects: 2")) == ("background", True)


# --- pictures ---


@pytest.mark.parametrize(
    ("picture", "name"),
    [
        ("a.png", "C:\\x\\a.png"),
        ("images/a.png", "a.png"),
        ("images/a.png", "/content/data/images/a.png"),
        ("images/sub/a.png", "sub/a.png"),
        ("labels/a.png", "a.png"),
        ("deep/down/a.png", "a.png"),
        ("A.PNG", "a.png"),
        ("a.jpg", "a"),
        ("images/1.5.png", "1.5"),
    ],
)
def test_where_pictures_are_found(tmp_path: Path, picture: str, name: str):
    write_picture(tmp_path / picture)
    write_csv(tmp_path, HEADER, f"{name},cat,0,0,9,9", "b.png,cat,0,0,9,9", pictures="b")
    parts = CSV(tmp_path, val_share=0.5)
    assert tmp_path / picture in [path for part in (parts.train(), parts.val()) for path in part.paths]
    refuse(parts.train().findings)


def test_a_folder_of_pictures(tmp_path: Path):
    for folder in ("one", "two"):
        write_picture(tmp_path / folder / "a.png")
    write_csv(tmp_path, HEADER, ROW, "b.png,cat,0,0,9,9", pictures="b")
    assert "data.pictures=" in findings(CSV(tmp_path, val_share=0.5))[0].text
    write_picture(tmp_path / "two" / "b.png")
    parts = CSV(tmp_path, val_share=0.5, pictures="two")
    assert {path.parent.name for part in (parts.train(), parts.val()) for path in part.paths} == {"two"}


def test_nothing_outside_is_read(tmp_path: Path):
    write_picture(tmp_path / "c.png")
    write_csv(tmp_path / "data", HEADER, ROW, "b.png,cat,0,0,9,9", "../c.png,cat,0,0,9,9")
    assert "'../c.png'" in findings(CSV(tmp_path / "data", val_share=0.5))[0].text


def test_one_picture_by_several_names_is_one_picture(tmp_path: Path):
    write_csv(tmp_path, HEADER, ROW, "./a.png,cat,0,0,9,9", "b.png,cat,0,0,9,9")
    assert {name: len(things) for name, things in everything(CSV(tmp_path, val_share=0.5)).items()} == {"a": 2, "b": 1}


# --- splits ---

ROWS = [f"{name}.png,cat,0,0,9,9" for name in "abcdef"]


@pytest.mark.parametrize(
    ("told", "settings", "expected"),
    [
        ("train train val val test test", {}, ["ab", "cd", "ef"]),
        ("TRAIN train VALIDATION val test test", {"val": ["val", "validation"], "train": "train"}, ["ab", "cd", ""]),
        ("train train train valid valid valid", {}, ["abc", "def", ""]),
        ("train train train test test test", {}, ["abc", "def", ""]),
        ("1 1 2 2 3 3", {"train": ["1"], "val": ["2"], "test": ["3"]}, ["ab", "cd", "ef"]),
        ("1 1 2 2 3 3", {"train": ["1", "3"], "val": "2"}, ["abef", "cd", ""]),
    ],
)
def test_a_column_of_splits(tmp_path: Path, told: str, settings: dict, expected: list[str]):
    lines = [f"{row},{name}" for row, name in zip(ROWS, told.split(), strict=True)]
    write_csv(tmp_path, f"{HEADER},split", *lines, pictures="abcdef")
    assert split(CSV(tmp_path, **settings)) == [list(names) for names in expected]


@pytest.mark.parametrize("told", ["train train val val tset test", "train train val val holdout holdout"])
def test_rows_of_no_split_are_not_left_out_in_silence(tmp_path: Path, told: str):
    lines = [f"{row},{name}" for row, name in zip(ROWS, told.split(), strict=True)]
    write_csv(tmp_path, f"{HEADER},split", *lines, pictures="abcdef")
    for _ in range(2):
        with refused("data.train", told.split()[4], "data.train=[train] data.val=[val]"):
            CSV(tmp_path).train()
    assert split(CSV(tmp_path, train=["train"], val=["val"]))[:2] == [list("ab"), list("cd")]


def test_rows_without_a_split_beside_others(tmp_path: Path):
    write_csv(tmp_path, f"{HEADER},split", f"{ROWS[0]},train", f"{ROWS[1]},val", f"{ROWS[2]},", pictures="abc")
    with refused("data.train", "1 picture."):
        CSV(tmp_path).train()


@pytest.mark.parametrize("place", ["{}.csv", "{}/_annotations.csv", "labels/{}.tsv"])
def test_files_of_splits(tmp_path: Path, place: str):
    for name, rows in {"train": ROWS[:3], "valid": ROWS[3:5], "test": ROWS[5:]}.items():
        write_csv(tmp_path, HEADER, *rows, name=place.format(name), pictures="abcdef")
    write_csv(tmp_path, "something,else", name="notes.csv", pictures="")
    for _ in range(2):
        assert split(CSV(tmp_path)) == [list("abc"), list("de"), list("f")]
    own = CSV(tmp_path, train=["valid", "test.csv" if place == "{}.csv" else "test"], val="train")
    assert list(map(sorted, split(own))) == [list("def"), list("abc"), []]


def test_names_that_are_no_splits(tmp_path: Path):
    lines = [f"{row},{n}" for n, row in enumerate(ROWS)]
    write_csv(tmp_path, f"{HEADER},split", *lines, pictures="abcdef")
    with pytest.raises(ValueError, match=r"^data\.train: .*0, 1, 2.*Try data\.train="):
        CSV(tmp_path).train()
    with pytest.raises(ValueError, match=r"^data\.val: .*0, 1, 2.*got x"):
        CSV(tmp_path, train="1", val="x").train()
    assert len(CSV(tmp_path, test=["0"]).train()) == 4


def test_which_file(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^data\.annotations: .*got none\. Try data\.annotations="):
        CSV(tmp_path).train()
    for name in ("one.csv", "two.csv"):
        write_csv(tmp_path, HEADER, *ROWS, name=name, pictures="abcdef")
    with pytest.raises(ValueError, match=r"^data\.annotations: .*got one\.csv, two\.csv"):
        CSV(tmp_path).train()
    with pytest.raises(ValueError, match=r"^data\.annotations: .*gone\.csv"):
        CSV(tmp_path, annotations="gone.csv").train()
    assert len(CSV(tmp_path, annotations="two.csv").train()) == 5


def test_a_picture_in_two_splits_is_in_both(tmp_path: Path):
    """ssd-check reports it."""
    write_csv(tmp_path, f"{HEADER},split", f"{ROW},train", f"{ROW},val")
    assert split(CSV(tmp_path)) == [["a"], ["a"], []]


# --- the cache ---


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_csv(tmp_path, f"{HEADER},split", f"{ROW},train", "b.png,dog,0,0,9,9,val", "b.png,dog,1,1,9,9,val")
    first = everything(CSV(tmp_path))
    read: list[str] = []
    monkeypatch.setattr(csv_pictures, "read_rows", lambda path, *more: (read.append(path), read_rows(path, *more))[1])
    assert everything(CSV(tmp_path)) == first
    assert read == []
    assert everything(CSV(tmp_path, box_format="xywh"))["a"] == [("cat", [10, 5, 40, 20])]
    write_csv(tmp_path, f"{HEADER},split", f"{ROW},train", "b.png,cow,0,0,9,9,val")
    assert CSV(tmp_path).classes == ("cat", "cow")
    assert len(read) == 2


def test_random_rows_against_a_slow_loop(tmp_path: Path):
    rng = np.random.default_rng(0)
    pictures = "abcdefgh"
    expected: dict[str, list] = {name: [] for name in pictures}
    lines = []
    for _ in range(40):
        name, label = rng.choice(list(pictures[:-1])), rng.choice(["cat", "dog"])
        left, top = rng.uniform(0, 20), rng.uniform(0, 10)
        width, height = rng.uniform(1, 20), rng.uniform(1, 10)
        lines.append(
            f"{name}.png,{label},{left!r},{top!r},{width!r},{height!r}".replace("np.float64(", "").replace(")", "")
        )
        expected[name].append((label, [left, top, left + width, top + height]))
    write_csv(tmp_path, "filename,class,x,y,w,h", *lines, "h.png,,,,,", pictures=pictures)
    found = everything(CSV(tmp_path))
    assert found.keys() == expected.keys()
    for name, things in expected.items():
        assert [label for label, _ in found[name]] == [label for label, _ in things]
        np.testing.assert_allclose(
            np.reshape([box for _, box in found[name]], (-1, 4)), np.reshape([b for _, b in things], (-1, 4)), atol=1e-3
        )


# --- whatever bytes there are ---

CELLS = st.sampled_from(
    ["a.png", "b.png", "gone", "cat", "1", "9", "0.5", "nan", "", '"', '""', "'", "é", "\0", "\r", ";"]
)
TABLES = st.lists(st.lists(CELLS, max_size=8).map(",".join)).map("\n".join)


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(st.binary(max_size=100), TABLES.map(str.encode), TABLES.map(lambda rows: f"{HEADER}\n{rows}".encode()))
)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    folder = tmp_path_factory.getbasetemp() / "any_csv"
    if not folder.exists():
        for name in "ab":
            write_picture(folder / f"{name}.png")
    write_text(folder / "labels.csv", content)
    began = time.perf_counter()
    try:
        pictures = CSV(folder, fix="skip").train()
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        message = str(folder)
        assert np.isfinite(pictures.boxes).all()
    assert str(folder) in message
    assert time.perf_counter() - began < 1
