"""Reading of picture files in all common formats."""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from ssd_lightning.require import require_regular

PICTURE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".tif", ".tiff", ".webp", ".avif"),
        *(".bmp", ".dib", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi"),
    }
)
"""Suffixes of the formats of photographs and drawings that Pillow reads."""


class PictureError(ValueError):
    """A picture file that is missing, unreadable or broken."""


ON_THEIR_SIDE = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


class PictureHeader(NamedTuple):
    """The size of a picture in its file, and its EXIF orientation."""

    stored_size: tuple[int, int]
    """(height, width) in pixels."""
    orientation: int
    """1 … 8; 1 if the picture is stored upright."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture as it is shown."""
        height, width = self.stored_size
        return (width, height) if self.orientation in ON_THEIR_SIDE else (height, width)


def read_picture(
    path: Path, least: tuple[int, int] | None = None, max_megapixels: float | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a picture as red, green and blue, upright.

    EXIF rotation is applied, transparent pixels become white, and an animation gives its first frame. 16-bit grey is
    reduced to 8 bit. A TIFF file with 32 bits per grey level does not say its range. Whole numbers are 8-bit levels if
    none is above 255, else 16-bit levels. Fractions are parts of white if none is above 1, else levels up to 255.

    Args:
        path: picture file.
        least: (height, width) that suffices for the whole picture. To save time and memory, a JPEG file is decoded
            at a half, a quarter or an eighth of its size if at least twice ``least`` remains. Resampling does the
            rest of the reduction, so that the difference is hardly visible.
        max_megapixels: see :func:`read_header`.

    Raises:
        PictureError: if the file cannot be read; the message names the file.
    """
    with _opened(path, max_megapixels) as file:
        orientation = _orientation(file)
        if least is not None:
            height, width = reversed(least) if orientation in ON_THEIR_SIDE else least
            file.draft(None, (round(REDUCING_GAP * width), round(REDUCING_GAP * height)))
        upright = file if orientation == 1 else ImageOps.exif_transpose(file)
        return np.asarray(_as_rgb(upright, file.format))


def pixels_of(picture: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Convert a picture of Pillow to red, green and blue, upright, as :func:`read_picture` does with files.

    Whole numbers of 32 bits that do not come from a file are 8-bit levels if none is above 255, else 16-bit levels.

    Raises:
        PictureError: if the pixels cannot be decoded or converted; the message names the file if there is one.
    """
    try:
        return np.asarray(_as_rgb(ImageOps.exif_transpose(picture), picture.format))
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others for broken files.
        name = getattr(picture, "filename", "") or f"a picture of mode {picture.mode}"
        raise PictureError(f"{name}: cannot be read as a picture ({error})") from error


REDUCING_GAP = 2.0
"""Least factor left to resampling when a picture is decoded smaller; Pillow's own choice for thumbnails."""


def picture_size(path: Path, max_megapixels: float | None = None) -> tuple[int, int]:
    """Return (height, width) of a picture, upright; see :func:`read_header`."""
    return read_header(path, max_megapixels).size


def read_header(path: Path, max_megapixels: float | None = None) -> PictureHeader:
    """Return the size and the orientation of a picture.

    Both come from the header. A file without the end of its format is decoded, to find files that were cut off.

    Args:
        path: picture file.
        max_megapixels: largest number of millions of pixels; ``None``: the number from which Pillow refuses a
            picture, because a small file can be a picture that fills the memory.

    Raises:
        PictureError: if the file cannot be read; the message names the file.
    """
    with _opened(path, max_megapixels) as file:
        header = PictureHeader(_stored_size(file), _orientation(file))
        with path.open("rb") as content:
            is_complete = _has_end(content, file.format)
        if not is_complete:
            file.load()
        return header


def _orientation(file: Image.Image) -> int:
    """Return the EXIF orientation of a picture whose pixels have not been decoded."""
    if file.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & file.info.keys():
        return 1  # Pillow would decode the whole file to search for more.
    orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def _stored_size(file: Image.Image) -> tuple[int, int]:
    """Return (height, width) of the pixels in a file."""
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        # Pillow has turned the size of these files alone.
        return file.tag_v2[TiffImagePlugin.IMAGELENGTH], file.tag_v2[TiffImagePlugin.IMAGEWIDTH]
    return file.height, file.width


@contextmanager
def _opened(path: Path, max_megapixels: float | None) -> Iterator[Image.Image]:
    """Open a picture file, and turn everything that goes wrong with it into a PictureError."""
    try:
        _require_regular(path)
        most = _most_pixels(max_megapixels)
        with _open_image(path) as file:
            if file.width * file.height > most:
                raise PictureError(_too_large(path, file, most))
            yield file
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{path}: expected a picture, got no file") from None
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others for broken files.
        raise PictureError(f"{path}: cannot be read as a picture ({error})") from error


def _require_regular(path: Path) -> None:
    try:
        require_regular(path)
    except ValueError as error:
        raise PictureError(str(error)) from None


_pillow_limit = threading.Lock()
"""Held where Pillow's limit is read or lifted, since it is one for all threads."""


def _most_pixels(max_megapixels: float | None) -> float:
    if max_megapixels is not None:
        return max_megapixels * 1e6
    with _pillow_limit:
        # Pillow warns above its limit and refuses above twice its limit.
        return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


@cache
def _formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats to read. Other formats may start a program, as EPS starts Ghostscript."""
    known = Image.registered_extensions()
    # MPO is read as JPEG.
    return tuple(sorted({known[suffix] for suffix in PICTURE_SUFFIXES if suffix in known} & Image.OPEN.keys()))


def _open_image(path: Path) -> Image.Image:
    """Read the header of a picture of any size.

    Pillow checks the size in opening, without telling it. Its limit is lifted for one such picture, and only until its
    header is read.
    """
    try:
        return Image.open(path, formats=_formats())
    except Image.DecompressionBombError:
        with _pillow_limit:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(path, formats=_formats())
            finally:
                Image.MAX_IMAGE_PIXELS = before


def _too_large(path: Path, file: Image.Image, most: float) -> str:
    megapixels = file.width * file.height / 1e6
    needed = math.ceil(megapixels)
    return (
        f"{path}: expected a picture of at most {most / 1e6:g} megapixels, got {file.width}×{file.height} pixels, "
        f"which are {megapixels:g}. If you trust the file, try data.max_megapixels={needed}, "
        f"or max_megapixels={needed} in ssd-predict."
    )


ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xae\x42\x60\x82"}
"""Last bytes of a complete file, by format."""


def _has_end(content: BinaryIO, file_format: str | None) -> bool:
    if file_format not in ENDS:
        return False
    content.seek(-min(64, content.seek(0, os.SEEK_END)), os.SEEK_END)
    # Some cameras pad their files.
    return content.read().rstrip(b"\0\r\n ").endswith(ENDS[file_format])


def _as_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image, dtype=np.int64)
        if not 0 <= levels.min() <= levels.max() < 2**16:
            raise ValueError(f"expected grey levels in 0 … 65535, got {levels.min()} … {levels.max()}")
        # Pillow reads 16-bit grey of other formats in this mode, too.
        is_8_bit = image.mode == "I" and file_format in ("TIFF", None) and levels.max() < 2**8
        return Image.fromarray((levels if is_8_bit else levels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        levels = values * (255 if values.max() <= 1 else 1)
        return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
