"""Classes that a checkpoint may name: those of this project, and those of packages that the caller trusts."""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import QUICK
from detector_config import CONFIG, MODEL
from hydra.utils import instantiate
from PIL import Image

from ssd_lightning.structures import Batch, Objects
from ssd_lightning.training.callbacks import load_non_finite_batch
from ssd_lightning.training.checkpoint import (
    CONFIG_KEY,
    load_detector,
    rebuild,
    rebuild_part,
    refuse_old_targets,
    require_package_names,
)
from ssd_lightning.training.module import SSDModule

PACKAGE = """
import os
from pathlib import Path
from ssd_lightning import Tiny

class Backbone(Tiny):
    pass

class Stranger:
    class Inner:
        pass

    @staticmethod
    def method():
        raise SystemExit("this was run")

def function(**arguments):
    raise SystemExit("this was run")

INSTANCE = Stranger()
"""


@pytest.fixture
def my_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with a backbone, as a user would write it."""
    package = tmp_path / "code" / "my_project"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    (package / "sub.py").write_text(
        "from pathlib import Path as ImportedFromElsewhere\nfrom ssd_lightning import SSD\nclass Neck: pass\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    yield "my_project"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_project"]:
        del sys.modules[name]


def own_config() -> dict[str, Any]:
    """The config of a detector with the backbone of the package."""
    config = copy.deepcopy(CONFIG)
    config["model"]["backbone"]["_target_"] = "my_project.Backbone"
    return config


def own_checkpoint(path: Path, **more: Any) -> Path:
    module = SSDModule(instantiate(own_config()["model"], _convert_="all"))
    torch.save({"state_dict": module.state_dict(), CONFIG_KEY: own_config(), **more}, path)
    return path


REFUSAL = "checkpoint: expected only classes of ssd_lightning, got my_project.Backbone in "
ADVICE = ". Try trusted_packages=[my_project] if you trust that code.\n"


@pytest.mark.usefixtures("my_project", "empty_figures")
@pytest.mark.slow
def test_a_backbone_of_the_user_trains_and_its_checkpoint_loads_by_name(run, bananas: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    data = ["data=banana", f"data.root={bananas}"]
    outcome = run(
        "ssd-train", *data, *QUICK, "debug=fast", "backbone._target_=my_project.Backbone", "hydra.run.dir=run"
    )
    assert outcome.exit_code == 0, outcome.error
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with pytest.raises(ValueError, match=r"my_project\.Backbone"):
        load_detector(best)
    assert type(load_detector(best, trusted_packages=["my_project"]).model.backbone).__module__ == "my_project"
    for command in (
        ["ssd-predict", "source=x.png", "draw=false", "device=cpu"],
        ["ssd-evaluate", "device=cpu", "num_workers=0"],
    ):
        refused = run(*command, f"checkpoint={best}")
        assert refused.exit_code == 1
        assert f"{REFUSAL}{best}{ADVICE}" in refused.error
        outcome = run(*command, f"checkpoint={best}", "trusted_packages=[my_project]")
        assert outcome.exit_code == 0, outcome.error
    refused = run(*command, f"checkpoint={best}", "trusted_packages=my_project")
    assert refused.exit_code == 1
    assert "trusted_packages: expected a list of names, got my_project" in refused.error


@pytest.mark.usefixtures("my_project")
def test_a_file_cannot_trust_itself(tmp_path: Path) -> None:
    names = {"trusted_packages": ["my_project"]}
    path = own_checkpoint(tmp_path / "file.ckpt", **names)
    content = torch.load(path)
    content[CONFIG_KEY] |= names
    content[CONFIG_KEY]["config"] |= names
    torch.save(content, path)
    assert sys.modules.pop("my_project")
    with pytest.raises(ValueError, match=r"my_project\.Backbone"):
        load_detector(path)
    assert "my_project" not in sys.modules, "code of the package was run"
    content[CONFIG_KEY]["model"] |= names
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"my_project\.Backbone"):
        load_detector(path)


@pytest.mark.parametrize(
    "target",
    [
        "my_project",
        "my_project.",
        "my_project..os.system",
        "my_project.nothing.There",
        "my_project.Nothing",
        "my_project.sub",  # a module
        "my_project.function",
        "my_project.INSTANCE",
        "my_project.INSTANCE.method",
        "my_project.Stranger.method",
        "my_project.os.system",
        "my_project.Path",
        "my_project.sub.ImportedFromElsewhere",
        "my_project.sub.SSD",
        "my_project_of_somebody_else.Model",
        "os.system",
        "subprocess.Popen",
        "torch.nn.Linear",
    ],
)
def test_only_classes_that_a_trusted_package_defines_are_built(my_project: str, tmp_path: Path, target: str) -> None:
    config = {"_target_": target, "_args_": [f"touch '{tmp_path / 'was run'}'"]}
    for nested in (config, {**MODEL, "backbone": config}):
        with pytest.raises(ValueError, match=r"^checkpoint: expected .* class") as caught:
            rebuild(nested, "some.ckpt", [my_project])
        assert f"got {target} in some.ckpt" in str(caught.value)
    assert not (tmp_path / "was run").exists()


def test_classes_of_a_trusted_package_are_built(my_project: str) -> None:
    assert rebuild({"_target_": "my_project.sub.Neck"}, "some.ckpt", (my_project,)).__module__ == "my_project.sub"
    assert type(rebuild({"_target_": "my_project.Stranger.Inner"}, "some.ckpt", {my_project})).__name__ == "Inner"


@pytest.mark.parametrize(
    "target", ["subprocess.Popen", "os.system", "builtins.eval", "torch.hub.load", "Backbone", "", "a b.C", None]
)
def test_nobody_is_advised_to_trust_packages_of_others(target: object) -> None:
    with pytest.raises(ValueError, match=r"got .* in some\.ckpt; refused$"):
        rebuild({"_target_": target}, "some.ckpt")


@pytest.mark.parametrize(
    "names", ["my_project", None, 5, [5], ["my_project.sub"], [""], ["my-project"], ["subprocess"], [None]], ids=str
)
def test_trusted_packages_are_a_list_of_names(names: Any) -> None:
    with pytest.raises(ValueError, match=r"trusted_packages: expected .* got "):
        require_package_names(names)


def test_parts_and_bad_batches_too(my_project: str, tmp_path: Path) -> None:
    config = own_config()
    config["config"] = {"matcher": {"_target_": "my_project.sub.Neck"}}
    with pytest.raises(ValueError, match=r"my_project\.sub\.Neck"):
        rebuild_part({CONFIG_KEY: config}, "matcher", "some.ckpt")
    assert type(rebuild_part({CONFIG_KEY: config}, "matcher", "some.ckpt", [my_project])).__name__ == "Neck"

    no = torch.zeros(1, 1, dtype=torch.bool)
    objects = Objects(torch.zeros(1, 1, 4), no.long(), difficult=no, valid=no)
    batch = Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), objects, torch.arange(1), torch.full((1, 2), 64))
    content = {"batch": {**batch._asdict(), "objects": objects._asdict()}, "evaluating": [], "precision": "32-true"}
    path = own_checkpoint(tmp_path / "non_finite_batch.pt", **content)
    saved = torch.load(path)
    parts = {"matcher": {"_target_": "ssd_lightning.BoxMatcher"}, "loss": {"_target_": "ssd_lightning.MultiBoxLoss"}}
    saved[CONFIG_KEY]["config"] = parts
    torch.save(saved, path)
    with pytest.raises(ValueError, match=r"my_project\.Backbone"):
        load_non_finite_batch(path)
    again = load_non_finite_batch(path, trusted_packages=[my_project])
    assert again.module.training_step(again.batch, 0).isfinite()


# --- names of classes before version 0.2 ---


@pytest.mark.parametrize(
    "target",
    [
        "ssd_lightning.model.SSD",
        "ssd_lightning.backbones.tiny.Tiny",
        "ssd_lightning.data.banana.Bananas",
        "ssd_lightning.callbacks.StopOnSignal",
        "ssd_lightning.schedules.one_cycle",
    ],
)
def test_old_names_are_refused_in_words(target: str) -> None:
    for config in ({"_target_": target}, {"a": [{"b": {"_target_": target}}], "c": "${d}"}):
        with pytest.raises(ValueError, match=r"0\.2 or later, got some/file\.ckpt.*Try training again") as caught:
            refuse_old_targets(config, Path("some/file.ckpt"))
        assert target in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "ssd_lightning.SSD",
        "ssd_lightning.one_cycle",
        "ssd_lightning.detector.model.SSD",
        "ssd_lightning.model.Nothing",
        "torch.optim.AdamW",
        "my_project.SSD",
        "ssd_lightning",
        "",
        None,
        5,
    ],
)
def test_other_names_are_not_old(target: object) -> None:
    refuse_old_targets({"a": [{"_target_": target}]}, "some.ckpt")
    with pytest.raises(ValueError, match=r"some\.ckpt"):
        refuse_old_targets({"a": [{"_target_": target}, {"_target_": "ssd_lightning.model.SSD"}]}, "some.ckpt")


def test_a_checkpoint_with_old_names_is_refused(tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIG)
    config["model"]["_target_"] = "ssd_lightning.model.SSD"
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {}, CONFIG_KEY: config}, path)
    module = SSDModule(instantiate(MODEL, _convert_="all"), config=CONFIG)
    with pytest.raises(ValueError, match=r"expected a file of ssd_lightning 0\.2 or later, got .*old\.ckpt"):
        load_detector(path)
    with pytest.raises(ValueError, match=r"expected a file of ssd_lightning 0\.2 or later"):
        module.on_load_checkpoint(torch.load(path))
