"""Mistakes at the command line: a message of one line names the key, and no files are left behind."""

from pathlib import Path

import pytest
import torch
from banana_folder import write_banana_folder
from command_line import QUICK
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from ssd_lightning.cli import errors
from ssd_lightning.cli.sources import find_pictures
from ssd_lightning.cli.values import check_values
from ssd_lightning.data.bananas import dataset as banana
from ssd_lightning.detector.presets import CONFIG_FOLDER

pytestmark = pytest.mark.usefixtures("empty_figures")

TRAIN_MISTAKES = {
    "numbers for an option": (["box_scales=[0.1,0.2]"], ["box_scales", "model.default_boxes.scales=[…]"]),
    "ratios for an option": (["aspect_ratios=[[2],[3]]"], ["aspect_ratios", "model.default_boxes.aspect_ratios=[…]"]),
    "unknown key": (["learning_rate=1"], ["learning_rate"]),
    "unknown group": (["backbones=tiny"], ["backbones"]),
    "unknown option": (["backbone=tinny"], ["backbone: expected one of ", "tiny, ", "got tinny"]),
    "bad grammar": (["optimizer.lr=[1"], ["[1"]),
    "unknown argument": (["+matcher.threshold=0.5"], ["matcher", "threshold"]),
    "boxes and network": (
        ["model.default_boxes.scales=[0.1,0.2,0.3]", "model.default_boxes.aspect_ratios=[[2],[2],[2]]"],
        ["scales: expected 4 numbers", "0.3"],
    ),
    "backbone and box scales": (["box_scales=ssd512"], ["scales: expected fewer levels for Tiny", "got 7"]),
    "backbone weights": (
        ["backbone=resnet18", "backbone.weights=no.pth"],
        ["ssd-train: backbone.weights: ", "no.pth", "DEFAULT"],
    ),
    "frozen layer": (["model.frozen_until=conv9"], ["conv9", "levels.0"]),
    "pretrained": (["pretrained=no.ckpt"], ["pretrained", "no.ckpt"]),
    "levels": (
        ["model.default_boxes.scales=[0.1,0.2,0.3]", "model.default_boxes.aspect_ratios=[[2],[2]]"],
        ["scales: expected 6 numbers", "0.3"],
    ),
    "image size": (["model.image_size=0"], ["image_size", "0"]),
    "batch size": (["batch_size=0"], ["batch_size: ", "at least 1", "0"]),
    "NaN scale": (["model.default_boxes.scales=[0.2,nan,0.54,0.71,0.88,1.05]"], ["scales", "nan"]),
    "threshold": (["+matcher.iou_threshold=2"], ["iou_threshold", "(0, 1]", "2"]),
    "GPU": (["trainer=gpu"], ["trainer", "gpu"]),
    "data folder": (
        ["data.root=nowhere"],
        ["data.root: expected a folder that holds bananas_train and bananas_val", "/nowhere", "/data/banana"],
    ),
    "VOC's folder": (
        ["data=voc07", "data.root=nowhere"],
        ["data.root: expected a folder that holds VOCdevkit", "/nowhere", "/data"],
    ),
    "no end": (["trainer.max_epochs=null"], ["max_epochs", "max_steps"]),
    "argument of another optimizer": (["+optimizer.momentum=0.9"], ["optimizer", "momentum"]),
    "argument of another schedule": (["+lr_scheduler.milestones=[1]"], ["lr_scheduler", "milestones"]),
}


@pytest.mark.parametrize("name", list(TRAIN_MISTAKES))
def test_one_line_and_nothing_left_behind(run, bananas: Path, tmp_path: Path, name: str):
    if name == "GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    arguments, expected = TRAIN_MISTAKES[name]
    settings = [setting for setting in QUICK if name != "GPU" or setting != "trainer=cpu"]
    outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *settings, "hydra.run.dir=run", *arguments)
    assert outcome.exit_code == 1
    assert "Error executing job" not in outcome.error
    assert outcome.message.startswith("ssd-train: ")
    for part in expected:
        assert part in outcome.message
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def default_config() -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("batch_size", "abc", "number"),
        ("batch_size", None, "number"),
        ("num_workers", 1.5, "number"),
        ("num_workers", -1, "at least 0"),
        ("seed", None, "number"),
        ("seed", 1.5, "number"),
        ("optimizer.lr", "abc", "number"),
        ("optimizer.lr", None, "number"),
        ("optimizer.lr", -0.1, "in [0, "),
        ("overfit_pictures", "abc", "number"),
        ("lr_reference_batch", "abc", "number"),
        ("dashboard_pictures", "abc", "number"),
        ("trainer.log_every_n_steps", "abc", "number"),
        ("trainer.max_epochs", 0, "at least 1"),
        ("trainer.max_epochs", 1.5, "whole number"),
        ("trainer.limit_val_batches", 0, "at least"),
        ("trainer.val_check_interval", 0, "at least 1"),
        ("trainer.val_check_interval", 0.0, "(0, 1]"),
        ("draw", "abc", "true or false"),
        ("augmented", 3, "true or false"),
        ("why_missed", None, "true or false"),
        ("trainer.overfit_batches", 1, "overfit_pictures"),
        ("trainer.overfit_batches", 0.5, "expected 0"),
        ("trainer.reload_dataloaders_every_n_epochs", 1, "expected 0"),
        ("head._partial_", "abc", "true, false"),
        ("lr_scheduler._partial_", None, "true, false"),
        ("augmentation.windows.0._recursive_", 1, "true, false"),
        ("model.default_boxes._convert_", "abc", "none, partial, object, all"),
        ("matcher._target_", 5, "name of a class"),
        ("loss.classification._target_", "", "name of a class"),
        ("trusted_packages", "os", "list of names"),
        ("trusted_packages", [5], "list of names"),
        ("split", "train", "val, test"),
        ("callbacks.last.filename", 5, "text"),
    ],
)
def test_values_are_checked(default_config: DictConfig, key: str, value: object, expected: str):
    config = OmegaConf.create(OmegaConf.to_container(default_config))
    OmegaConf.update(config, key, value, force_add=True)
    with pytest.raises(ValueError, match=f"^{key}: ") as caught:
        check_values(config)
    assert expected in str(caught.value)


def test_a_seed_from_the_environment_is_a_number(default_config: DictConfig):
    config = default_config.copy()
    config.seed = "7"
    check_values(config)
    assert config.seed == 7


def test_a_failed_download_leaves_nothing(run, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("SSD_DATA", raising=False)
    archive = banana.ARCHIVE._replace(urls=("http://127.0.0.1:9/banana-detection.zip",))
    monkeypatch.setattr(banana, "ARCHIVE", archive)
    outcome = run("ssd-train", "data=banana", *QUICK, "hydra.run.dir=run")
    assert outcome.exit_code == 1
    assert "banana-detection.zip" in outcome.error
    assert str(tmp_path / "data/banana") in outcome.error
    assert "Traceback" not in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_traceback_on_request(run, bananas: Path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="batch_size"):
        run("ssd-train", "data=banana", f"data.root={bananas}", *QUICK, "batch_size=0")


def test_an_output_folder_that_cannot_be_made(run, bananas: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *QUICK, "hydra.run.dir=file/run")
    assert outcome.exit_code == 1
    assert "file" in outcome.message


@pytest.mark.parametrize("spoil", ["annotation", "picture"])
def test_bad_data_is_named_before_training(run, tmp_path: Path, spoil: str):
    root = write_banana_folder(tmp_path / "bad", num_train=4, num_val=2, side=64)
    if spoil == "annotation":
        bad = root / "bananas_train" / "label.csv"
        bad.write_text("img_name,label,xmin,ymin,xmax,ymax\n0.png,0,30,5,20,25\n")
    else:
        bad = root / "bananas_train" / "images" / "1.png"
        bad.write_bytes(bad.read_bytes()[:200])
    outcome = run("ssd-train", "data=banana", f"data.root={root}", *QUICK, "hydra.run.dir=run")
    assert outcome.exit_code == 1
    assert str(bad) in outcome.message
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", ["ssd-evaluate", "ssd-predict"])
@pytest.mark.parametrize("value", ["[a,b]", "{a:1}", "''"])
def test_values_that_name_no_checkpoint(run, tmp_path: Path, name: str, value: str):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    outcome = run(name, f"checkpoint={value}", *(["source=x.png"] if name == "ssd-predict" else []))
    assert outcome.exit_code == 1
    assert outcome.message.startswith(f"{name}: checkpoint: expected ")


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_folder_that_refers_to_no_key(run, tmp_path: Path, key: str):
    sweep = ["-m"] if key == "hydra.sweep.dir" else []
    outcome = run("ssd-compare", "runs=x", *sweep, key + "=out${nothing}")
    assert outcome.exit_code == 1
    assert outcome.error.startswith(f"ssd-compare: {key}: ")
    assert len(outcome.error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_an_empty_name_of_a_folder(run, tmp_path: Path, key: str):
    """A variable of a script that is not set would fill the working folder."""
    sweep = ["-m"] if key == "hydra.sweep.dir" else []
    outcome = run("ssd-compare", "runs=x", *sweep, f"{key}=")
    assert outcome.exit_code == 1
    assert outcome.error.startswith(f"ssd-compare: {key}: expected a folder, got none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ssd-check", "ssd-boxes"])
def test_a_command_that_resumes_no_sweep(run, name: str):
    outcome = run(name, "resume_sweep=runs/x", "hydra.run.dir=run")
    assert outcome.exit_code == 1
    assert outcome.message.startswith(f"{name}: resume_sweep: expected null, got runs/x. ")


@pytest.mark.parametrize("key", ["resume", "resume_sweep"])
def test_a_folder_to_resume_that_is_given_with_a_plus(run, key: str):
    outcome = run("ssd-train", f"++{key}=nothing_here")
    assert outcome.exit_code == 1
    assert outcome.message.startswith(f"ssd-train: {key}: expected ")
    assert "nothing_here" in outcome.message


@pytest.mark.filterwarnings("error:Callback RunFolderGuard")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ssd-compare", ["runs=loop"]),
        ("ssd-compare", ["runs=.", "hydra.run.dir=loop"]),
        ("ssd-train", ["data=banana", "data.root=loop", "hydra.run.dir=run"]),
        ("ssd-train", ["resume=loop"]),
        ("ssd-check", ["data=voc_folder", "data.root=loop", "hydra.run.dir=run"]),
        ("ssd-predict", ["checkpoint=loop", "source=x.png", "hydra.run.dir=run"]),
        ("ssd-predict", ["checkpoint=x.ckpt", "source=loop", "hydra.run.dir=run"]),
        ("ssd-evaluate", ["detections=loop", "hydra.run.dir=run"]),
    ],
)
def test_a_link_that_leads_to_itself(run, tmp_path: Path, name: str, arguments: list[str]):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "x.png").write_bytes(b"")
    outcome = run(name, *arguments)
    assert outcome.exit_code == 1
    assert "loop" in outcome.message


def test_a_picture_that_is_a_link_to_itself(tmp_path: Path):
    (tmp_path / "a.png").symlink_to("a.png")
    assert find_pictures([str(tmp_path)]) == [tmp_path / "a.png"]  # An error of the reader, that does not stop others.


def test_a_working_folder_that_hydra_would_resolve(run, tmp_path: Path, monkeypatch):
    (tmp_path / "${x}").mkdir()
    monkeypatch.chdir(tmp_path / "${x}")
    outcome = run("ssd-compare", "runs=x")
    assert outcome.message.startswith("ssd-compare: working folder: ")
    assert "${x}" in outcome.message


@pytest.mark.parametrize("name", ["ssd-evaluate", "ssd-predict"])
def test_files_that_are_no_checkpoint(run, tmp_path: Path, name: str):
    more = ["source=x.png"] if name == "ssd-predict" else []
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for file in ("missing.ckpt", "text.ckpt", "other.ckpt"):
        outcome = run(name, f"checkpoint={file}", *more)
        assert outcome.exit_code == 1
        assert outcome.message.startswith(f"{name}: ")
        assert file in outcome.message


def test_a_loss_that_becomes_infinite(run, bananas: Path, tmp_path: Path):
    outcome = run(
        "ssd-train", "data=banana", f"data.root={bananas}", *QUICK, "optimizer=sgd", "optimizer.lr=1e6",
        "lr_scheduler=constant", "trainer.max_epochs=20", "hydra.run.dir=run",
    )  # fmt: skip
    assert outcome.exit_code == 1
    assert "learning rate 1e+06" in outcome.error
    assert ".png" in outcome.error
    saved = torch.load(tmp_path / "run" / "non_finite_batch.pt", weights_only=True)
    assert saved["batch"]["images"].dtype == torch.uint8


def test_only_errors_of_the_user_are_explained():
    assert errors.explain(ValueError("a bad value")) == "a bad value"
    assert errors.explain(AssertionError("ours")) is None
    assert errors.explain(TypeError("ours")) is None
