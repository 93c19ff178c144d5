"""Reading of picture files in all common formats."""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

PICTURE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".tif", ".tiff", ".webp", ".avif"),
        *(".bmp", ".dib", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi"),
    }
)
"""Suffixes of the formats of photographs and drawings that Pillow reads."""


class PictureError(ValueError):
    """A picture file that is missing, unreadable or broken."""


def read_picture(path: Path, least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a picture as red, green and blue, upright.

    EXIF rotation is applied, transparent pixels become white, and an animation gives its first frame. 16-bit grey is
    reduced to 8 bit. A TIFF file with 32 bits per grey level does not say its range. Whole numbers are 8-bit levels if
    none is above 255, else 16-bit levels. Fractions are parts of white if none is above 1, else levels up to 255.

    Args:
        path: picture file.
        least: (height, width) that suffices for the whole picture. To save time and memory, a JPEG file is decoded
            at a half, a quarter or an eighth of its size if at least twice ``least`` remains. Resampling does the
            rest of the reduction, so that the difference is hardly visible.

    Raises:
        PictureError: if the file cannot be read; the message names the file.
    """
    try:
        with Image.open(path) as file:
            if least is not None:
                height, width = reversed(least) if _is_turned(file) else least
                file.draft(None, (round(REDUCING_GAP * width), round(REDUCING_GAP * height)))
            upright = ImageOps.exif_transpose(file)
            return np.asarray(_as_rgb(upright, file.format))
    except FileNotFoundError:
        raise PictureError(f"{path}: expected a picture, got no file") from None
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others for broken files.
        raise PictureError(f"{path}: cannot be read as a picture ({error})") from error


REDUCING_GAP = 2.0
"""Least factor left to resampling when a picture is decoded smaller; Pillow's own choice for thumbnails."""


def picture_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of a picture, upright.

    The size comes from the header. A file without the end of its format is decoded, to find files that were cut off.

    Raises:
        PictureError: if the file cannot be read; the message names the file.
    """
    try:
        with path.open("rb") as content, Image.open(content) as file:
            height, width = file.height, file.width
            is_turned = _is_turned(file)
            if not _has_end(content, file.format):
                file.load()
            return (width, height) if is_turned else (height, width)
    except FileNotFoundError:
        raise PictureError(f"{path}: expected a picture, got no file") from None
    except Exception as error:  # See read_picture.
        raise PictureError(f"{path}: cannot be read as a picture ({error})") from error


def _is_turned(file: Image.Image) -> bool:
    """Return whether turning the picture upright swaps width and height."""
    if file.format == "PNG" and "exif" not in file.info:
        return False  # Pillow would decode the whole file to search for more.
    return file.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)


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
        is_8_bit = image.mode == "I" and file_format == "TIFF" and levels.max() < 2**8
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
