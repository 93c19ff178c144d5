"""The files of a run folder: which are meant, and what is read of damaged ones."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ssd_lightning.cli.folder_lock import LOCK_FILE, holder_of
from ssd_lightning.cli.run_folders import chosen_options
from ssd_lightning.deploy.onnx_detector import OnnxDetector
from ssd_lightning.detector.weights import read_file
from ssd_lightning.run_folder import checkpoint_in, parse_metrics, read_choices, read_config, read_json, run_of_file
from ssd_lightning.scoring.stored_detections import load_detections


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


class TestCheckpoint:
    def test_the_best_comes_before_the_last(self, tmp_path: Path):
        last, best = tmp_path / "checkpoints/last.ckpt", tmp_path / "checkpoints/best.ckpt"
        touch(last)
        assert checkpoint_in(tmp_path, "checkpoint") == last
        touch(best)
        assert checkpoint_in(tmp_path, "checkpoint") == best
        assert checkpoint_in(best.parent, "checkpoint") == best

    def test_a_folder_without_one_is_refused(self, tmp_path: Path):
        with pytest.raises(ValueError, match=f"^pretrained: expected .*got {tmp_path}, which has none"):
            checkpoint_in(tmp_path, "pretrained")

    def test_a_sweep_is_refused_with_its_first_job(self, tmp_path: Path):
        touch(*(tmp_path / job / "checkpoints/best.ckpt" for job in ("10", "2")))
        with pytest.raises(ValueError, match=f"Try checkpoint={tmp_path}/2\\."):
            checkpoint_in(tmp_path, "checkpoint")


@pytest.mark.parametrize("name", ["summary.json", "checkpoints/best.ckpt", ".hydra/config.yaml", "figures/curves.png"])
def test_the_run_of_a_file(name: str):
    assert run_of_file(Path("runs/a") / name) == Path("runs/a")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize(
    ("read", "name"),
    [
        (read_config, "config.yaml"),
        (read_json, "summary.json"),
        (parse_metrics, "metrics.csv"),
        (lambda path: read_choices(path.parents[1]), ".hydra/hydra.yaml"),
        (lambda path: chosen_options(path.parents[1]), ".hydra/hydra.yaml"),
        (lambda path: load_detections(path.parent), "detections.npz"),
        (lambda path: read_file(path, "weights"), "best.ckpt"),
        (OnnxDetector, "model.onnx"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, read: Callable[[Path], Any], name: str, make):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    make(path)
    with pytest.raises(ValueError, match=f"{path}"):
        read(path)


def test_a_lock_that_is_a_named_pipe(tmp_path: Path):
    os.mkfifo(tmp_path / LOCK_FILE)
    assert holder_of(tmp_path) is None


def test_a_lock_with_a_name_that_would_command_the_terminal(tmp_path: Path):
    now = datetime.now(UTC).isoformat()
    content = {"host": "\x1b[31mX", "boot": "b", "process": 1, "heartbeat": now}
    (tmp_path / LOCK_FILE).write_text(json.dumps(content))
    assert r"\x1b[31mX" in str(holder_of(tmp_path))


HEADER = "step,epoch,val/map_50\n"
WHOLE = f"{HEADER}1,0,0.25\n2,0,\n3,1,0.5\n"


class TestMetrics:
    @pytest.mark.parametrize(
        ("text", "steps", "damage"),
        [
            (WHOLE, [1, 2, 3], ""),
            (HEADER, [], ""),
            (WHOLE.replace("\n", "\r\n"), [1, 2, 3], ""),
            ("", [], "step"),
            ("epoch,val/map_50\n0,0.25\n", [], "step"),
            (f"{HEADER}1,0,0.25\n2,0,0.5,0.75\n3,0,0.5\n", [1, 3], "1 of 3 rows cannot be read, the first in line 3"),
            (f"{HEADER}1,0,0.25\n2,0\nthree,0,0.5\n,0,0.5\n4.5,0,1\n-1,0,1\n", [1], "5 of 6 rows"),
            (f"{HEADER}1,0,much\n2,0,0.5\n", [2], "1 of 2 rows cannot be read, the first in line 2"),
            (f'{HEADER}1,0,0.25\n"2,0,0.5\n3,0,0.5\n', [1, 3], "line 3"),
            (f"{HEADER}1,0,0.25\nnan,0,1\ninf,0,1\n1e400,0,1\n{'9' * 5000},0,1\n", [1], "4 of 5 rows"),
            (f"{HEADER}1,0,0.25\n\x00\x00\n", [1], "1 of 2 rows"),
            (f"{HEADER}1,0,3.4e38\n2,0,inf\n3,0,-1e308\n4,1e40,0.5\n", [1, 2], "2 of 4 rows"),
        ],
    )
    def test_rows_that_can_be_read_are_kept(self, tmp_path: Path, text: str, steps: list[int], damage: str):
        (tmp_path / "metrics.csv").write_bytes(text.encode())
        found = parse_metrics(tmp_path / "metrics.csv")
        assert list(found.rows) == steps
        assert damage in found.damage
        assert bool(found.damage) == bool(damage)
        assert "\n" not in found.damage

    def test_no_cut_gives_a_wrong_number(self, tmp_path: Path):
        """A file that ends within a number has fewer digits, so the row does not count."""
        path = tmp_path / "metrics.csv"
        path.write_text(WHOLE)
        whole = parse_metrics(path).rows
        for length in range(len(WHOLE)):
            path.write_text(WHOLE[:length])
            found = parse_metrics(path)
            assert found.rows.items() <= whole.items()
            assert bool(found.damage) == (length == 0 or WHOLE[length - 1] != "\n")

    def test_bytes_that_are_no_text(self, tmp_path: Path):
        (tmp_path / "metrics.csv").write_bytes(HEADER.encode() + b"1,0,0.25\n\xff\xfe,0,1\n2,0,1\n")
        found = parse_metrics(tmp_path / "metrics.csv")
        assert list(found.rows) == [1, 2]
        assert "line 3" in found.damage


class TestConfig:
    def test_what_a_run_saves(self, tmp_path: Path):
        (tmp_path / "config.yaml").write_text("a: {b: [1, 2.5, null, text]}\n")
        assert read_config(tmp_path / "config.yaml") == {"a": {"b": [1, 2.5, None, "text"]}}

    def test_a_name_with_bytes_that_are_no_text(self, tmp_path: Path):
        OmegaConf.save(OmegaConf.create({"root": "d\udcff"}), tmp_path / "config.yaml")
        assert read_config(tmp_path / "config.yaml") == {"root": "d\udcff"}

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]" for n in range(1, 30))]), "aliases"),
            ("a: &a [*a]", "aliases"),
            (f"{'[' * 100_000}", "levels|nesting"),
            (f"a: {'{b: ' * 200}1{'}' * 200}", "levels"),
            (f"a: '{'x' * 2**20}'", "bytes"),
            ("a: [", "a"),
            (f"alpha: 0x{'f' * 6000}", "3000 characters"),
            (f"alpha: !!int '{'1:' * 6000}1'", "3000 characters"),
            ("!!python/object/apply:os.system ['true']", "python"),
        ],
        ids=["bomb", "loop", "nested", "nested mappings", "large", "cut", "digits", "tag", "code"],
    )
    def test_anything_else_is_refused_at_once(self, tmp_path: Path, text: str, reason: str):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"^{tmp_path}/config.yaml: .*{reason}") as caught:
            read_config(tmp_path / "config.yaml")
        assert "\n" not in str(caught.value)

    def test_a_missing_file(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"config\.yaml: No such file"):
            read_config(tmp_path / "config.yaml")
