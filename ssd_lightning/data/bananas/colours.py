"""Colours and noise, from which all surfaces of the generated banana pictures are made.

Everything is computed from random numbers; no photograph is used. Pictures are 256×256. Colours are RGB: planes (3, …)
in 0 … 1 in arrays, and 0 … 255 in PIL images.
"""

import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

SIDE = 256
"""Width and height of a picture in pixels."""
ROWS = np.arange(-SIDE / 2, SIDE / 2, dtype=np.float32)[:, None]
COLUMNS = ROWS.T
"""Distance of rows and columns from the middle of the picture in pixels, shaped (256, 1) and (1, 256)."""
ROW_FREQUENCIES = np.fft.fftfreq(SIDE).astype(np.float32)[:, None]
COLUMN_FREQUENCIES = np.fft.rfftfreq(SIDE).astype(np.float32)[None, :]
"""Frequencies of the spectrum in cycles per pixel, in the order of numpy's real Fourier transform."""

Colour = Float[np.ndarray, "3 1 1"]
"""One RGB colour, as planes of a single pixel, which broadcasts with any picture."""
Planes = Float[np.ndarray, "3 256 256"]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Convert HSV to RGB; hue counts in turns (0 red, 1/6 yellow, 1/3 green; wraps around), the rest in 0 … 1."""
    channel = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    rgb = value * (1 - saturation * np.clip(np.minimum(channel, 4 - channel), 0, 1))
    return rgb.astype(np.float32).reshape(3, 1, 1)


def yellow(rng: np.random.Generator) -> Colour:
    """Draw a colour that bananas can have, from orange to lemon."""
    return hsv(rng.uniform(0.09, 0.18), rng.uniform(0.55, 1.0), rng.uniform(0.6, 1.0))


def any_colour(rng: np.random.Generator) -> Colour:
    """Draw a colour, mostly muted as in most photographs; one in 25 is yellow."""
    if rng.random() < 0.04:
        return yellow(rng)
    return hsv(rng.random(), rng.beta(1.2, 2.6), rng.beta(1.8, 1.3))


def palette(rng: np.random.Generator, count: int) -> list[Colour]:
    """Draw colours that go together: variations of one colour and, in a third of all cases, one unrelated colour."""
    base, darker = any_colour(rng), rng.normal(0, 0.15, (count, 1, 1, 1))
    colours = list(np.clip(base + darker + rng.normal(0, 0.05, (count, 3, 1, 1)), 0, 1).astype(np.float32))
    if rng.random() < 0.35:
        colours[rng.integers(count)] = any_colour(rng)
    return colours


def spectral_noise(
    rng: np.random.Generator, exponent: float, stretch: float = 1.0, angle: float = 0.0
) -> Float[np.ndarray, "256 256"]:
    """Draw noise with amplitude 1/frequency^exponent, mean 0 and standard deviation 1.

    Natural images have exponent 1. ``stretch`` > 1 elongates the grain along ``angle`` (radians).
    """
    rows, columns = ROW_FREQUENCIES, COLUMN_FREQUENCIES
    along, across = (
        columns * math.cos(angle) + rows * math.sin(angle),
        rows * math.cos(angle) - columns * math.sin(angle),
    )
    frequency = np.hypot(along * stretch, across / stretch)
    frequency[0, 0] = np.inf  # Makes the mean 0.
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE), dtype=np.float32)) / frequency**exponent
    noise = np.fft.irfft2(spectrum)
    return noise / noise.std()


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]
) -> Float[np.ndarray, "rows columns"]:
    """Draw noise of ``shape`` with about ``cells`` independent values (rows, columns) and standard deviation 0.8."""
    grid = Image.fromarray(rng.standard_normal(cells, dtype=np.float32))
    return np.asarray(grid.resize(shape[::-1], Image.Resampling.BICUBIC))


def smoothstep(values: Float[np.ndarray, "*shape"], low: float, high: float) -> Float[np.ndarray, "*shape"]:
    """Map values to 0 below ``low``, 1 above ``high`` and an S-curve between; ``low`` > ``high`` makes it fall."""
    position = np.clip((values - low) / (high - low), 0, 1)
    return position * position * (3 - 2 * position)


def colour_map(noise: Float[np.ndarray, "256 256"], colours: list[Colour]) -> Planes:
    """Colour the noise with a gradient through the colours, from its lowest to its highest values."""
    stops = np.linspace(-1.5, 1.5, len(colours))
    channels = np.concatenate(colours, axis=1)[..., 0]
    return np.stack([np.interp(noise, stops, channel).astype(np.float32) for channel in channels])


def mixed(
    first: Float[np.ndarray, "3 #rows #columns"],
    second: Float[np.ndarray, "3 #rows #columns"],
    share: Float[np.ndarray, "#rows #columns"],
) -> Float[np.ndarray, "3 rows columns"]:
    """Blend two colours linearly: ``first`` where ``share`` is 0, ``second`` where ``share`` is 1."""
    return first + (second - first) * share


def pixels(planes: Float[np.ndarray, "3 rows columns"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Convert planes to an image array for PIL, with values clipped to the range."""
    return np.stack([(np.clip(plane, 0, 1) * 255 + 0.5).astype(np.uint8) for plane in planes], axis=-1)


def ink(colour: Colour) -> tuple[int, int, int]:
    """Convert a colour to a tuple for PIL's drawing functions."""
    red, green, blue = (int(channel) for channel in pixels(colour).ravel())
    return red, green, blue
