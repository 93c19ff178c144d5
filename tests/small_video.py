"""Small videos that tests make."""

from pathlib import Path

import av
import numpy as np
from random_detector import photo

HEIGHT, WIDTH, RATE = 48, 90, 10


def pixels_of_frame(number: int) -> np.ndarray:
    """A grey, which is brighter in each frame and survives lossy compression."""
    return np.full((HEIGHT, WIDTH, 3), 20 + 30 * number, dtype=np.uint8)


def write_video(path: Path, frames: int = 6, broken: tuple[int, ...] = (), with_photos: bool = False) -> Path:
    """Write frames as pictures of their own (MJPEG), in which some packets hold rubbish."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        packets = []
        for number in range(frames):
            pixels = np.asarray(photo(HEIGHT, WIDTH, seed=number)) if with_photos else pixels_of_frame(number)
            packets += stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
        for number, packet in enumerate([*packets, *stream.encode(None)]):
            if number in broken:
                rubbish = av.Packet(b"rubbish" * 20)
                rubbish.pts, rubbish.dts, rubbish.time_base = packet.pts, packet.dts, packet.time_base
                rubbish.stream, rubbish.is_keyframe = stream, True
                container.mux(rubbish)
            else:
                container.mux(packet)
    return path
