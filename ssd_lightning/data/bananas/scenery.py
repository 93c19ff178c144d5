"""Backgrounds and distractors of the generated banana pictures, and the renderer of all solid bodies.

Everything is computed from random numbers; no photograph is used. Pictures are 256×256. Colours are RGB: planes (3, …)
in 0 … 1 in arrays, and 0 … 255 in PIL images. Objects are drawn at twice their size and reduced, which smooths their
edges. In the coordinates of objects and light, x points right, y down, and z towards the camera.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

SIDE = 256
"""Width and height of a picture in pixels."""
SUPERSAMPLING = 2
ROWS = np.arange(-SIDE / 2, SIDE / 2, dtype=np.float32)[:, None]
COLUMNS = ROWS.T
"""Distance of rows and columns from the middle of the picture in pixels, shaped (256, 1) and (1, 256)."""
ROW_FREQUENCIES = np.fft.fftfreq(SIDE).astype(np.float32)[:, None]
COLUMN_FREQUENCIES = np.fft.rfftfreq(SIDE).astype(np.float32)[None, :]
"""Frequencies of the spectrum in cycles per pixel, in the order of numpy's real Fourier transform."""

Colour = Float[np.ndarray, "3 1 1"]
"""One RGB colour, as planes of a single pixel, which broadcasts with any picture."""
Planes = Float[np.ndarray, "3 256 256"]

SHADE_TINT = (0.85, 1.0, 1.35)
"""Exponents of the shade per channel; they make dark sides warmer, as in photographs of fruit."""


class Light(NamedTuple):
    """The light of a picture, shared by all its objects."""

    direction: Float[np.ndarray, "3"]
    """Unit vector from the objects to the lamp."""
    ambient: float
    """Brightness of the side that faces away from the lamp, 0 … 1."""
    shadow: float
    """Darkness of cast shadows, 0 (none) … 1 (black)."""
    softness: float
    """Blur of cast shadows in pixels."""


class Solid(NamedTuple):
    """A body made by sweeping a closed outline along a plane curve, the spine, at right angles to it."""

    spine: Float[np.ndarray, "along 2"]
    heading: Float[np.ndarray, " along"]
    """Direction of the spine in radians."""
    radius: Float[np.ndarray, " along"]
    """Mean distance of the surface from the spine, in the unit of the spine."""
    outline: Float[np.ndarray, "along around"]
    """Distance from the spine relative to ``radius``, at equal angles around it."""


def random_light(rng: np.random.Generator) -> Light:
    """Draw a lamp anywhere in the half space of the camera, more often above than below."""
    azimuth, elevation = rng.normal(-np.pi / 2, 1.2), rng.uniform(0.4, 1.3)
    across = np.cos(elevation)
    direction = np.array([across * np.cos(azimuth), across * np.sin(azimuth), np.sin(elevation)])
    shadow = rng.uniform(0.15, 0.65) if rng.random() < 0.7 else 0.0
    return Light(direction, rng.uniform(0.4, 0.8), shadow, rng.uniform(1.0, 7.0))


# ---------------------------------------------------------------------------------------------------------- colours


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


# ------------------------------------------------------------------------------------------------------------ noise


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


# ------------------------------------------------------------------------------------------------------ backgrounds


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


# --------------------------------------------------------------------------------------------------- drawing things


def swept_curve(
    turning: Float[np.ndarray, " along"],
) -> tuple[Float[np.ndarray, "along 2"], Float[np.ndarray, " along"]]:
    """Return points and headings (radians) of a centred curve of length 1 that turns by ``turning`` at each point.

    The mean heading is to the right.
    """
    heading = np.cumsum(turning)
    heading = heading - heading.mean()
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=-1), axis=0) / len(turning)
    return points - points.mean(axis=0), heading


def turn_in_picture(angle: float) -> Float[np.ndarray, "3 3"]:
    """Return the rotation matrix about the line of sight, for an angle in radians."""
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def random_tilt(rng: np.random.Generator, roll: float, pitch: float) -> Float[np.ndarray, "3 3"]:
    """Draw a rotation: up to ± ``roll`` about the x axis, then up to ± ``pitch`` about the y axis, in radians."""
    roll, pitch = rng.uniform(-roll, roll), rng.uniform(-pitch, pitch)
    about_x = np.array([[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]])
    about_y = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
    return about_y @ about_x


def render_solid(
    solid: Solid,
    colours: Float[np.ndarray, "3 along around"],
    pose: Float[np.ndarray, "3 3"],
    pixels_per_unit: float,
    light: Light,
    gloss: float,
) -> Image.Image:
    """Render the body as an RGBA image that just contains it; ``gloss`` is the brightness of highlights, 0 … 1.

    Surface points are written into the enlarged image from the farthest to the nearest, so every pixel needs at least
    one point. About 3 points per pixel of length and 10 per pixel of radius are enough.
    """
    solid, colours = _with_closed_ends(solid, colours)
    scale = pixels_per_unit * SUPERSAMPLING
    phi = np.linspace(0, 2 * np.pi, solid.outline.shape[1], endpoint=False, dtype=np.float32)
    cos, sin = np.cos(phi), np.sin(phi)
    # This is the spine's frame in the picture's axes. Each array below is a sum of (along) × (around) products.
    heading_cos, heading_sin = np.cos(solid.heading)[:, None], np.sin(solid.heading)[:, None]
    tangent = (heading_cos * pose[:, 0] + heading_sin * pose[:, 1]).astype(np.float32)
    normal = (heading_cos * pose[:, 1] - heading_sin * pose[:, 0]).astype(np.float32)
    binormal = pose[:, 2].astype(np.float32)

    outline = solid.outline.astype(np.float32)
    bulge = (np.roll(outline, -1, 1) - np.roll(outline, 1, 1)) / (2 * phi[1])
    out_normal, out_binormal = outline * cos + bulge * sin, outline * sin - bulge * cos
    step = np.linalg.norm(np.gradient(solid.spine, axis=0), axis=-1)
    slope = (np.gradient(solid.radius) / np.maximum(step, 1e-4)).astype(np.float32)[:, None] * outline
    length = np.sqrt(out_normal**2 + out_binormal**2 + slope**2)

    def facing(direction: Float[np.ndarray, "3"]) -> Float[np.ndarray, "along around"]:
        """Return the cosine between the surface normal and a unit vector."""
        direction = direction.astype(np.float32)
        across = out_normal * (normal @ direction)[:, None] + out_binormal * (binormal @ direction)
        return (across - slope * (tangent @ direction)[:, None]) / length

    def position(axis: int) -> Float[np.ndarray, "along around"]:
        """Return coordinates on one axis, in pixels of the enlarged image, relative to the origin of the spine."""
        centre = scale * (solid.spine @ pose[axis, :2])
        reach = (scale * solid.radius)[:, None].astype(np.float32) * outline
        return centre[:, None].astype(np.float32) + reach * (cos * normal[:, axis, None] + sin * binormal[axis])

    towards_camera = facing(np.array([0.0, 0.0, 1.0]))
    visible = towards_camera > 0
    x, y, depth = (position(axis)[visible] for axis in range(3))
    lit = np.clip(0.25 + 0.75 * facing(light.direction)[visible], 0, 1)
    half_way = light.direction + np.array([0.0, 0.0, 1.0])
    highlight = np.clip(facing(half_way / np.linalg.norm(half_way))[visible], 0, 1) ** 24
    rim = 0.8 + 0.2 * towards_camera[visible]  # Surfaces at a glancing angle get less light from the surroundings.
    shade = (light.ambient + (1.15 - light.ambient) * lit) * rim
    shaded = [
        np.clip(plane[visible] * shade**tint + gloss * highlight, 0, 1) * 255
        for plane, tint in zip(colours, SHADE_TINT, strict=True)
    ]

    left, top = np.floor(x.min()) - SUPERSAMPLING, np.floor(y.min()) - SUPERSAMPLING
    columns, rows = (x - left).astype(np.intp), (y - top).astype(np.intp)
    enlarged = np.zeros((_padded(float(y.max() - top)), _padded(float(x.max() - left)), 4), np.uint8)
    far_to_near = np.argsort(depth)
    rows, columns = rows[far_to_near], columns[far_to_near]
    for channel, values in enumerate(shaded):
        enlarged[rows, columns, channel] = values[far_to_near]
    enlarged[rows, columns, 3] = 255
    return _shrink(Image.fromarray(enlarged))


def _with_closed_ends(
    solid: Solid, colours: Float[np.ndarray, "3 along around"]
) -> tuple[Solid, Float[np.ndarray, "3 rows around"]]:
    """Close both ends of the body with flat discs."""
    rings = 6
    rim_to_centre = np.linspace(1, 0, rings + 1)[1:]
    radius = np.concatenate([solid.radius[0] * rim_to_centre[::-1], solid.radius, solid.radius[-1] * rim_to_centre])
    pad = partial(np.pad, mode="edge")
    closed = Solid(
        pad(solid.spine, ((rings, rings), (0, 0))),
        pad(solid.heading, rings),
        radius,
        pad(solid.outline, ((rings, rings), (0, 0))),
    )
    return closed, pad(colours, ((0, 0), (rings, rings), (0, 0)))


def _padded(last: float) -> int:
    """Return a size with a margin after the last pixel that is divisible by the supersampling factor."""
    return (int(last) // SUPERSAMPLING + 2) * SUPERSAMPLING


def _shrink(enlarged: Image.Image) -> Image.Image:
    size = (enlarged.width // SUPERSAMPLING, enlarged.height // SUPERSAMPLING)
    return enlarged.resize(size, Image.Resampling.HAMMING)


def paste(canvas: Image.Image, thing: Image.Image, left: int, top: int, light: Light) -> Image.Image:
    """Return a copy of the canvas with the thing (RGBA) and its shadow on it."""
    alpha, softness = thing.getchannel("A"), light.softness
    margin = int(3 * softness)
    darkness = Image.new("L", (thing.width + 2 * margin, thing.height + 2 * margin))
    darkness.paste(alpha.point(lambda value: value * light.shadow), (margin, margin))
    darkness = darkness.filter(ImageFilter.GaussianBlur(softness))
    away = np.round(-(1 + 0.6 * softness) * light.direction[:2]).astype(int) - margin
    result = canvas.copy()
    result.paste((0, 0, 0), (left + int(away[0]), top + int(away[1])), darkness)
    result.paste(thing, (left, top), thing)
    return result


# ------------------------------------------------------------------------------------------------------ distractors


def _swept_thing(
    rng: np.random.Generator,
    light: Light,
    size: float,
    colour: Colour,
    turning: float,
    radius: Float[np.ndarray, " along"],
    depth_angle: float = 0.6,
) -> Image.Image:
    """Draw a round body of about ``size`` pixels whose spine turns by ``turning`` radians."""
    spine, heading = swept_curve(np.full(len(radius), turning / len(radius)))
    around = int(np.clip(10 * size * radius.max(), 48, 512))
    solid = Solid(spine, heading, radius, np.ones((len(radius), around)))
    mottle = rng.uniform(0, 0.12) * smooth_noise(rng, (len(radius), around), (12, 6))
    extent = np.ptp(spine, axis=0) + 2 * radius.max()
    pose = turn_in_picture(rng.uniform(0, 2 * np.pi)) @ random_tilt(rng, depth_angle, depth_angle)
    return render_solid(solid, colour * (1 + mottle), pose, size / extent.max(), light, rng.uniform(0, 0.5))


def ball(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw an orange, an apple, a tomato or a ball."""
    fruit = hsv(rng.choice([0.0, 0.03, 0.08, 0.1, 0.25, 0.97]), rng.uniform(0.7, 1), rng.uniform(0.5, 1))
    position = np.linspace(-1, 1, int(2.5 * size))
    radius = 0.5 * np.sqrt(1 - position**2) * rng.uniform(0.9, 1.1)
    return _swept_thing(rng, light, 0.75 * size, fruit if rng.random() < 0.7 else any_colour(rng), 0.0, radius)


def lemon(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a lemon or another yellow to orange thing with two blunt ends, such as a mango, a potato or a pear."""
    position = np.linspace(-1, 1, int(3 * size))
    body = np.sqrt(np.clip(1 - (position / 0.9) ** 2, 0, 1))
    nipples = 0.25 * np.sqrt(np.clip(1 - position**2, 0, 1)) * rng.uniform(0, 1)
    lopsided = 1 + rng.uniform(-0.3, 0.3) * position
    radius = rng.uniform(0.25, 0.38) * np.maximum(body, nipples) * lopsided
    return _swept_thing(rng, light, 0.75 * size, yellow(rng), rng.normal(0, 0.1), radius)


def crescent(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw the shape of a banana in a colour that no banana has, so that shape alone does not identify a banana."""
    position = np.linspace(-1, 1, int(3 * size))
    colour = hsv(rng.uniform(0.42, 1.02), rng.beta(1, 1), rng.uniform(0.1, 1.0))  # Cyan to red, or grey.
    radius = rng.uniform(0.06, 0.12) * (1 - np.abs(position) ** rng.uniform(1.5, 5)) + 0.01
    return _swept_thing(rng, light, 1.1 * size, colour, rng.uniform(0.4, 2.5), radius)


def rod(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a stick, pencil, carrot, cable or finger: straight or bent, often yellow, brown or skin-coloured."""
    skin = hsv(rng.uniform(0.03, 0.08), rng.uniform(0.25, 0.6), rng.uniform(0.4, 1))
    colour = (yellow(rng), skin, any_colour(rng))[rng.integers(3)]
    radius = np.full(int(3 * size), rng.uniform(0.012, 0.04)) * np.linspace(1, rng.uniform(0.3, 1), int(3 * size))
    return _swept_thing(rng, light, 1.2 * size, colour, rng.choice([0.0, rng.normal(0, 1)]), radius)


def ring(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a ring, a handle or a rim: an arc of constant thickness, yellow in half of all cases."""
    colour = yellow(rng) if rng.random() < 0.5 else any_colour(rng)
    turning = rng.choice([2 * np.pi, rng.uniform(3.5, 6)])
    radius = np.full(int(6 * size), rng.uniform(0.01, 0.035))
    return _swept_thing(rng, light, size, colour, turning, radius, depth_angle=1.0)


def _cutout(
    rng: np.random.Generator, light: Light, size: float, parts: list[tuple[Float[np.ndarray, "corners 2"], Colour]]
) -> Image.Image:
    """Draw filled polygons, later ones on top, at a random angle and with a longer side of ``size`` pixels.

    Side light, a bevel at the rim and mottling give the flat shape depth.
    """
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    turned = [points @ rotation for points, _ in parts]
    everything = np.concatenate(turned)
    low, extent = everything.min(axis=0), np.ptp(everything, axis=0)
    scale = SUPERSAMPLING * size / extent.max()
    width, height = (_padded(side) for side in extent * scale)
    enlarged = Image.new("RGBA", (width + SUPERSAMPLING, height + SUPERSAMPLING))
    draw = ImageDraw.Draw(enlarged)
    for points, (_, colour) in zip(turned, parts, strict=True):
        draw.polygon(((points - low) * scale + SUPERSAMPLING).ravel().tolist(), fill=ink(colour))
    relief = np.asarray(enlarged.getchannel("A").filter(ImageFilter.GaussianBlur(rng.uniform(2, 8)))) / 255.0
    slope_y, slope_x = np.gradient(relief)
    bevel = -rng.uniform(0, 5) * (slope_x * light.direction[0] + slope_y * light.direction[1])
    mottle = rng.uniform(0.02, 0.15) * smooth_noise(rng, relief.shape, (8, 8))
    gradient = np.linspace(-1, 1, relief.shape[0])[:, None] * light.direction[1] * rng.uniform(0, 0.25)
    flat = np.moveaxis(np.asarray(enlarged.convert("RGB"), np.float32), -1, 0) / 255
    lit = Image.fromarray(pixels(flat * (1 + bevel + mottle + gradient)))
    lit.putalpha(enlarged.getchannel("A"))
    return _shrink(lit)


def _ellipse(
    width: float, height: float, centre: tuple[float, float] = (0.0, 0.0), turn: float = 0.0
) -> Float[np.ndarray, "corners 2"]:
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    x, y = width / 2 * np.cos(angles), height / 2 * np.sin(angles)
    points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=-1)
    return points + np.array(centre)


def _rectangle(left: float, top: float, right: float, bottom: float) -> Float[np.ndarray, "corners 2"]:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=float)


def box(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a book, carton, screen or ruler: a bright face, a dark side and some print."""
    colour = yellow(rng) if rng.random() < 0.4 else any_colour(rng)
    length, side = rng.choice([rng.uniform(1, 2), rng.uniform(4, 10)]), rng.uniform(0, 0.25)
    face = _rectangle(0.0, 0.0, length, 1.0)
    parts = [(np.array([(0, 1), (length, 1), (length - side, 1 + side), (-side, 1 + side)]), colour * 0.55)]
    parts += [(face, colour)]
    print_colour = any_colour(rng) * 0.6
    for line in np.linspace(0.15, 0.85, rng.integers(0, 6)):
        start, end = np.sort(rng.uniform(0.05, 0.95, 2)) * length
        parts += [(_rectangle(start, line - 0.04, end, line + 0.04), print_colour)]
    return _cutout(rng, light, size, parts)


def leaf(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a leaf with a rib, green or autumn red; a bent yellow leaf could pass for a banana."""
    width = rng.uniform(0.3, 0.6)
    position = np.linspace(0, np.pi, 20)
    bow = rng.uniform(-0.3, 0.3) * np.sin(position)
    upper, lower = bow + width / 2 * np.sin(position) ** 1.3, bow - width / 2 * np.sin(position) ** 1.3
    along = np.linspace(-0.5, 0.5, 20)
    blade = np.stack([np.append(along, along[::-1]), np.append(upper, lower[::-1])], axis=-1)
    rib = np.stack([np.append(along, along[::-1]), np.append(bow + 0.012, bow[::-1] - 0.012)], axis=-1)
    hue = rng.choice([rng.uniform(0.22, 0.4), rng.uniform(0.0, 0.06)])
    colour = hsv(hue, rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.8))
    return _cutout(rng, light, size, [(blade, colour), (rib, colour * 0.7)])


def flower(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a flower: petals around a centre, mostly yellow."""
    colour = yellow(rng) if rng.random() < 0.7 else any_colour(rng)
    petals, slender = rng.integers(5, 14), rng.uniform(0.15, 0.35)
    parts = [
        (_ellipse(0.5, slender, (0.3 * np.cos(turn), 0.3 * np.sin(turn)), turn), colour * rng.uniform(0.75, 1.1))
        for turn in np.linspace(0, 2 * np.pi, petals, endpoint=False)
    ]
    return _cutout(rng, light, 0.8 * size, [*parts, (_ellipse(0.3, 0.3), any_colour(rng) * 0.6)])


def plate(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a plate, bowl, cup or wheel at an angle, as nested ellipses."""
    colours, tilt = palette(rng, 4), rng.uniform(0.4, 1)
    discs = [
        (_ellipse(width, width * tilt, (0.0, 0.08 * (1 - width))), colour)
        for width, colour in zip((1.0, 0.94, 0.7, 0.66), colours, strict=True)
    ]
    return _cutout(rng, light, 1.3 * size, discs)


def blob(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw a stone, crisp, puddle or star: any closed outline, one in five in a colour of bananas."""
    corners = rng.integers(3, 40)
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    harmonics = np.arange(2, 6)
    waves = np.cos(np.outer(angles, harmonics) + rng.uniform(0, 2 * np.pi, 4)) @ (rng.normal(0, 0.4, 4) / harmonics)
    radii = np.clip(1 + waves, 0.2, None)
    outline = np.stack([radii * np.cos(angles), radii * np.sin(angles) * rng.uniform(0.6, 1)], axis=-1)
    return _cutout(rng, light, size, [(outline, yellow(rng) if rng.random() < 0.2 else any_colour(rng))])


def print_strokes(rng: np.random.Generator, light: Light, size: float) -> Image.Image:
    """Draw strokes that resemble a line of writing."""
    colour, thickness = any_colour(rng) * rng.choice([0.3, 1.0]), rng.uniform(0.1, 0.3)
    parts = []
    for letter in range(rng.integers(2, 8)):
        left = 1.1 * letter
        for _ in range(rng.integers(2, 4)):
            if rng.random() < 0.5:
                x = left + rng.uniform(0, 0.7)
                parts += [(_rectangle(x, 0.0, x + thickness, 1.4), colour)]
            else:
                y = rng.choice([0.0, 0.6, 1.2])
                parts += [(_rectangle(left, y, left + 0.8, y + thickness), colour)]
    return _cutout(rng, light, size, parts)


DISTRACTORS: tuple[Callable[[np.random.Generator, Light, float], Image.Image], ...] = (
    *(ball, lemon, crescent, rod, ring),
    *(box, leaf, flower, plate, blob, print_strokes),
)


def draw_distractor(rng: np.random.Generator, light: Light) -> Image.Image:
    """Draw a random thing that is not a banana (RGBA), about 20 … 110 pixels long."""
    return DISTRACTORS[rng.integers(len(DISTRACTORS))](rng, light, rng.uniform(20, 90))
