"""Frames of video files, cameras and streams, and videos of drawn frames, through PyAV."""

import importlib.util
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:  # The package is in the extra "video".
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv")
)
"""Suffixes of video files."""

CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
"""FFmpeg's format and name of a camera with a number, by :data:`sys.platform`."""

CODECS = ("libx264", "mpeg4")
"""Encoders of written videos, the preferred one first."""

CLOCK = 90_000
"""Ticks in a second of written videos, as in MPEG."""

USUAL_RATE = Fraction(25)
"""Frames per second of a stream that does not tell its rate."""

PATIENCE = 20.0
"""Seconds without an answer after which a stream counts as unreachable."""


def require_av() -> None:
    """Refuse to continue without PyAV.

    Raises:
        ValueError: naming the extra that has it.
    """
    if importlib.util.find_spec("av") is None:
        raise ValueError("source: expected the package av for videos and streams, got none. Try uv sync --extra video.")


class Frame(NamedTuple):
    """A frame of a video, or the reason why it could not be decoded."""

    number: int
    """Position among all frames of the video, from 0; broken frames count."""
    seconds: float
    """Time since the first frame."""
    image: UInt8[np.ndarray, "height width 3"] | None
    """Pixels, upright; None if the frame is broken."""
    error: str = ""


class Video:
    """A video file, a stream with an address such as ``rtsp://…``, or a camera by its number.

    Args:
        source: file, address, or number of a camera.

    Attributes:
        rate: frames per second.
        frames: number of frames, or None if it is not known.

    Raises:
        ValueError: with the source, if it cannot be opened or has no video; or if PyAV is missing.
    """

    def __init__(self, source: str | Path | int) -> None:
        require_av()
        import av

        self.source = source
        name, kind = str(source), None
        if isinstance(source, int):
            if sys.platform not in CAMERAS:
                raise ValueError(f"source: expected a system with cameras by number, got {sys.platform}")
            kind, pattern = CAMERAS[sys.platform]
            name = pattern.format(source)
        try:
            self._container: InputContainer = av.open(name, "r", kind, timeout=PATIENCE if "://" in name else None)
        except (av.error.FFmpegError, OSError) as error:
            what = "a camera" if isinstance(source, int) else "a video"
            raise ValueError(
                f"source: expected {what}, got {source}, which cannot be opened ({_reason(error)})"
            ) from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"source: expected a video, got {source}, which has none")
        self._stream: VideoStream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = self._stream.average_rate or USUAL_RATE
        self.frames = self._stream.frames or None

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Decode the frames one after another. A broken frame is reported, and the next one follows."""
        start: float | None = None
        seconds = 0.0
        for number, found in enumerate(self._decoded()):
            if isinstance(found, str):
                yield Frame(number, seconds, None, found)
                continue
            time = number / float(self.rate) if found.time is None else float(found.time)
            start = time if start is None else start
            seconds = time - start
            yield Frame(number, seconds, upright(found.to_ndarray(format="rgb24"), found.rotation))

    def _decoded(self) -> Iterator["VideoFrame | str"]:
        """Yield decoded frames, and for each packet that cannot be decoded the reason."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                # The rest of the file cannot be found without this packet.
                yield f"the video ends here: {_reason(error)}"
                return
            try:
                for frame in packet.decode():
                    assert isinstance(frame, av.VideoFrame)
                    yield "damaged data" if frame.is_corrupt else frame
            except av.error.FFmpegError as error:
                yield _reason(error)


def upright(image: UInt8[np.ndarray, "height width 3"], rotation: float) -> UInt8[np.ndarray, "_ _ 3"]:
    """Turn a frame as its video asks for.

    Args:
        image: as it is stored.
        rotation: in degrees, counterclockwise. It is rounded to a multiple of 90.
    """
    return np.ascontiguousarray(np.rot90(image, round(rotation / 90)))


class VideoWriter:
    """A video file of frames in memory. It is complete when the ``with`` block ends, also by an exception.

    Without any frame there is no file.

    Args:
        path: file to write, which ends with ``.mp4``.
        rate: frames per second, for players that ask; each frame has its own time.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        require_av()
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        codec = next(name for name in CODECS if name in av.codecs_available)
        self._container = av.open(str(path), "w")
        stream = self._container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, CLOCK)
        self._path = path
        self._last = -1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._last >= 0:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        if self._last < 0:
            self._path.unlink(missing_ok=True)

    def write(self, image: UInt8[np.ndarray, "height width 3"], seconds: float) -> None:
        """Append a frame. All frames have the size of the first one, which loses a row or column of an odd size.

        Args:
            image: red first.
            seconds: time of the frame.
        """
        import av

        if self._last < 0:
            self._stream.height, self._stream.width = (max(2, side - side % 2) for side in image.shape[:2])
        even = image[: self._stream.height, : self._stream.width]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        # Times must rise, also where those of the source do not.
        self._last = max(self._last + 1, round(seconds * CLOCK))
        frame.pts, frame.time_base = self._last, Fraction(1, CLOCK)
        self._container.mux(self._stream.encode(frame))


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
