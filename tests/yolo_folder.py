"""Folders with YOLO's text files."""

from pathlib import Path

from voc_xml import write_picture

DESCRIPTION = "names: [cat, dog]\ntrain: images/train\nval: images/val\n"


def write_text(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_yolo(root: Path, labels: dict[str, str | None], description: str | None = DESCRIPTION) -> Path:
    """Write pictures of 40×20 pixels with their text files.

    Args:
        root: folder.
        labels: content of the text file by the picture without its suffix, such as ``train/a`` for
            ``images/train/a.png`` and ``labels/train/a.txt``; None: no text file.
        description: content of ``data.yaml``; None: no such file.
    """
    for name, text in labels.items():
        write_picture(root / "images" / f"{name}.png")
        if text is not None:
            write_text(root / "labels" / f"{name}.txt", text)
    if description is not None:
        write_text(root / "data.yaml", description)
    return root
