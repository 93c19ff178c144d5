"""Run folders from strangers: what a saved config may name."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import ssd_lightning
from ssd_lightning.cli.trust import refuse_untrusted_config, refuse_untrusted_sweep, trusted_packages_in
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.run_folder import PARTS, PARTS_OF_TRAINING, config_of_sweep

FILE = Path("run/.hydra/config.yaml")


def refuse(config: Any, *trusted: str) -> None:
    refuse_untrusted_config(config, FILE, "resume", trusted)


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CONFIG_FOLDER.rglob("*.yaml") if "hydra" not in path.relative_to(CONFIG_FOLDER).parts),
    ids=lambda path: f"{path.parent.stem}_{path.stem}",
)
def test_every_config_of_the_project_may_be_saved(path: Path):
    config = yaml.safe_load(path.read_text()) or {}
    # Hydra takes these two out before a run's config is saved.
    if isinstance(config, dict):
        config = {"group": {key: config[key] for key in config if key not in ("hydra", "defaults")}}
    refuse(config)
    with pytest.raises(ValueError, match=r"os\.system"):
        refuse([config, {"_target_": "os.system"}])


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
        # These build what another config or file names, or write where they are told.
        "ssd_lightning.build_model",
        "ssd_lightning.load_detector",
        "ssd_lightning.load_non_finite_batch",
        "ssd_lightning.load_pretrained",
        "ssd_lightning.export_onnx",
        "ssd_lightning.SSDModule",
        "lightning.pytorch.loggers.MLFlowLogger",
        "lightning.pytorch.callbacks.LambdaCallback",
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


def test_what_may_be_built_is_listed():
    """A new public name is on no list by itself."""
    functions = {"choose_progress", "constant", "one_cycle", "warmup_cosine", "warmup_multistep"}
    for name in PARTS | PARTS_OF_TRAINING:
        assert isinstance(getattr(ssd_lightning, name), type) == (name not in functions), name
    texts = [path.read_text() for path in CONFIG_FOLDER.rglob("*.yaml")]
    named = {name for text in texts for name in re.findall(r"_target_: ssd_lightning\.(\w+)$", text, re.MULTILINE)}
    assert named <= PARTS | PARTS_OF_TRAINING


RUN = "${hydra:runtime.output_dir}"
CHECKPOINTS = {"_target_": "ssd_lightning.RunCheckpoint"}


@pytest.mark.parametrize(
    "part",
    [
        {**CHECKPOINTS, "dirpath": "/home/me"},
        {**CHECKPOINTS, "dirpath": "other"},
        {**CHECKPOINTS, "dirpath": f"{RUN}/../other"},
        {**CHECKPOINTS, "dirpath": f"{RUN}/${{data_dir}}"},
        {**CHECKPOINTS, "dirpath": "${data_dir}"},
        {**CHECKPOINTS, "dirpath": ["/home/me"]},
        {**CHECKPOINTS, "dirpath": f"{RUN}/checkpoints", "filename": "../../best"},
        {**CHECKPOINTS, "_args_": ["/home/me"]},
        {"_target_": "ssd_lightning.MetricsFile", "folder": "/home/me/run"},
        {"_target_": "ssd_lightning.StopOnSignal", "checkpoint": "/home/me/last.ckpt"},
        {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "/"},
        {"_target_": "lightning.pytorch.profilers.AdvancedProfiler", "dirpath": "/"},
        {"_target_": "lightning.Trainer", "default_root_dir": "/"},
    ],
)
def test_a_part_that_would_write_elsewhere_is_refused(part: dict[str, Any]):
    with pytest.raises(ValueError, match=r"^resume: expected .* to write inside .* Try trusted_packages="):
        refuse({"matcher": [part]})
    refuse({"matcher": part}, part["_target_"].partition(".")[0])


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", " GITHUB_TOKEN", "${name}"])
def test_secrets_are_not_read(name: str):
    with pytest.raises(ValueError, match=r"^resume: .*; refused$"):
        refuse({"logger": {"_target_": "ssd_lightning.WandbRun", "project": f"${{oc.env:{name}}}"}})


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


# --- sweeps ---


@pytest.mark.parametrize("path", sorted((CONFIG_FOLDER / "hydra").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_setting_of_hydra_may_be_saved(path: Path):
    config = yaml.safe_load(path.read_text())
    refuse_untrusted_sweep({"hydra": {"sweeper": config}}, [], MULTIRUN, [])
    with pytest.raises(ValueError, match=r"os\.system"):
        refuse_untrusted_sweep({"hydra": {"sweeper": [config, {"_target_": "os.system"}]}}, [], MULTIRUN, [])


MULTIRUN = Path("sweep/multirun.yaml")


def refuse_sweep(*arguments: str, config: dict[str, Any] | None = None, trusted: tuple[str, ...] = ()) -> None:
    refuse_untrusted_sweep({"hydra": {}, **(config or {})}, arguments, MULTIRUN, trusted)


@pytest.mark.parametrize(
    "argument",
    [
        "loss=multibox,focal",
        "loss=choice(multibox,focal)",
        "callbacks=[ema,every_n_steps]",
        "experiment=my/recipe",
        "~callbacks.best",
        "optimizer.lr=tag(log, interval(3e-4, 1e-2))",
        "seed=range(0,3)",
        'data.root="Äpfel (1)/a,b"',
        "data.root=../pictures",
        "+optimizer._target_=torch.optim.SGD,torch.optim.AdamW",
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.timeout_min=600",
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=gp",
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.objectives={map_50: maximize, parameters: minimize}",
        "hydra.sweeper.pruner.n_warmup_steps=2",
        "hydra.sweeper.n_trials=30",
        "hydra.sweeper.params.loss=choice(multibox,focal)",
        "hydra.sweeper.params.optimizer.lr='tag(log, interval(3e-4, 1e-2))'",
        "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.storage=sqlite:///study.db",
        "hydra.sweep.subdir=a_${hydra.job.num}",
        "name=${oc.env:USER}",
    ],
)
def test_arguments_of_sweeps(argument: str):
    refuse_sweep(argument)
    with pytest.raises(ValueError, match=r"os\.system"):
        refuse_sweep(argument, "+callbacks.x._target_=os.system")


@pytest.mark.parametrize(
    "argument",
    [
        "+callbacks.x._target_=os.system",
        "++callbacks.x._target_=torch.optim.SGD,os.system",
        "+callbacks.x._target_='os.system'",
        "+callbacks.x={_target_: os.system}",
        "+callbacks.x={a: [{_target_: os.system}]}",
        "+x={a: 1},{_target_: os.system}",
        "+x=choice([{_target_: os.system}],2)",
        "optimizer._target_=ssd_lightning.cli.sweep.jobs.Child",
        "name=${oc.create:x}",
        "seed=1,'${oc.create:x}'",
        "loss=../../stranger/x",
        "loss=/tmp/x",
        "loss=focal,../x",
        "callbacks=[ema,../x]",
        "+other/group=../x",
        "+callbacks@hydra.callbacks=default",
        "hydra.launcher._target_=ssd_lightning.cli.sweep.jobs.Child",
        "hydra.launcher.setup=[rm]",
        'hydra.launcher.partition="gpu\nrm"',
        "hydra.launcher.additional_parameters={wrap: rm}",
        "hydra/launcher=../x",
        "callbacks.best.dirpath=/home/me",
        "logger.folder=/home/me,.",
        "callbacks.best.filename=../best",
        "hydra/callbacks=x",
        "+hydra.callbacks.x._target_=os.system",
        "hydra.searchpath=[file:///tmp/x]",
        "hydra.job_logging.handlers.x.()=os.system",
        "hydra.sweeper.storage=redis://somewhere",
        "hydra.sweeper.storage=/tmp/journal.log",
        "hydra/sweeper/sampler=cmaes",
        "hydra/sweeper/sampler='cmaes'",
        "hydra.sweeper.pruner.wrapped_pruner={_target_: os.system}",
        "hydra.sweeper.sampler.independent_sampler={_target_: os.system}",
        "hydra.sweeper.sampler._target_=os.system",
        "+hydra.sweeper.params.callbacks.x._target_=os.system",
        "hydra.sweeper.params.loss=../x",
        "hydra.sweeper.params={loss: x}",
        "a b c",
        "--config-dir=/tmp/x",
        "-cd=/tmp/x",
        "-m",
    ],
)
def test_arguments_that_a_saved_sweep_may_not_have(argument: str):
    with pytest.raises(ValueError, match=r"^resume_sweep: expected .* in sweep/multirun\.yaml"):
        refuse_sweep(argument)


@pytest.mark.parametrize(
    "config",
    [
        {"hydra": {"launcher": {"_target_": "ssd_lightning.cli.sweep.jobs.Child"}}},
        {"hydra": {"launcher": {"_target_": "my_launchers.Mine"}}},
        {"hydra": {"callbacks": {"a": {"_target_": "ssd_lightning.SSD"}}}},
        {"hydra": {"sweeper": {"storage": "${oc.create:x}"}}},
        {"logger": {"_target_": "os.system"}},
        {"defaults": ["x"]},
    ],
)
def test_files_of_sweeps_that_are_refused(config: dict[str, Any]):
    with pytest.raises(ValueError, match=r"^resume_sweep: expected .* in|got sweep/multirun\.yaml .*; refused$"):
        refuse_sweep(config=config, trusted=("my_launchers",))


def test_a_package_of_a_sweep_is_trusted_by_its_name():
    with pytest.raises(ValueError, match=r"Try trusted_packages=\[my_project\]"):
        refuse_sweep("backbone._target_=my_project.Backbone")
    refuse_sweep("backbone._target_=my_project.Backbone", trusted=("my_project",))


def test_resume_sweep_reads_no_stranger_s_sweep(run, stand_in, tmp_path: Path):
    """A stranger's arguments are refused, also the trust in a package. Arguments that the user types are not."""
    outcome = run("ssd-train", "-m", "seed=1", "hydra.sweep.dir=sweep", "+callbacks.x._target_=os.mkdir")
    assert outcome.exit_code == 0, outcome.error
    (tmp_path / "sweep/0/summary.json").unlink()
    outcome = run("ssd-train", "resume_sweep=sweep")
    assert outcome.exit_code == 1
    assert "ssd-train: resume_sweep: expected " in outcome.message
    assert "got os.mkdir in " in outcome.message
    file = config_of_sweep(tmp_path / "sweep")
    config = OmegaConf.load(file)
    config.hydra.overrides.task = ["seed=1", "trusted_packages=[my_project]", "+callbacks.x._target_=my_project.x"]
    del config.callbacks.x
    OmegaConf.save(config, file)
    outcome = run("ssd-train", "resume_sweep=sweep")
    assert "got my_project.x in " in outcome.message
