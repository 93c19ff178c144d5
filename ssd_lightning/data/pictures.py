"""Reading picture files, of any kind that people have."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


class PictureError(ValueError):
    """A picture file is missing, unreadable or broken."""


def read_picture(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a picture as red, green, blue, upright.

    EXIF rotation is applied, 16-bit grey is reduced to 8 bit, transparent pixels become white as a viewer shows them,
    and of an animation the first frame is taken.

    Raises:
        PictureError: naming the file.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            return np.asarray(_as_rgb(upright))
    except FileNotFoundError:
        raise PictureError(f"{path}: no such picture") from None
    except Exception as error:  # for broken files Pillow raises SyntaxError, struct.error and half a dozen others
        raise PictureError(f"{path}: cannot be read as a picture ({error})") from error


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of the picture as stored, from its header alone.

    Raises:
        PictureError: naming the file.
    """
    try:
        with Image.open(path) as file:
            return file.height, file.width
    except FileNotFoundError:
        raise PictureError(f"{path}: no such picture") from None
    except Exception as error:  # as above
        raise PictureError(f"{path}: cannot be read as a picture ({error})") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow may give as 32-bit
        grey = np.clip(np.asarray(image, dtype=np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.clip(np.asarray(image), 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
