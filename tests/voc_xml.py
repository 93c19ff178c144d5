"""VOC-style xml files and small pictures for them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

Box = tuple[str, float, float, float, float]


def write_xml(path: Path, objects: Sequence[Box] = (), difficult: Sequence[int] = (), filename: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = [*difficult, *[0] * len(objects)]
    entries = [
        f"<object><name>{name}</name><difficult>{flag}</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for (name, left, top, right, bottom), flag in zip(objects, flags, strict=False)
    ]
    path.write_text(
        f"<annotation><filename>{filename or path.stem + '.png'}</filename>{''.join(entries)}</annotation>",
        encoding="utf-8",
    )
    return path


def write_picture(path: Path, width: int = 40, height: int = 20, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height)).save(path)
    return path


def write_pair(folder: Path, stem: str, objects: Sequence[Box] = (), **settings: Sequence[int]) -> Path:
    write_picture(folder / f"{stem}.png")
    return write_xml(folder / f"{stem}.xml", objects, **settings)
