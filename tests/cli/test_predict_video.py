"""``ssd-predict`` on videos, addresses and standard input."""

import io
import json
import sys
from pathlib import Path

import pytest
from http_server import answering, sending, serving, unreachable_url
from random_detector import photo
from run_folder import Trained
from small_video import HEIGHT, WIDTH, write_video

from ssd_lightning.cli import predict as command
from ssd_lightning.cli.sources import find_sources
from ssd_lightning.deploy.video import Video
from ssd_lightning.signals import Interrupted
from ssd_lightning.training.checkpoint import load_detector


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_video_gives_a_line_for_each_frame_and_a_drawn_video(run, trained: Trained, tmp_path: Path):
    write_video(tmp_path / "clip.avi", broken=(2,), with_photos=True)
    outcome = run(
        "ssd-predict", str(trained.best), "clip.avi", "batch_size=4", "draw_threshold=0.1", "hydra.run.dir=out"
    )
    assert outcome.exit_code == 0, outcome.error
    lines = lines_of(tmp_path / "out/videos/clip.avi.jsonl")
    assert [line["frame"] for line in lines] == list(range(6))
    assert [line["time"] for line in lines] == pytest.approx([0, 0.1, 0.1, 0.3, 0.4, 0.5])
    assert set(lines[2]) == {"frame", "time", "error"}
    with Video(tmp_path / "clip.avi") as video:
        images = [frame.image for frame in video if frame.image is not None]
    found = load_detector(trained.best).predict(images, score_threshold=0)
    whole = [line for line in lines if "error" not in line]
    for line, expected in zip(whole, found, strict=True):
        assert (line["height"], line["width"]) == expected.size == (HEIGHT, WIDTH)
        assert [entry["bbox"] for entry in line["detections"]] == [entry["bbox"] for entry in expected.to_coco()]
        assert [entry["name"] for entry in line["detections"]] == list(expected.names)
        assert len(expected.names) > 0
    confident = sum(entry["score"] >= 0.1 for line in whole for entry in line["detections"])
    assert "6 frames, 1 of them broken" in outcome.out
    assert f"{confident} detections with a score from 0.1" in outcome.out
    with Video(tmp_path / "out/videos/clip.avi.mp4") as video:
        drawn = list(video)
    assert [frame.seconds for frame in drawn] == pytest.approx([0, 0.1, 0.3, 0.4, 0.5], abs=0.001)
    assert not (tmp_path / "out/predictions.json").exists()


def test_every_second_frame_of_videos_beside_pictures(run, trained: Trained, tmp_path: Path):
    for name in ("a.mp4", "b.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / f"{name}.avi").rename(tmp_path / name)
    photo().save(tmp_path / "photo.png")
    outcome = run(
        "ssd-predict", str(trained.best), "photo.png", "*.m[pk]*", "draw=false", "frame_step=2", "num_workers=0",
        "hydra.run.dir=out",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.error
    for name in ("a.mp4", "b.mkv"):
        assert [line["frame"] for line in lines_of(tmp_path / f"out/videos/{name}.jsonl")] == [0, 2, 4]
    assert {path.suffix for path in (tmp_path / "out/videos").iterdir()} == {".jsonl"}
    [image] = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert image["file_name"] == str(tmp_path / "photo.png")


def test_what_is_done_is_kept_after_a_signal(run, trained: Trained, tmp_path: Path, monkeypatch):
    write_video(tmp_path / "clip.avi", with_photos=True)
    frames = Video.__iter__

    def interrupted(video: Video):
        for frame in frames(video):
            if frame.number == 4:
                raise Interrupted(2)
            yield frame

    monkeypatch.setattr(Video, "__iter__", interrupted)
    outcome = run("ssd-predict", str(trained.best), "clip.avi", "batch_size=2", "hydra.run.dir=out")
    assert outcome.exit_code == 130
    assert outcome.message.startswith("ssd-predict: interrupted by SIGINT")
    assert "clip.avi: 4 frames" in outcome.out
    assert len(lines_of(tmp_path / "out/videos/clip.avi.jsonl")) == 4
    monkeypatch.setattr(Video, "__iter__", frames)
    with Video(tmp_path / "out/videos/clip.avi.mp4") as video:
        assert len(list(video)) == 4


def png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    photo(height, width).save(buffer, "png")
    return buffer.getvalue()


def test_a_picture_from_a_server(run, trained: Trained, tmp_path: Path):
    with serving() as server:
        server.default = sending(png(48, 90), content_type="image/png")
        address = server.url("/photos/a.png?size=3&n=1")
        outcome = run("ssd-predict", str(trained.best), address, "num_workers=0", "hydra.run.dir=out")
        assert outcome.exit_code == 0, outcome.error
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [(image["file_name"], image["height"], image["width"]) for image in content["images"]] == [(address, 48, 90)]
    (tmp_path / "same.png").write_bytes(png(48, 90))
    expected = load_detector(trained.best).predict(tmp_path / "same.png", score_threshold=0)
    assert [entry["bbox"] for entry in content["annotations"]] == [entry["bbox"] for entry in expected.to_coco()]
    assert (tmp_path / "out/drawings/a.png.jpg").exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]


def test_a_picture_from_a_server_beside_a_file(run, trained: Trained, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    photo().save(tmp_path / "photos" / "b.png")
    with serving() as server:
        server.default = sending(png(48, 90), content_type="image/png")
        sources = f"source=[{tmp_path}/photos,{server.url('/a.png')},{server.url('/more/a.png')}]"
        outcome = run("ssd-predict", f"checkpoint={trained.best}", sources, "num_workers=0", "hydra.run.dir=out")
        assert outcome.exit_code == 0, outcome.error
    drawings = sorted(str(path.relative_to(tmp_path / "out/drawings")) for path in (tmp_path / "out").rglob("*.jpg"))
    assert drawings == ["a.png.jpg", "a.png_2.jpg", "b.png.jpg"]


def test_addresses_that_fail(run, trained: Trained, tmp_path: Path):
    with serving() as server:
        server.default = answering(404)
        for address in (server.url("/a.png"), unreachable_url("/b.png")):
            outcome = run("ssd-predict", str(trained.best), address)
            assert outcome.exit_code == 1
            assert outcome.message.startswith("ssd-predict: source: expected a picture or a stream")
            assert address in outcome.message
    assert list(tmp_path.iterdir()) == []


def test_a_list_on_standard_input(run, trained: Trained, tmp_path: Path, monkeypatch):
    for name in ("a b.png", "c.png"):
        photo().save(tmp_path / name)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"a b.png\n\n{tmp_path}/c.png\n"))
    outcome = run("ssd-predict", str(trained.best), "-", "num_workers=0", "draw=false", "hydra.run.dir=out")
    assert outcome.exit_code == 0, outcome.error
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [
        str(tmp_path / name) for name in ("a b.png", "c.png")
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    outcome = run("ssd-predict", str(trained.best), "source=-")
    assert outcome.message.startswith("ssd-predict: source: expected a list")


def test_kinds_of_sources(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("7", "a.MP4", "b.png"):
        (tmp_path / name).touch()
    found = find_sources(["a.MP4", 3, 7, "b.png", "*.*", "rtsp://camera/live"], tmp_path)
    assert found.videos == ["a.MP4", 3, "rtsp://camera/live"]
    assert [Path(picture.name).name for picture in found.pictures] == ["7", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "key"), [(["source=9999"], "source"), (["source=a.avi", "frame_step=0"], "frame_step")]
)
def test_mistakes(run, trained: Trained, arguments: list[str], key: str, tmp_path: Path):
    write_video(tmp_path / "a.avi")
    outcome = run("ssd-predict", str(trained.best), *arguments)
    assert outcome.exit_code == 1
    assert outcome.message.startswith(f"ssd-predict: {key}: expected")
    assert [path.name for path in tmp_path.iterdir()] == ["a.avi"]


def test_a_second_video_of_the_same_name_has_a_name_of_its_own(tmp_path: Path):
    for name in ("a.avi.jsonl", "a.avi_2.jsonl", "a.avi_3.jsonl"):
        path = command.free_name(tmp_path / "a.avi.jsonl")
        assert path.name == name
        path.touch()
