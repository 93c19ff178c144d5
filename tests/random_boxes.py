"""Boxes for tests of geometry."""

import numpy as np


def random_boxes(rng: np.random.Generator, count: int, width: int = 500, height: int = 375) -> np.ndarray:
    """Make boxes (xyxy, fractions) with edges on the pixels of a picture, as in annotations."""
    columns = np.sort(rng.permuted(np.tile(np.arange(width + 1), (count, 1)), axis=1)[:, :2], axis=1) / width
    rows = np.sort(rng.permuted(np.tile(np.arange(height + 1), (count, 1)), axis=1)[:, :2], axis=1) / height
    return np.stack((columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]), axis=1).astype(np.float32)
