"""Names of files on the command line: any name, from any folder."""

import contextlib
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from banana_folder import write_banana_folder
from command_line import QUICK, run_command
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from omegaconf import OmegaConf
from PIL import Image
from run_folder import Trained

from ssd_lightning.cli import overrides as paths
from ssd_lightning.cli import train as train_run
from ssd_lightning.cli.commands import TRAIN
from ssd_lightning.cli.overrides import for_search, with_model_of_weights, without_log_file
from ssd_lightning.data.bananas import dataset as banana
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.detector.weights import CONFIG_KEY
from ssd_lightning.training.checkpoint import read_checkpoint

PLAIN = [
    "photos/a.jpg", "fotos/müller.jpg", "IMG (1).jpg", "IMG(1)", "photos/[0-9]*.jpg", "バナナ", "it's.png", 'a"b',
    "a, b.jpg", "2024", "1e3", "true", "0x1F", "c#", "a&b;c", "x{1}", "back\\slash", "ends with \\", "~nobody-here",
    "a=b",
]  # fmt: skip


def read(argument: str) -> object:
    """Return the value of an argument as Hydra reads it."""
    return OverridesParser.create().parse_override(argument).value()


@pytest.mark.parametrize("key", ["source", "data.root", "+data.pictures", "hydra.run.dir"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_path_is_taken_as_it_is_typed(name: str, key: str):
    [argument] = paths.readable([f"{key}={name}"])
    assert read(argument) == name


@pytest.mark.parametrize("plus", ["+", "++"])
@pytest.mark.parametrize(
    "key",
    ["resume", "resume_sweep", "pretrained", "trusted_packages", "hydra.run.dir", "hydra.sweep.dir", "hydra.mode"],
)
def test_a_key_that_a_command_reads_itself_works_with_a_plus(plus: str, key: str):
    """With the plus, ``++resume_sweep=sweep`` would be a key that nothing reads."""
    assert paths.readable([f"{plus}{key}=null", f"source={plus}{key}=x"])[0] == f"{key}=null"


@pytest.mark.parametrize("name", PLAIN)
def test_a_quoted_path_is_read_back(name: str):
    assert read(f"source={paths.quote(name)}") == name
    assert paths.value_of(f"source={paths.quote(Path(name))}") == name


@pytest.mark.parametrize(
    "argument",
    [
        "seed=0,1", "seed=range(0,3)", "loss=choice(focal,multibox)", "loss=glob(*)", "optimizer.lr=interval(0,1)",
        "data.root=glob(*)", "+x=[1,2]", "source=[a.png,'b c.png']", "source='a b'", 'source="a b"',
        "batch_size=4", "resume=null", "pretrained=", "optimizer.lr=1e-3",
        "x=null,[1,2]", "~data.seed", "~data.seed=1", "--config-dir=ü", "-m", "design", "optimizer.lr=[1", "a b",
        "source=a\\ b", "x={a:1}", "hydra/launcher=submitit_local",
    ],
)  # fmt: skip
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_what_is_meant_for_hydra_stays_as_it_is(argument: str, sweep: list[str]):
    assert paths.readable([*sweep, argument]) == [*sweep, argument]


@pytest.mark.parametrize("values", ["a,b", "${data_dir}/a,${data_dir}/b"])
def test_names_that_are_swept_over_stay_as_they_are(values: str):
    assert paths.readable(["-m", f"data.root={values}"]) == ["-m", f"data.root={values}"]


@pytest.mark.parametrize("sign", ["-m", "--multirun", "hydra.mode=MULTIRUN", "hparams_search=banana_optuna"])
def test_a_comma_separates_what_is_swept_over(sign: str):
    _, argument = paths.readable([sign, "data.root=Äpfel,2024, IMG (1)"])
    value = read(argument)
    assert isinstance(value, ChoiceSweep)
    assert [v.text if isinstance(v, QuotedString) else v for v in value.list] == ["Äpfel", "2024", "IMG (1)"]


def test_other_values_are_quoted_only_where_nothing_else_is_possible():
    assert read(*paths.readable(["name=Übung 1"])) == "Übung 1"
    assert read(*paths.readable(["hydra.sweeper.storage=sqlite:///a?b=1"])) == "sqlite:///a?b=1"
    assert read(*paths.readable(["seed=2024"])) == 2024


def test_a_tilde_is_the_users_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/ü")
    assert read(*paths.readable(["source=~/x"])) == "/home/ü/x"
    assert read(*paths.readable(["checkpoint=~"])) == "/home/ü"
    assert read(*paths.readable(["source=a~/x"])) == "a~/x"


def test_folders_of_data_do_not_depend_on_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "here.json").touch()
    config = OmegaConf.create(
        {
            "data_dir": "${oc.env:NOT_SET,data}",
            "data": {"root": 2024, "annotations": "here.json", "val_annotations": "in_root.json", "pictures": "~/p"},
            "checkpoint": "a.ckpt",
        }
    )
    paths.make_data_folders_absolute(config)
    assert config.data_dir == str(tmp_path / "data")
    assert config.data.root == str(tmp_path / "2024")
    assert config.data.annotations == str(tmp_path / "here.json")
    assert (config.data.val_annotations, config.data.pictures) == ("in_root.json", "~/p")
    assert config.checkpoint == "a.ckpt"


def test_what_lies_in_data_dir_goes_on_saying_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ranks are compared without ``data_dir``, and a later command may set it."""
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.create({"data_dir": "data", "data": {"root": "${data_dir}/banana"}})
    paths.make_data_folders_absolute(config)
    assert OmegaConf.to_container(config)["data"] == {"root": "${data_dir}/banana"}
    assert config.data.root == str(tmp_path / "data/banana")


@pytest.mark.parametrize("content", [{}, {"data": None}, {"data": 5}, {"data_dir": None, "data": {"root": ["a"]}}])
def test_what_is_no_path_is_left_to_others(content: dict):
    config = OmegaConf.create(content)
    OmegaConf.set_struct(config, True)
    paths.make_data_folders_absolute(config)
    assert OmegaConf.to_container(config) == content


def test_ranks_may_have_their_data_elsewhere():
    def shared(root: str, seed: int) -> dict[str, Any]:
        data = {"_target_": "Data", "root": f"{root}/a", "annotations": f"{root}/b.json", "seed": seed}
        datamodule = object.__new__(DetectionDataModule)
        datamodule.train_pictures = datamodule.val_pictures = datamodule.test_pictures = None
        config = OmegaConf.create({"data_dir": root, "data": data, "batch_size": 4})
        return train_run._settings_of_all_ranks(config, datamodule)

    assert shared("/first", 0) == shared("/second", 0)
    assert shared("/first", 0) != shared("/first", 1)


STRANGE = "Läufe (1), a=b [x] it's"


@pytest.mark.usefixtures("empty_figures")
class TestStrangeNames:
    """A run whose folders have strange names, made from relative paths."""

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tmp_path_factory: pytest.TempPathFactory) -> Trained:
        folder = tmp_path_factory.mktemp("work") / STRANGE
        write_banana_folder(folder / "2024", num_train=4, num_val=2, side=64)
        with contextlib.chdir(folder):
            arguments = ["data=banana", "data.root=2024", *QUICK, f"hydra.run.dir={STRANGE}"]
            outcome = run_command("ssd-train", *arguments)
        assert outcome.exit_code == 0, outcome.error
        return Trained(folder / STRANGE, outcome.out)

    @pytest.fixture(autouse=True)
    def no_download(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(banana, "download_and_extract", lambda *args, **kwargs: pytest.fail("a download"))

    @pytest.mark.slow
    def test_the_next_command_can_be_pasted(self, run, trained: Trained, tmp_path: Path):
        told = trained.out.strip().splitlines()[-1]
        (tmp_path / STRANGE).mkdir()
        Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(tmp_path / STRANGE / "IMG (1).png")
        name, checkpoint = shlex.split(told.removeprefix("Next:").replace("source=<a picture or a folder>", ""))
        assert (name, checkpoint) == ("ssd-predict", trained.checkpoint)
        settings = ["num_workers=0", "draw=false"]
        for number, source in enumerate(
            (STRANGE, f"{STRANGE}/IMG (1).png", f"{STRANGE.replace('[x]', '[[]x]')}/*.png")
        ):
            outcome = run(name, checkpoint, f"source={source}", *settings, f"hydra.run.dir={number}")
            assert outcome.exit_code == 0, outcome.error
            [image] = json.loads((tmp_path / str(number) / "predictions.json").read_text())["images"]
            assert image["file_name"] == str(tmp_path / STRANGE / "IMG (1).png")

    def test_data_is_found_from_elsewhere(self, run, trained: Trained, tmp_path: Path):
        folder = trained.folder
        data = str(folder.parent / "2024")
        assert OmegaConf.load(folder / ".hydra/config.yaml").data.root == data
        assert read_checkpoint(folder / "checkpoints/last.ckpt")[CONFIG_KEY]["config"]["data"]["root"] == data
        arguments = [trained.checkpoint, "num_workers=0", "device=cpu"]
        outcome = run("ssd-evaluate", *arguments, "hydra.run.dir=scores (ü)")
        assert outcome.exit_code == 0, outcome.error
        name, *arguments = shlex.split(outcome.out.strip().splitlines()[-1].removeprefix("Next:"))
        assert arguments[0] == f"detections={tmp_path / 'scores (ü)'}"
        assert run(name, *arguments, "hydra.run.dir=again").exit_code == 0
        assert {path.name for path in tmp_path.iterdir()} == {"scores (ü)", "again"}

    def test_a_run_is_resumed_from_elsewhere(self, run, trained: Trained, tmp_path: Path):
        copy = tmp_path / STRANGE
        shutil.copytree(trained.folder, copy)
        outcome = run("ssd-train", f"resume={paths.quote(STRANGE)}", "trainer.max_epochs=2")
        assert outcome.exit_code == 0, outcome.error
        assert json.loads((copy / "summary.json").read_text())["steps"] == 2
        assert os.listdir(tmp_path) == [STRANGE]


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ([], 0),
        (["-m", "seed=1,2"], 1),
        (["seed=1", "--cfg", "job"], 0),
        (["--cfg", "job", "seed=1"], 2),
        (["--cfg", "job"], 2),
        (["--config-dir", "/a=b", "~logger", "seed=2", "--cfg", "job"], 2),
    ],
)
def test_the_choice_of_no_log_file_stands_among_the_values(arguments: list[str], place: int):
    expected = [*arguments[:place], "hydra/job_logging=stdout", *arguments[place:]]
    assert without_log_file(arguments) == expected
    assert without_log_file(expected) == expected


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        (["pretrained=ssd300_vgg16_coco"], ["model=ssd300_torchvision"]),
        (["experiment=a", "pretrained='ssdlite320_mobilenet_v3_large_coco'"], ["model=ssdlite320_torchvision"]),
        (["-m", "pretrained=null,ssd300_vgg16_coco"], ["model=ssd300_torchvision"]),
        (["pretrained=ssd300_vgg16_coco", "model=ssd300_torchvision"], []),
        (["pretrained=./ssd300_vgg16_coco"], []),
        (["pretrained=null"], []),
        (["seed=1"], []),
    ],
)
def test_published_weights_choose_their_model(arguments: list[str], added: list[str]):
    assert with_model_of_weights(TRAIN, arguments) == [*arguments, *added]


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrained=ssd300_vgg16_coco", "model=ssd300_vgg16"],
        ["model=ssd300_torchvision,tiny_ssd", "pretrained=ssd300_vgg16_coco"],
        ["pretrained=ssd300_vgg16_coco,ssdlite320_mobilenet_v3_large_coco"],
    ],
)
def test_published_weights_with_another_model_are_refused(arguments: list[str]):
    with pytest.raises(ValueError, match=r"^(model|pretrained): expected .*got .*Try "):
        with_model_of_weights(TRAIN, arguments)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("hydra.sweeper.params.optimizer.lr=interval(0,1)", '++hydra.sweeper.params.optimizer.lr="interval(0,1)"'),
        ("+hydra.sweeper.params.loss=a,b", '++hydra.sweeper.params.loss="a,b"'),
        ("hydra.sweeper.params.loss='choice(a,b)'", "++hydra.sweeper.params.loss='choice(a,b)'"),
        ("hydra.sweeper.sampler.n_startup_trials=5", "++hydra.sweeper.sampler.n_startup_trials=5"),
        ("hydra.sweeper.objectives.parameters=minimize", "++hydra.sweeper.objectives.parameters=minimize"),
        ("hydra.sweeper.n_trials=3", "hydra.sweeper.n_trials=3"),
        ("optimizer.lr=interval(0,1)", "optimizer.lr=interval(0,1)"),
    ],
)
def test_settings_of_a_search_may_be_new_keys(typed: str, meant: str):
    assert for_search([typed]) == [meant]
