"""Annotations of single pictures for tests."""

from collections.abc import Sequence

from ssd_lightning.data.formats.annotations import PictureAnnotation

Edges = tuple[float, float, float, float]


def row(
    *objects: tuple[str, Edges],
    source: str = "a.xml",
    picture: str = "pictures/a.png",
    size: tuple[int, int] = (20, 40),
    told_size: tuple[int, int] = (0, 0),
    difficult: Sequence[bool] = (),
) -> PictureAnnotation:
    """A picture of 40×20 pixels with objects, their edges counted from 0."""
    names, boxes = [name for name, _ in objects], [tuple(map(float, edges)) for _, edges in objects]
    flags = list(difficult) or [False] * len(objects)
    return PictureAnnotation(source, picture, size, told_size, names, boxes, flags)
