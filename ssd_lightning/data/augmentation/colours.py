"""Changes of a picture's colours."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ssd_lightning.require import require_number

ColourChange = Callable[[UInt8[np.ndarray, "height width 3"], np.random.Generator], UInt8[np.ndarray, "height width 3"]]


class BrightnessContrast:
    """Other brightness, contrast and colour of the light, as one table lookup for each channel.

    Args:
        brightness: added, at most this share of the full range either way.
        contrast: the factor is at most 1 ± this.
        tint: factor of each channel for itself, at most 1 ± this.
    """

    def __init__(self, brightness: float = 0.15, contrast: float = 0.3, tint: float = 0.1) -> None:
        for name, value in (("brightness", brightness), ("contrast", contrast), ("tint", tint)):
            require_number(name, value, "[0, 1)")
        self.brightness, self.contrast, self.tint = brightness, contrast, tint

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        shift = 255 * rng.uniform(-self.brightness, self.brightness)
        factor = rng.uniform(1 - self.contrast, 1 + self.contrast) * rng.uniform(1 - self.tint, 1 + self.tint, size=3)
        levels = np.arange(256)[:, None]
        table = np.clip((levels - 127.5) * factor + 127.5 + shift, 0, 255).astype(np.uint8)
        return np.stack([table[:, channel][image[..., channel]] for channel in range(3)], axis=-1)


GREY = np.array([0.299, 0.587, 0.114])
"""Share of red, green and blue in the grey of a colour (ITU-R BT.601), as video and JPEG have it."""


class PhotometricDistortion:
    """The colour changes of the paper's training, each made or not for itself, as one matrix on red, green and blue.

    Ranges and probabilities are those of the authors' prototxt. Brightness is added and contrast is a factor, as in
    their code, which changes contrast about black and not about a mean. Saturation and hue differ from theirs, which
    scales and shifts the channels of HSV: here saturation is a blend with grey, and hue a turn about the grey axis.
    Both are linear and leave grey as it is. So all four are one matrix, only its result is rounded and cut at 0 and
    255, and it makes no difference whether contrast comes before or after saturation and hue, which their code decides
    by lot. A turn moves the hue of HSV by its angle, to within 3 degrees for turns of up to 18, and keeps the mean of
    red, green and blue, where HSV keeps the largest of them.

    Args:
        probability: of each of the four changes.
        brightness: added, at most this many of 255 levels either way.
        contrast: the factor is at most 1 ± this.
        saturation: the factor of the difference from grey is at most 1 ± this.
        hue: the angle is at most this many degrees either way. (The authors' 18 are steps of two degrees in OpenCV's
            hue; ports of their code, torchvision's among them, take degrees.)
        shuffled_channels: probability of another order of the channels. The authors' code has it, their prototxt
            sets it to 0.
    """

    def __init__(
        self,
        probability: float = 0.5,
        brightness: float = 32.0,
        contrast: float = 0.5,
        saturation: float = 0.5,
        hue: float = 18.0,
        shuffled_channels: float = 0.0,
    ) -> None:
        for name, value, most in (
            ("probability", probability, 1),
            ("brightness", brightness, 255),
            ("contrast", contrast, 1),
            ("saturation", saturation, 1),
            ("hue", hue, 180),
            ("shuffled_channels", shuffled_channels, 1),
        ):
            require_number(name, value, f"[0, {most}]")
        self.probability = probability
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.shuffled_channels = shuffled_channels

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        changed = rng.random(4) < self.probability
        if changed.any():
            most = np.array([self.brightness, self.contrast, self.saturation, self.hue])
            shift, contrast, saturation, hue = rng.uniform(-most, most) * changed
            matrix = (1 + contrast) * hue_matrix(hue) @ saturation_matrix(1 + saturation)
            image = apply_matrix(image, matrix, (1 + contrast) * shift)
        if rng.random() < self.shuffled_channels:
            image = image[..., rng.permutation(3)]
        return image


def saturation_matrix(factor: float) -> Float[np.ndarray, "3 3"]:
    """For red, green and blue: multiplies the difference from the colour's grey."""
    return factor * np.eye(3) + (1 - factor) * GREY


def hue_matrix(degrees: float) -> Float[np.ndarray, "3 3"]:
    """For red, green and blue: a turn about the grey axis, from red towards green (Rodrigues' formula)."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return cos * np.eye(3) + (1 - cos) / 3 + sin * across


def apply_matrix(
    image: UInt8[np.ndarray, "height width 3"], matrix: Float[np.ndarray, "3 3"], shift: float
) -> UInt8[np.ndarray, "height width 3"]:
    """The matrix on each pixel's red, green and blue, then ``shift`` levels added, rounded and cut at 0 and 255."""
    rows = np.column_stack((matrix, np.full(3, shift)))
    return np.asarray(Image.fromarray(image).convert("RGB", tuple(rows.ravel().tolist())))
