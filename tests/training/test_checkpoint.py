"""Checkpoints are written as a whole, need no other file, and cannot run code."""

import copy
import errno
import itertools
import multiprocessing
import os
import pickle
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from banana_folder import write_banana_folder
from detector_config import CONFIG, MODEL, POSTPROCESS
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from ssd_lightning.data.bananas.dataset import Bananas
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.run_folder import remove_unfinished_files
from ssd_lightning.training.checkpoint import (
    CONFIG_KEY,
    load_detector,
    read_checkpoint,
    rebuild,
    rebuild_part,
)
from ssd_lightning.training.checkpoint_files import AtomicCheckpointIO
from ssd_lightning.training.module import SSDModule

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:lightning", "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*deprecated.*"
)


def new_trainer(max_steps: int) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[SSDModule, Path]:
    """A module after two steps, and its checkpoint as ``ssd-train`` writes it."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    module = SSDModule(instantiate(MODEL, _convert_="all"), config=CONFIG)
    root = write_banana_folder(folder / "bananas", num_train=4, num_val=1, side=64)
    trainer = new_trainer(max_steps=2)
    trainer.fit(module, DetectionDataModule(Bananas(root), image_size=64, batch_size=2, num_workers=0))
    trainer.save_checkpoint(folder / "last.ckpt")
    return module.eval(), folder / "last.ckpt"


@pytest.fixture
def content(trained: tuple[SSDModule, Path]) -> dict[str, Any]:
    """The content of the checkpoint, which a test may change."""
    return copy.deepcopy(torch.load(trained[1], weights_only=True))


# --- writing ---


class FullDisk:
    """A torch.save that fails after some bytes."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, checkpoint: object, file: Any) -> None:
        file.write(b"half of a checkpoint")
        file.flush()
        raise self.error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path, writer = tmp_path / "last.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint({"epoch": 1}, path)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", FullDisk(error))
        with pytest.raises(type(error)):
            writer.save_checkpoint({"epoch": 2}, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]
    writer.save_checkpoint({"epoch": 3}, path)
    assert read_checkpoint(path) == {"epoch": 3}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_failure_at_the_first_time_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "save", FullDisk(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def two_weights(tmp_path: Path) -> Path:
    """A good checkpoint in a folder of its own."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(2)}, path)
    return path


MANY = torch.ones(100_000)


def test_a_disk_that_is_really_full(two_weights: Path) -> None:
    """The file that is written is the system's own full device."""
    before = two_weights.read_bytes()
    two_weights.with_name(f".last.ckpt.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"^checkpoint: {two_weights} could not be written: No space left on device$"):
        AtomicCheckpointIO().save_checkpoint({"weights": MANY}, two_weights)
    assert two_weights.read_bytes() == before
    assert [entry.name for entry in two_weights.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("limit", [0, 100, 200_000])
def test_a_limit_of_the_system(two_weights: Path, limit: int) -> None:
    """Files may not grow beyond a limit, as under a quota."""
    before, (former, hard) = two_weights.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(OSError, match=rf"^checkpoint: {two_weights} could not be written: File too large$"):
            AtomicCheckpointIO().save_checkpoint({"weights": MANY}, two_weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (former, hard))
    assert two_weights.read_bytes() == before
    assert [entry.name for entry in two_weights.parent.iterdir()] == ["last.ckpt"]


def test_a_folder_that_may_not_be_written(two_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="could not be written: Permission denied"):
        AtomicCheckpointIO().save_checkpoint({"weights": MANY}, two_weights)


def test_an_error_of_another_kind_stays_what_it_is(two_weights: Path) -> None:
    with pytest.raises(AttributeError, match="local object"):
        AtomicCheckpointIO().save_checkpoint({"function": lambda: None}, two_weights)
    assert read_checkpoint(two_weights)["weights"].tolist() == [0, 0]


RUN = dict.fromkeys(("state_dict", "optimizer_states", "loops", "pytorch-lightning_version"))
"""Keys that Lightning adds to a checkpoint."""


def write_for_ever(path: Path) -> None:
    torch.set_num_threads(1)  # A forked process has lost the threads that torch would wait for.
    for number in itertools.count():
        AtomicCheckpointIO().save_checkpoint({**RUN, "number": number, "weights": torch.full((300_000,), number)}, path)


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    """The writer is killed at a random moment. Its unfinished files are removed when the run is resumed."""
    path, rng, left = tmp_path / "checkpoints/last.ckpt", random.Random(0), 0
    AtomicCheckpointIO().save_checkpoint({**RUN, "number": 0, "weights": torch.zeros(300_000)}, path)
    for _ in range(10):
        writer = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(path,))
        writer.start()
        former, until = set(path.parent.glob(".*.part")), time.monotonic() + 20
        while set(path.parent.glob(".*.part")) <= former and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.01))
        writer.kill()
        writer.join()
        content = read_checkpoint(path)
        assert (content["weights"] == content["number"]).all()
        left += len(list(path.parent.glob(".*.part")))
    assert left > 0, "no kill came while the file was written"
    remove_unfinished_files(tmp_path)
    assert AtomicCheckpointIO().load_checkpoint(path)["number"] == content["number"]
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]


def test_folders_are_made(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(3)}, str(tmp_path / "a" / "b" / "last.ckpt"))
    assert read_checkpoint(tmp_path / "a" / "b" / "last.ckpt")["weights"].tolist() == [0, 1, 2]


# --- reading a detector ---


def test_a_detector_comes_back_as_it_was(trained: tuple[SSDModule, Path]) -> None:
    module, path = trained
    detector = load_detector(path)
    assert detector.classes == ("banana",)
    assert not detector.model.training
    assert (detector.postprocess.score_threshold, detector.postprocess.max_detections) == (0.02, 50)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = module.model(images), detector.model(images)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.offsets, expected.offsets)
    for name, tensor in module.model.state_dict().items():
        assert torch.equal(detector.model.state_dict()[name], tensor)


@pytest.mark.slow
def test_another_process_in_another_folder_needs_nothing_but_the_file(
    trained: tuple[SSDModule, Path], tmp_path: Path
) -> None:
    module, path = trained
    (tmp_path / "elsewhere").mkdir()
    path = path.rename(tmp_path / "elsewhere" / "renamed.ckpt")
    try:
        torch.manual_seed(1)
        images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        torch.save(images, tmp_path / "elsewhere" / "images.pt")
        program = """if True:
            import torch
            from ssd_lightning.training.checkpoint import load_detector
            detector = load_detector("renamed.ckpt")
            with torch.no_grad():
                detections = detector.postprocess(detector.model(torch.load("images.pt")), detector.model.default_boxes)
            torch.save({**detections._asdict(), "classes": list(detector.classes)}, "detections.pt")
        """
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "elsewhere", check=True)
    finally:
        path.rename(trained[1])
    found = torch.load(tmp_path / "elsewhere" / "detections.pt")
    with torch.no_grad():
        expected = load_detector(trained[1]).postprocess(module.model(images), module.model.default_boxes)
    assert found.pop("classes") == ["banana"]
    assert expected.valid.any()
    for name, tensor in expected._asdict().items():
        torch.testing.assert_close(found[name], tensor)


def test_settings_of_the_post_processing_can_be_replaced(trained: tuple[SSDModule, Path]) -> None:
    postprocess = load_detector(trained[1], {"score_threshold": 0.5, "nms_threshold": 0.3}).postprocess
    assert (postprocess.score_threshold, postprocess.nms_threshold, postprocess.max_detections) == (0.5, 0.3, 50)


def test_rebuild_gives_plain_python_to_constructors() -> None:
    model = rebuild(MODEL, "some.ckpt")
    assert isinstance(model, SSD)
    assert isinstance(model.backbone, Tiny)
    assert model.num_classes == 1
    assert isinstance(rebuild(POSTPROCESS, "some.ckpt"), PostProcess)
    of_a_file = {**POSTPROCESS, "_target_": "ssd_lightning.detector.postprocess.PostProcess"}
    assert isinstance(rebuild(of_a_file, "some.ckpt"), PostProcess)


# --- files that are something else ---


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match="checkpoint: ") as caught:
        load_detector(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "gone.ckpt")
    assert "best.ckpt" in refusal(tmp_path)


PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"x", "it is not a file of torch.save"),
        (b"epoch: 3\n", "it is not a file of torch.save"),
        (PNG, "it is not a file of torch.save"),
        (b"\x80", "it is not a file of torch.save"),
        (bytes(range(256)), "it is not a file of torch.save"),
        (b"PK\x03\x04 no zip", "it is damaged or incomplete"),
        (pickle.dumps([1], protocol=2)[:-2], "it is damaged or incomplete"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "file.ckpt").write_bytes(content)
    assert refusal(tmp_path / "file.ckpt").endswith(f"file.ckpt, which cannot be read: {reason}")


@pytest.mark.parametrize("is_new", [True, False])
def test_half_of_a_checkpoint(tmp_path: Path, content: dict[str, Any], is_new: bool) -> None:
    path = tmp_path / "file.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=is_new)
    whole = path.read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(path).endswith("it is damaged or incomplete")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "file.ckpt").touch()
    monkeypatch.setattr(torch, "load", refuse)
    assert refusal(tmp_path / "file.ckpt").endswith("cannot be read: Permission denied")


@pytest.mark.parametrize("is_new", [True, False])
def test_a_whole_module(tmp_path: Path, is_new: bool) -> None:
    """torch's own message advises to read such a file without a check."""
    torch.save(torch.nn.Linear(2, 2), tmp_path / "file.ckpt", _use_new_zipfile_serialization=is_new)
    text = refusal(tmp_path / "file.ckpt")
    assert "it holds a torch.nn.modules.linear.Linear, but only tensors and plain data are read" in text
    assert "weights_only" not in text


@pytest.mark.parametrize("kind", ["list", "Tensor"])
def test_a_torch_file_of_something_else(tmp_path: Path, kind: str) -> None:
    torch.save({"list": [1, 2], "Tensor": torch.zeros(2)}[kind], tmp_path / "file.ckpt")
    assert f"which holds a {kind}" in refusal(tmp_path / "file.ckpt")


OTHERS = [
    None,
    "a text",
    {},
    {"model": MODEL, "classes": ["banana"]},
    {**CONFIG, "model": "SSD"},
    {**CONFIG, "postprocess": None},
    {**CONFIG, "classes": 5},
    {**CONFIG, "model": POSTPROCESS},
]


@pytest.mark.parametrize("config", OTHERS)
def test_a_checkpoint_of_another_project(tmp_path: Path, content: dict[str, Any], config: object) -> None:
    content[CONFIG_KEY] = config
    if config is None:
        del content[CONFIG_KEY]
    torch.save(content, tmp_path / "file.ckpt")
    assert "expected a file of ssd-train" in refusal(tmp_path / "file.ckpt")


def test_classes_that_the_model_does_not_have(tmp_path: Path, content: dict[str, Any]) -> None:
    content[CONFIG_KEY]["classes"] = ["banana", "apple"]
    torch.save(content, tmp_path / "file.ckpt")
    assert "expected the names of 1 classes, got 2" in refusal(tmp_path / "file.ckpt")


def test_weights_of_another_model(tmp_path: Path, content: dict[str, Any]) -> None:
    """The message has the first differences and the number of others."""
    content[CONFIG_KEY]["model"]["backbone"]["channels"] = 16
    torch.save(content, tmp_path / "file.ckpt")
    text = refusal(tmp_path / "file.ckpt")
    # Two convolutions with batch norm in three blocks, and what reads them.
    assert "backbone.levels.1.0.weight has the shape [8, 8, 3, 3], and [16, 8, 3, 3] in the model" in text
    assert re.search(r" and \d\d more$", text)
    assert text.count(" has the shape ") == 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weights: weights.popitem(), "head.localization.4.bias is missing"),
        (lambda weights: weights.update({"model.extra": torch.zeros(1)}), "extra is not in the model"),
        (lambda weights: weights.clear(), "backbone."),
    ],
)
def test_weights_that_lack_or_have_something(
    tmp_path: Path, content: dict[str, Any], change: Any, expected: str
) -> None:
    change(content["state_dict"])
    torch.save(content, tmp_path / "file.ckpt")
    assert f"file.ckpt: {expected}" in refusal(tmp_path / "file.ckpt")


@pytest.mark.parametrize("weights", [None, "text", ["list"], {"model.weight": "text"}])
def test_no_weights(tmp_path: Path, content: dict[str, Any], weights: object) -> None:
    content["state_dict"] = weights
    if weights is None:
        del content["state_dict"]
    torch.save(content, tmp_path / "file.ckpt")
    assert "expected weights by name" in refusal(tmp_path / "file.ckpt")


@pytest.mark.parametrize("place", ["model", "backbone", "postprocess"])
def test_an_argument_that_is_not_known(tmp_path: Path, content: dict[str, Any], place: str) -> None:
    config = content[CONFIG_KEY]
    (config["model"]["backbone"] if place == "backbone" else config[place])["gone"] = 3
    torch.save(content, tmp_path / "file.ckpt")
    text = refusal(tmp_path / "file.ckpt")
    assert text.endswith("got an unexpected keyword argument 'gone'")
    assert "\n" not in text


def test_settings_of_the_caller_are_no_fault_of_the_file(trained: tuple[SSDModule, Path]) -> None:
    with pytest.raises(InstantiationException, match="score_threshold") as caught:
        load_detector(trained[1], {"score_threshold": 2})
    assert "last.ckpt" not in str(caught.value)


def test_parts_of_the_training(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"checkpoint: .* matcher .* some\.ckpt"):
        rebuild_part(content, "matcher", "some.ckpt")
    content[CONFIG_KEY]["config"]["matcher"] = {
        "_target_": "ssd_lightning.BoxMatcher",
        "iou_threshold": 0.4,
    }
    assert rebuild_part(content, "matcher", "some.ckpt").iou_threshold == 0.4
    del content[CONFIG_KEY]["config"]
    with pytest.raises(ValueError, match="matcher"):
        rebuild_part(content, "matcher", "some.ckpt")


# --- resuming a run ---


def resume(path: Path, model: dict[str, Any], bananas: Path) -> int:
    """Resume a run for a step, and return the number of its last step."""
    config = {**CONFIG, "model": model}
    trainer = new_trainer(max_steps=3)
    data = DetectionDataModule(Bananas(bananas), image_size=64, batch_size=2, num_workers=0)
    trainer.fit(SSDModule(instantiate(model, _convert_="all"), config=config), data, ckpt_path=path, weights_only=True)
    return trainer.global_step


def test_a_run_is_resumed_with_its_own_model(trained: tuple[SSDModule, Path], bananas: Path) -> None:
    assert resume(trained[1], MODEL, bananas) == 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_classes": 2}, "model.num_classes is 1 there and 2 here"),
        ({"image_size": 128}, "model.image_size is 64 there and 128 here"),  # to which the weights would fit
        ({"backbone": {**MODEL["backbone"], "channels": 16}}, "model.backbone.channels is 8 there and 16 here"),
        (
            {"backbone": {"_target_": "ssd_lightning.Tiny"}},
            "channels is 8 there and unset here",
        ),
    ],
)
def test_a_run_is_not_resumed_with_another_model(
    trained: tuple[SSDModule, Path], bananas: Path, change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=rf"checkpoint: .*{re.escape(str(trained[1]))}") as caught:
        resume(trained[1], {**MODEL, **change}, bananas)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content.clear(), "which lacks state_dict, optimizer_states, loops, "),
        (lambda content: content.pop("optimizer_states"), "which lacks optimizer_states"),
        (lambda content: content.update(state_dict="x"), "weights by name"),
        (lambda content: content["state_dict"].popitem(), "model.head.localization.4.bias is missing"),
        (lambda content: content[CONFIG_KEY].update(model={}), "model._target_ is unset there"),
    ],
)
def test_what_no_run_can_be_resumed_from(
    tmp_path: Path, bananas: Path, content: dict[str, Any], change: Any, expected: str
) -> None:
    change(content)
    torch.save(content, tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match=f"^checkpoint: .*{re.escape(str(tmp_path / 'file.ckpt'))}") as caught:
        resume(tmp_path / "file.ckpt", MODEL, bananas)
    assert expected in str(caught.value)


# --- files that would run code ---


class Command:
    """An object whose pickle calls os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_pickle_that_runs_a_command_is_not_run(tmp_path: Path, content: dict[str, Any]) -> None:
    path, marker = tmp_path / "file.ckpt", tmp_path / "was run"
    content["hyper_parameters"] = Command(f"touch '{marker}'")
    torch.save(content, path)
    assert "cannot be read" in refusal(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file was not dangerous"


def test_nor_is_a_bare_pickle(tmp_path: Path) -> None:
    (tmp_path / "file.ckpt").write_bytes(pickle.dumps(Command(f"touch '{tmp_path / 'was run'}'"), protocol=2))
    assert "cannot be read" in refusal(tmp_path / "file.ckpt")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "pathlib.Path",
        "torch.hub.load",
        "torch.nn.Linear",
        "hydra.utils.instantiate",
        "ssd_lightning",
        "ssd_lightning.",
        "ssd_lightning..os.system",
        "ssd_lightning.nothing.There",
        "ssd_lightning.detector.model.Nothing",
        "ssd_lightning.detector.model",  # a module
        "ssd_lightning.training.checkpoint.os.system",  # a function of another module
        "ssd_lightning.training.checkpoint.Path",  # a class of another module
        "ssd_lightning.detector.model.nn.Linear",
        "ssd_lightning.training.checkpoint.read_checkpoint",  # a function of this project
        "ssd_lightning.training.module.SSDModule.load_from_checkpoint",
        "ssd_lightning_of_somebody_else.Model",
        "${oc.env:HOME}",
        "",
        5,
        None,
        ["ssd_lightning.detector.model.SSD"],
    ],
)
@pytest.mark.parametrize("place", ["model", "backbone", "postprocess"])
def test_only_classes_of_this_project_are_built(
    tmp_path: Path, content: dict[str, Any], target: object, place: str
) -> None:
    config = content[CONFIG_KEY]
    node = config["model"]["backbone"] if place == "backbone" else config[place]
    node.clear()
    node |= {"_target_": target, "_args_": [f"touch '{tmp_path / 'was run'}'"]}
    torch.save(content, tmp_path / "file.ckpt")
    assert re.search("expected (only classes|a class) of|expected a plain config", refusal(tmp_path / "file.ckpt"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.ckpt"]


@pytest.mark.parametrize(
    "target",
    [
        "ssd_lightning.MetricsFile",
        "ssd_lightning.OnnxDetector",
        "ssd_lightning.cli.folder_lock.FolderLock",
        "ssd_lightning.deploy.video.VideoWriter",
    ],
)
def test_classes_that_write_or_read_other_files_are_not_built(target: str) -> None:
    with pytest.raises(ValueError, match=rf"^checkpoint: expected .*, got {re.escape(target)} in some\.ckpt; refused$"):
        rebuild({"_target_": target}, "some.ckpt")


def touch(path: Path) -> dict[str, Any]:
    return {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": [str(path)]}]}


def as_text(config: object) -> str:
    """Write a dictionary or list in OmegaConf's grammar for resolvers, without quotes."""
    if isinstance(config, dict):
        return "{" + ", ".join(f"{key}: {as_text(value)}" for key, value in config.items()) + "}"
    return "[" + ", ".join(map(as_text, config)) + "]" if isinstance(config, list) else str(config)


@pytest.mark.parametrize(
    "hidden",
    [
        lambda evil: evil,
        lambda evil: [[evil]],
        lambda evil: {"deep": {"er": evil}},
        lambda evil: (evil,),
        lambda evil: [(evil,)],
        lambda evil: {"deep": (evil,)},
        lambda evil: "${oc.create:" + as_text(evil) + "}",
        lambda evil: ["${oc.create:" + as_text(evil) + "}"],
    ],
    ids=["plain", "list", "dict", "tuple", "tuple in list", "tuple in dict", "resolver", "resolver in list"],
)
def test_nothing_is_built_in_a_place_where_hydra_would_look(tmp_path: Path, hidden: Any) -> None:
    """Hydra looks into tuples, and reads text with ``${…}`` as a config.

    Without a check, each of these configs would write a file, although it is in an argument that the class lacks.
    """
    marker = tmp_path / "was_run"
    config = {**POSTPROCESS, "x": hidden(touch(marker))}
    with pytest.raises(ValueError, match=r"checkpoint: .*some\.ckpt.*; refused"):
        rebuild(config, "some.ckpt")
    assert not marker.exists()


def test_the_files_of_the_test_above_were_dangerous(tmp_path: Path) -> None:
    for number, hide in enumerate((lambda evil: (evil,), lambda evil: "${oc.create:" + as_text(evil) + "}")):
        marker = tmp_path / f"was_run_{number}"
        with pytest.raises(Exception, match="unexpected keyword argument 'x'"):
            instantiate({**POSTPROCESS, "x": hide(touch(marker))}, _convert_="all")
        assert marker.exists()
