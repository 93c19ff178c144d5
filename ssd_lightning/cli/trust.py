"""Limits on what a saved config may name, since the folder of a run or a sweep may come from a stranger.

Hydra builds whatever ``_target_`` names, so ``torch.load`` or ``os.system`` in a config would run a stranger's code.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

import ssd_lightning
from ssd_lightning.cli.help import GROUPS
from ssd_lightning.cli.overrides import PARSER
from ssd_lightning.run_folder import NEVER_PROPOSED, PARTS, PARTS_OF_TRAINING

LISTED = re.compile(
    r"torch\.optim(\.lr_scheduler)?\.[A-Z]\w*|lightning\.(pytorch\.)?Trainer|"
    r"lightning\.pytorch\.callbacks\.(DeviceStatsMonitor|EarlyStopping|EMAWeightAveraging|GradientAccumulationScheduler|"
    r"LearningRateMonitor|ModelCheckpoint|ModelSummary|RichModelSummary|RichProgressBar|StochasticWeightAveraging|"
    r"ThroughputMonitor|TQDMProgressBar|Timer|WeightAveraging)|"
    r"lightning\.pytorch\.profilers\.[A-Z]\w*|lightning\.pytorch\.strategies\.[A-Z]\w*"
)
"""Classes of other packages that a saved config may name. Loggers of Lightning write anywhere, or send data away."""

FOLDERS = ("checkpoint", "default_root_dir", "dir", "dirpath", "folder", "log_dir", "save_dir")
"""Arguments that name a folder or file to write."""

IN_THE_RUN_FOLDER = re.compile(r"\$\{hydra:runtime\.output_dir\}(/[\w-]+(\.\w+)?)*")
"""Places that a saved config may write to."""

VARIABLES = re.compile(r"SSD_\w+|SLURM_\w+|CUDA_VISIBLE_DEVICES|USER|HOME|HOSTNAME|SCRATCH|TMPDIR|(LOCAL_)?RANK")
"""Environment variables that a saved config may read. Others may be secrets, which a dashboard would show."""

LISTED_OF_HYDRA = re.compile(
    r"hydra\._internal\.core_plugins\.basic_(launcher\.BasicLauncher|sweeper\.BasicSweeper)|"
    r"hydra_plugins\.ssd_optuna\.OptunaSweeper|optuna\.(samplers\.[A-Z]\w*Sampler|pruners\.[A-Z]\w*Pruner)|"
    r"hydra_plugins\.hydra_submitit_launcher\.submitit_launcher\.(Local|Slurm)Launcher|"
    r"ssd_lightning\.cli\.(run_folders\.RunFolderGuard|sweep\.start\.SweepStart)"
)
"""Classes that the section ``hydra`` of a saved sweep may name."""

ARGUMENTS_OF_HYDRA = re.compile(
    r"hydra/(launcher|sweeper|sweeper/pruner)=\w+|hydra\.(job\.name|sweep\.subdir|verbose)=.*|"
    # CMA-ES keeps its state in the study as a pickle, and a pickle of a stranger runs a stranger's code.
    r"hydra/sweeper/sampler=(?!cmaes)\w+|"
    r"hydra\.sweeper\.(max_batch_size|n_jobs|n_trials|stale_after|study_name|objectives(\.\w+)?)=.*|"
    r"hydra\.sweeper\.(sampler|pruner)\.[a-z]\w*=.*|"
    r"hydra\.sweeper\.storage=[\"']?sqlite:///.*|"
    # SLURM's settings become lines of a shell script.
    r"hydra\.launcher\.(account|array_parallelism|comment|constraint|cpus_per_gpu|cpus_per_task|exclude|gpus_per_node|"
    r"gpus_per_task|gres|max_num_timeout|mem_gb|mem_per_cpu|mem_per_gpu|name|nodes|partition|qos|signal_delay_s|"
    r"tasks_per_node|timeout_min)=[\w.,:%-]*"
)
"""Arguments for Hydra that a saved sweep may have. Others, such as commands for SLURM, must be typed again."""

RESOLVERS = ("hydra", "oc.env", "now")
"""Resolvers of ``${…}`` that a saved config may use. ``oc.create`` would build a config out of text."""


def trusted_packages_in(arguments: list[str]) -> list[str]:
    """Return the packages that the command line trusts: ``trusted_packages=[my_project,…]``."""
    values = [argument.partition("=")[2] for argument in arguments if re.match(r"\+*trusted_packages=", argument)]
    return re.findall(r"[\w.-]+", values[-1]) if values else []


def refuse_untrusted_config(config: Any, path: Path | str, key: str, trusted_packages: Collection[str]) -> None:
    """Refuse a saved config that names what is neither on the list nor in a trusted package.

    Args:
        config: the content of the file: dictionaries, lists, text and numbers.
        path: the file, for messages.
        key: the argument that named the file, for messages.
        trusted_packages: top-level packages of the user's own.

    Raises:
        ValueError: with the file and what it names.
    """
    for section in ("hydra", "defaults"):
        if isinstance(config, Mapping) and section in config:
            raise ValueError(f"{key}: expected the config of a run, got {path} with a section {section!r}; refused")
    for name, value in _leaves(config):
        if name == "_target_" and not _is_listed(value, trusted_packages):
            package, _, rest = str(value).partition(".")
            of_a_module, _, public = rest.rpartition(".")
            if package == "ssd_lightning" and of_a_module and public in dir(ssd_lightning):
                raise ValueError(
                    f"{key}: expected a file of ssd_lightning 0.2 or later, got {path}, which names {value}. "
                    "Try training again, or the version that wrote the file."
                )
            advice = "; refused"
            if package.isidentifier() and rest and package not in NEVER_PROPOSED:
                advice = f". Try trusted_packages=[{package}] if you trust that code."
            raise ValueError(f"{key}: expected only names that a saved config may use, got {value} in {path}{advice}")
        _refuse_resolvers(value, path, key)
    for node in _mappings(config):
        _refuse_other_places(node, path, key, trusted_packages)


def _refuse_other_places(
    node: Mapping[str, Any], path: Path | str, key: str, trusted_packages: Collection[str]
) -> None:
    """Refuse a part that would write outside the run folder."""
    target = str(node.get("_target_", ""))
    package = target.partition(".")[0]
    if package in ("", "torch", *trusted_packages) or target.removeprefix("ssd_lightning.") in PARTS:
        return
    for name, value in node.items():
        if name == "_args_" or _is_other_place(name, value):
            raise ValueError(
                f"{key}: expected {target} to write inside ${{hydra:runtime.output_dir}}, got {name}={value} in "
                f"{path}. Try trusted_packages=[{package}] if you trust that file."
            )


def _is_other_place(name: str, value: Any) -> bool:
    """Return True for an argument with a place to write that is not known to be in the run folder."""
    if name == "filename":
        return re.fullmatch(r"[^/\\]*", str(value)) is None
    is_inside = value is None or (isinstance(value, str) and IN_THE_RUN_FOLDER.fullmatch(value))
    return name in FOLDERS and not is_inside


def refuse_untrusted_sweep(
    config: Any, arguments: Collection[str], path: Path | str, trusted_packages: Collection[str]
) -> None:
    """Refuse a saved sweep that names what is neither on the lists nor in a trusted package.

    Args:
        config: the content of ``multirun.yaml``.
        arguments: the arguments that the file holds, and that the jobs are composed from.
        path: the file, for messages.
        trusted_packages: top-level packages of the user's own.

    Raises:
        ValueError: with the file and what it names.
    """
    key, of_hydra = "resume_sweep", config["hydra"]
    refuse_untrusted_config({name: config[name] for name in config if name != "hydra"}, path, key, trusted_packages)
    for name, value in _leaves(of_hydra):
        if name == "_target_" and not (isinstance(value, str) and LISTED_OF_HYDRA.fullmatch(value)):
            raise ValueError(f"{key}: expected only names that a saved sweep may use, got {value} in {path}; refused")
        _refuse_resolvers(value, path, key)
    for argument in arguments:
        _refuse_untrusted_argument(argument, path, key, trusted_packages)


def _refuse_untrusted_argument(argument: str, path: Path | str, key: str, trusted_packages: Collection[str]) -> None:
    """Refuse an argument that loads or builds what a saved sweep may not."""
    try:
        override = PARSER.parse_override(argument)
    except HydraException as error:
        raise ValueError(f"{key}: expected an argument, got {argument} in {path}") from error
    name, values = override.key_or_group, list(_values(override._value))
    of_params = name.removeprefix("hydra.sweeper.params.")
    if of_params != name:  # Hydra makes arguments of these.
        for value in values:
            _refuse_untrusted_argument(f"{of_params}={value}", path, key, trusted_packages)
        return
    is_of_hydra = name.startswith("hydra") or (override.package or "").startswith("hydra")
    if is_of_hydra and not ARGUMENTS_OF_HYDRA.fullmatch(argument.lstrip("+")):
        raise ValueError(
            f"{key}: expected only arguments that a saved sweep may have, got {' '.join(argument.split())} in {path}. "
            "Try that argument on the command line if you trust it."
        )
    # The name of an option is a path below conf/, and must not lead out of there.
    is_group = name in GROUPS or "/" in name or override.package is not None
    for value in values:
        if _is_other_place(name.rpartition(".")[2], value):
            raise ValueError(f"{key}: expected a place inside the folder of the job, got {argument} in {path}; refused")
        options = value if isinstance(value, list) else [value]
        if is_group and not all(re.fullmatch(r"[\w-]+(/[\w-]+)*", str(option)) for option in options):
            raise ValueError(f"{key}: expected the name of an option, got {argument} in {path}; refused")
        refuse_untrusted_config({name.rpartition(".")[2]: value}, path, key, trusted_packages)


def _values(value: Any) -> Iterator[Any]:
    """Yield the values that an argument gives to its key, as plain data."""
    choices = getattr(value, "list", None)
    yield from map(_plain, choices) if isinstance(choices, list) else [_plain(value)]


def _plain(value: Any) -> Any:
    """Return a value that Hydra has parsed as plain data: text without its quotes, also in lists and dictionaries."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(child) for child in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(child) for key, child in value.items()}
    return value


def _refuse_resolvers(value: Any, path: Path | str, key: str) -> None:
    if isinstance(value, str) and (resolver := _resolver_not_listed(value)) is not None:
        allowed = ", ".join(RESOLVERS)
        raise ValueError(f"{key}: expected only the resolvers {allowed}, got ${{{resolver}…}} in {path}; refused")


def _mappings(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all dictionaries of a config."""
    if isinstance(node, Mapping):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _mappings(child)


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each target, whatever its type, and of all else that is no dictionary or list."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from [(key, child)] if key == "_target_" else _leaves(child, str(key))
    elif isinstance(node, list):
        for child in node:
            yield from _leaves(child)
    else:
        yield name, node


def _is_listed(target: Any, trusted_packages: Collection[str]) -> bool:
    if not isinstance(target, str):
        return False
    package, _, rest = target.partition(".")
    if package == "ssd_lightning":
        return rest in PARTS or rest in PARTS_OF_TRAINING
    return LISTED.fullmatch(target) is not None or (package in trusted_packages and rest != "")


def _resolver_not_listed(text: str) -> str | None:
    """Return the first resolver in a text that is not listed; a computed name counts as not listed."""
    for name, colon, argument in re.findall(r"\$\{([^:}]*)(:?)([^,}]*)", text):
        if "$" in name or (colon and name.strip() not in RESOLVERS):
            return str(name)
        if name.strip() == "oc.env" and not VARIABLES.fullmatch(argument.strip()):
            return f"{name}:{argument}"
    return None
