"""Frames of videos: their order, their times, and those that are broken; written videos read again."""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from http_server import sending, serving, unreachable_url
from random_detector import photo
from small_video import HEIGHT, RATE, WIDTH, pixels_of_frame, write_video

from ssd_lightning.deploy.video import Video, VideoWriter, upright


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mov"])
def test_frames_and_their_times(tmp_path: Path, suffix: str):
    with Video(write_video(tmp_path / f"a{suffix}")) as video:
        assert video.rate == RATE
        assert video.frames in (6, None)  # Matroska does not tell.
        frames = list(video)
    assert [frame.number for frame in frames] == list(range(6))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5], abs=0.002)
    for frame in frames:
        assert frame.image is not None
        assert frame.error == ""
        np.testing.assert_allclose(frame.image, pixels_of_frame(frame.number), atol=4)


@pytest.mark.parametrize("broken", [(0,), (2,), (1, 4), (5,)])
def test_broken_frames_are_named_and_the_next_ones_follow(tmp_path: Path, broken: tuple[int, ...]):
    with Video(write_video(tmp_path / "a.avi", broken=broken)) as video:
        frames = list(video)
    assert [frame.number for frame in frames] == list(range(6))
    assert tuple(frame.number for frame in frames if frame.image is None) == broken
    for frame in frames:
        assert bool(frame.error) == (frame.image is None)
        if frame.image is not None:
            np.testing.assert_allclose(frame.image, pixels_of_frame(frame.number), atol=4)


def test_a_file_that_was_cut_off_gives_its_beginning(tmp_path: Path):
    path = write_video(tmp_path / "a.mkv", frames=20, with_photos=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Video(path) as video:
        whole = [frame for frame in video if frame.image is not None]
    assert 5 < len(whole) < 15


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "sound"])
def test_what_is_no_video(tmp_path: Path, kind: str):
    path = tmp_path / "a.mp4"
    if kind == "sound":
        import av

        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            for packet in [*stream.encode(silence), *stream.encode(None)]:
                container.mux(packet)
    elif kind != "missing":
        path.write_text("no video" if kind == "text" else "")
    with pytest.raises(ValueError, match=r"^source: expected a video, got .*a\.mp4") as caught:
        Video(path)
    assert "\n" not in str(caught.value)


def test_a_camera_that_is_missing():
    with pytest.raises(ValueError, match=r"^source: expected a camera, got 97"):
        Video(97)


def test_a_stream(tmp_path: Path):
    content = write_video(tmp_path / "a.avi").read_bytes()
    with serving() as server:
        server.default = sending(content)
        with Video(server.url("/live")) as video:
            assert len(list(video)) == 6
    with pytest.raises(ValueError, match=r"^source: expected a video, got http://"):
        Video(unreachable_url("/live"))


def test_without_the_package(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"^source: expected the package av .* Try uv sync --extra video"):
        Video(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("degrees", "corner"), [(0, (0, 0)), (90, (2, 0)), (180, (2, 4)), (-90, (0, 4)), (-180, (2, 4))]
)
def test_frames_are_turned_counterclockwise(degrees: int, corner: tuple[int, int]):
    image = np.zeros((3, 5, 3), dtype=np.uint8) if abs(degrees) != 90 else np.zeros((5, 3, 3), dtype=np.uint8)
    image[0, 0] = 255
    turned = upright(image, degrees)
    assert turned.shape == (3, 5, 3)
    assert tuple(np.argwhere(turned[..., 0])[0]) == corner


def test_a_written_video_has_the_frames_at_their_times(tmp_path: Path):
    times = [0, 0.1, 0.5, 0.5, 2]
    with VideoWriter(tmp_path / "new" / "a.mp4", Fraction(10)) as writer:
        for number, seconds in enumerate(times):
            writer.write(np.full((HEIGHT + 1, WIDTH + 1, 3), 50 * number, dtype=np.uint8), seconds)
    with Video(tmp_path / "new" / "a.mp4") as video:
        frames = list(video)
    assert [frame.seconds for frame in frames] == pytest.approx(times, abs=0.001)
    for number, frame in enumerate(frames):
        assert frame.image is not None
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        np.testing.assert_allclose(frame.image, 50 * number, atol=4)


def test_a_video_that_ends_by_an_error_is_complete(tmp_path: Path):
    def fail() -> None:
        with VideoWriter(tmp_path / "a.mp4", Fraction(10)) as writer:
            writer.write(np.asarray(photo(HEIGHT, WIDTH)), 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with Video(tmp_path / "a.mp4") as video:
        assert len(list(video)) == 1
    with VideoWriter(tmp_path / "b.mp4", Fraction(10)):
        pass
    assert not (tmp_path / "b.mp4").exists()
