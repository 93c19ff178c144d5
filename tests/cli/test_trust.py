"""Run folders from strangers: what a saved config may name."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from ssd_lightning.cli.trust import refuse_untrusted_config, trusted_packages_in
from ssd_lightning.detector.presets import CONFIG_FOLDER

FILE = Path("run/.hydra/config.yaml")


def refuse(config: Any, *trusted: str) -> None:
    refuse_untrusted_config(config, FILE, "resume", trusted)


@pytest.mark.parametrize(
    "path", sorted(CONFIG_FOLDER.rglob("*.yaml")), ids=lambda path: f"{path.parent.stem}_{path.stem}"
)
def test_every_config_of_the_project_may_be_saved(path: Path):
    config = yaml.safe_load(path.read_text()) or {}
    # Hydra takes these two out before a run's config is saved.
    refuse(
        {"group": {key: config[key] for key in config if key not in ("hydra", "defaults")}}
        if isinstance(config, dict)
        else config
    )


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "torch.hub.load",
        "pandas.read_pickle",
        "numpy.load",
        "builtins.eval",
        "hydra.utils.instantiate",
        "torch.optim.lr_scheduler.partial",
        "lightning.pytorch.callbacks.os.system",
        "lightning.Trainer.fit",
        "ssd_lightning.cli.sweep.jobs.Child",
        "ssd_lightning.run_folder.replace_text",
        "ssd_lightning.os.system",
        "ssd_lightning",
        "${name}",
        "",
        None,
        7,
        ["os.system"],
        {"_target_": "os.system"},
    ],
)
@pytest.mark.parametrize(
    "place", [lambda node: node, lambda node: {"loss": {"alpha": [1, [node]]}}, lambda node: [{"a": node}]]
)
def test_anything_else_is_refused_wherever_it_stands(target: Any, place: Any):
    with pytest.raises(ValueError, match=r"^resume: expected only .* in run/\.hydra/config\.yaml; refused$"):
        refuse(place({"_target_": target}))


@pytest.mark.parametrize(
    "text", ["${oc.create:'{_target_: os.system}'}", "${ oc.decode :x}", "a ${b} ${${c}:d}", "${oc.dict.values:a}"]
)
def test_text_that_becomes_a_config_is_refused(text: str):
    with pytest.raises(ValueError, match=r"^resume: .* refused$"):
        refuse({"matcher": text})


@pytest.mark.parametrize("section", ["hydra", "defaults"])
def test_sections_that_hydra_acts_on_are_refused(section: str):
    with pytest.raises(ValueError, match=f"^resume: .*{section}"):
        refuse({section: {"callbacks": {}}, "resume": None})


def test_a_package_is_trusted_by_its_name_alone():
    config = {"model": {"_target_": "my_project.parts.Backbone"}, "trusted_packages": ["my_project"]}
    with pytest.raises(ValueError, match=r"got my_project\.parts\.Backbone in .* Try trusted_packages=\[my_project\]"):
        refuse(config)
    with pytest.raises(ValueError, match="got my_project"):
        refuse(config, "my_project.parts", "my")
    refuse(config, "my_project")


def test_a_config_from_before_the_public_names_is_told_apart():
    with pytest.raises(ValueError, match=r"resume: .* 0\.2 or later, got .* Try training again"):
        refuse({"model": {"_target_": "ssd_lightning.model.SSD"}})


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], []),
        (["seed=1", "trusted_packages=[a,b_c]"], ["a", "b_c"]),
        (["trusted_packages=a"], ["a"]),
        (['++trusted_packages=["a", b]'], ["a", "b"]),
        (["trusted_packages=[a]", "trusted_packages=[]"], []),
    ],
)
def test_names_are_read_from_the_command_line(arguments: list[str], names: list[str]):
    assert trusted_packages_in(arguments) == names


def test_resume_reads_no_stranger_s_config(run, tmp_path: Path):
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.ckpt").touch()
    proof = tmp_path / "proof"
    evil = {"resume": None, "logger": {"a": {"_target_": "os.mkdir", "path": str(proof)}}}
    OmegaConf.save(OmegaConf.create(evil), folder / ".hydra/config.yaml")
    outcome = run("ssd-train", f"resume={folder}")
    assert outcome.exit_code == 1
    assert "resume: " in outcome.error
    assert "got os.mkdir in " in outcome.error
    assert not proof.exists()
