"""Reading picture files, of any kind that people have."""

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
"""Of what Pillow reads, all that photographs and drawings are kept as."""


class PictureError(ValueError):
    """A picture file is missing, unreadable or broken."""


def read_picture(path: Path, least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a picture as red, green, blue, upright.

    EXIF rotation is applied, transparent pixels become white as a viewer shows them, and of an animation the first
    frame is taken. 16-bit grey is reduced to 8 bit. A TIFF file with 32 bits for a grey level does not tell its range:
    whole numbers are taken as 8-bit if none is above 255, else as 16-bit, and refused beyond that; fractions as parts
    of white if none is above 1, else as levels from 0 to 255.

    Args:
        path: of the file.
        least: (height, width) of the whole picture from which on it is large enough. A JPEG file is decoded at a half,
            a quarter or an eighth of its size where at least twice of this remains, which takes that much less time
            and memory; the rest of the reduction is left to resampling, so that the difference is hardly to be seen.

    Raises:
        PictureError: naming the file.
    """
    try:
        with Image.open(path) as file:
            if least is not None:
                height, width = reversed(least) if _is_turned(file) else least
                file.draft(None, (round(REDUCING_GAP * width), round(REDUCING_GAP * height)))
            upright = ImageOps.exif_transpose(file)
            return np.asarray(_as_rgb(upright, file.format))
    except FileNotFoundError:
        raise PictureError(f"{path}: no such picture") from None
    except Exception as error:  # for broken files Pillow raises SyntaxError, struct.error and half a dozen others
        raise PictureError(f"{path}: cannot be read as a picture ({error})") from error


REDUCING_GAP = 2.0
"""By how much resampling is still to reduce a picture that is decoded smaller; Pillow's own choice for thumbnails."""


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of the picture, upright.

    From its header; only a file that does not end as its format ends is decoded, and so one that was cut off is
    noticed.

    Raises:
        PictureError: naming the file.
    """
    try:
        with path.open("rb") as content, Image.open(content) as file:
            height, width = file.height, file.width
            is_turned = _is_turned(file)
            if not _has_end(content, file.format):
                file.load()
            return (width, height) if is_turned else (height, width)
    except FileNotFoundError:
        raise PictureError(f"{path}: no such picture") from None
    except Exception as error:  # as above
        raise PictureError(f"{path}: cannot be read as a picture ({error})") from error


def _is_turned(file: Image.Image) -> bool:
    """Whether width and height change places when it is turned upright."""
    if file.format == "PNG" and "exif" not in file.info:
        return False  # Pillow would decode the whole file to look for more
    return file.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)


ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xae\x42\x60\x82"}
"""Last bytes of a whole file."""


def _has_end(content: BinaryIO, file_format: str | None) -> bool:
    if file_format not in ENDS:
        return False
    content.seek(-min(64, content.seek(0, os.SEEK_END)), os.SEEK_END)
    # Some cameras fill up their files.
    return content.read().rstrip(b"\0\r\n ").endswith(ENDS[file_format])


def _as_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image, dtype=np.int64)
        if not 0 <= levels.min() <= levels.max() < 2**16:
            raise ValueError(f"expected grey levels in 0 … 65535, got {levels.min()} … {levels.max()}")
        # Of other formats Pillow gives 16-bit grey, too.
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
