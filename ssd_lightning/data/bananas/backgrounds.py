"""Backgrounds of the generated banana pictures."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ssd_lightning.data.bananas.colours import (
    COLUMNS,
    ROWS,
    SIDE,
    Planes,
    any_colour,
    colour_map,
    hsv,
    ink,
    mixed,
    palette,
    pixels,
    smoothstep,
    spectral_noise,
)


def backdrop(rng: np.random.Generator) -> Planes:
    """Draw a studio background: a gradient from one colour, often white, to another."""
    white = rng.random() < 0.65
    near = hsv(0.0, 0.0, rng.uniform(0.85, 1.0)) if white else any_colour(rng)
    far = near * rng.uniform(0.75, 1.0) if rng.random() < 0.8 else any_colour(rng)
    angle, begin = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.2)
    height = (COLUMNS * math.cos(angle) + ROWS * math.sin(angle)) / SIDE
    return mixed(near, far, smoothstep(height, begin, begin + rng.uniform(0.05, 0.8)))


def clouds(rng: np.random.Generator) -> Planes:
    """Draw noise with the spectrum of photographs, from out of focus to in focus."""
    noise = spectral_noise(rng, rng.uniform(0.9, 2.0))
    return colour_map(noise, palette(rng, int(rng.integers(3, 7))))


def wood(rng: np.random.Generator) -> Planes:
    """Draw planks with grain, which also resemble brushed metal and bark."""
    upright = rng.random() < 0.5
    grain = spectral_noise(rng, rng.uniform(0.8, 1.3), rng.uniform(2.5, 5.0))
    plank = np.arange(SIDE) // rng.uniform(25, 120)
    seams = np.append(plank[1:] != plank[:-1], False)
    tone = rng.normal(0, 0.7, int(plank[-1]) + 1)[plank.astype(int)] - 1.5 * seams
    brown = hsv(rng.uniform(0.04, 0.12), rng.uniform(0.15, 0.7), rng.uniform(0.3, 0.9))
    base = brown if rng.random() < 0.7 else any_colour(rng)
    contrast = rng.uniform(0.05, 0.2)
    picture = base * (1 + contrast * (grain + tone[:, None].astype(np.float32)))
    return picture.swapaxes(1, 2) if upright else picture


def cloth(rng: np.random.Generator) -> Planes:
    """Draw a weave, stripes or plaid over folds."""
    folds = spectral_noise(rng, 1.8, rng.uniform(1, 2.5), rng.uniform(0, np.pi))
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 8) if rng.random() < 0.5 else rng.uniform(12, 70)
    warp, two_ways = folds * rng.uniform(0, 0.6), rng.random() < 0.5
    stripes = np.sin((COLUMNS * math.cos(angle) + ROWS * math.sin(angle)) * 2 * np.pi / period + warp)
    if two_ways:
        stripes = stripes + np.sin((ROWS * math.cos(angle) - COLUMNS * math.sin(angle)) * 2 * np.pi / period + warp)
    if rng.random() < 0.5:
        stripes = np.sign(stripes)
    first, second = palette(rng, 2)
    return mixed(first, second, 0.5 + 0.5 * np.clip(stripes, -1, 1)) * (1 + rng.uniform(0.05, 0.2) * folds)


def tiles(rng: np.random.Generator) -> Planes:
    """Draw tiles, bricks or a chessboard; each tile has its own tone."""
    height, width, joint = rng.integers(16, 80), rng.integers(16, 80), rng.integers(1, 4)
    down, across = np.arange(SIDE)[:, None] + rng.integers(80), np.arange(SIDE)[None, :] + rng.integers(80)
    row = down // height
    across = across + row % 2 * rng.integers(2) * (width // 2)  # Shifts every second row, as with bricks.
    column = across // width
    tone = rng.uniform(0.02, 0.15) * rng.standard_normal((32, 32), dtype=np.float32)[row % 32, column % 32]
    first, second, grout = palette(rng, 3)
    chess = ((row + column) % 2 * rng.integers(2)).astype(np.float32)
    grain = 0.04 * spectral_noise(rng, 1.0)
    gaps = (down % height < joint) | (across % width < joint)
    return np.where(gaps, grout, mixed(first, second, chess) * (1 + tone + grain))


def rubble(rng: np.random.Generator) -> Planes:
    """Draw overlapping shapes of all sizes, with the statistics of natural scenes such as gravel, foliage or crowds.

    This is the dead leaves model (Lee, Mumford and Huang 2001): sizes follow a power law, and later shapes hide
    earlier ones.
    """
    colours = [*palette(rng, 4), *palette(rng, 4)]
    image = Image.new("RGB", (SIDE, SIDE), ink(colours[0]))
    draw = ImageDraw.Draw(image)
    corners, smallest, elongation = rng.integers(3, 13), rng.uniform(3, 20), rng.uniform(1, 3)
    count = int(min(400, 60_000 / smallest**2))
    sizes = np.minimum(smallest / np.sqrt(1 - rng.random(count) * 0.99), 110)[:, None]
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, 0.5, (count, corners))
    turn = rng.uniform(0, np.pi, (count, 1))
    across, down = sizes * np.cos(angles), sizes / elongation * np.sin(angles)
    x = rng.uniform(0, SIDE, (count, 1)) + across * np.cos(turn) - down * np.sin(turn)
    y = rng.uniform(0, SIDE, (count, 1)) + across * np.sin(turn) + down * np.cos(turn)
    chosen = np.concatenate(colours, axis=1)[:, rng.integers(len(colours), size=count)]
    fills = pixels(chosen * rng.uniform(0.6, 1.2, (count, 1)))[:, 0].tolist()
    for outline, fill in zip(np.stack([x, y], axis=-1), fills, strict=True):
        draw.polygon(outline.ravel().tolist(), fill=tuple(fill))
    if rng.random() < 0.7:  # Out of focus.
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 6)))
    return np.moveaxis(np.asarray(image, np.float32), -1, 0) / 255 * (1 + 0.08 * spectral_noise(rng, 1.0))


def scene(rng: np.random.Generator) -> Planes:
    """Draw two surfaces with an edge between them, such as a table before a wall or a field under a sky."""
    surface, behind = (SURFACES[rng.integers(len(SURFACES))](rng) for _ in range(2))
    below_edge = ROWS + COLUMNS * rng.normal(0, 0.3) - SIDE * rng.uniform(-0.3, 0.3)
    return mixed(behind, surface, smoothstep(below_edge, 0.0, 1.0 if rng.random() < 0.5 else 12.0))


SURFACES: tuple[Callable[[np.random.Generator], Planes], ...] = (backdrop, clouds, wood, cloth, tiles, rubble)
BACKGROUNDS: dict[Callable[[np.random.Generator], Planes], float] = {
    backdrop: 0.34,  # Many photographs of fruit are product photographs.
    clouds: 0.14,
    wood: 0.11,
    cloth: 0.08,
    tiles: 0.07,
    rubble: 0.15,
    scene: 0.17,
}


def draw_background(rng: np.random.Generator) -> Image.Image:
    """Draw a background with lighting: a gradient, a vignette or the soft shadow of something outside the picture."""
    kinds, weights = list(BACKGROUNDS), np.array(list(BACKGROUNDS.values()))
    picture = kinds[rng.choice(len(kinds), p=weights / weights.sum())](rng)
    x, y = COLUMNS / SIDE, ROWS / SIDE
    lighting = 1 + rng.normal(0, 0.15) * x + rng.normal(0, 0.15) * y
    lighting = lighting * (1 - max(0.0, rng.normal(0, 0.35)) * (x**2 + y**2))
    if rng.random() < 0.2:
        lighting = lighting * (1 - rng.uniform(0.1, 0.5) * smoothstep(spectral_noise(rng, 2.2), 0.3, 0.9))
    return Image.fromarray(pixels(picture * lighting))
