"""The search space of a sweep by Optuna, in Hydra's grammar."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Transformer
from omegaconf import DictConfig, ListConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ssd_lightning.run_folder import flatten

RISING = "rising"
"""Tag of an interval from which a list of rising numbers is drawn."""


class Drawn(NamedTuple):
    """A key whose value is drawn for each trial."""

    argument: str
    """The key as on the command line, such as ``+optimizer.momentum``."""
    parameters: dict[str, BaseDistribution]
    """The parameters of the study that make the value: one, or one for each number of a rising list."""
    is_list: bool


class Space(NamedTuple):
    """The fixed arguments, the drawn values and the seeds of a search, from which its jobs are composed."""

    fixed: list[str]
    """Arguments of every job."""
    drawn: list[Drawn]
    seeds: list[str]
    """The arguments of the jobs of one trial, such as ``seed=0``. Empty if a trial is one job."""

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters of the study."""
        return {name: found for drawn in self.drawn for name, found in drawn.parameters.items()}

    def jobs(self, values: Mapping[str, Any]) -> list[list[str]]:
        """Return the arguments of each job of a trial.

        Args:
            values: the values of the parameters.
        """
        arguments = list(self.fixed)
        for key, parameters, is_list in self.drawn:
            found = [values[name] for name in parameters]
            arguments.append(f"{key}=[{','.join(map(str, sorted(found)))}]" if is_list else f"{key}={found[0]}")
        return [[*arguments, seed] for seed in self.seeds] or [arguments]


def read_space(
    config: DictConfig, params: Mapping[Any, Any], arguments: Sequence[str], parser: OverridesParser
) -> Space:
    """Return the search space of a sweep.

    Args:
        config: the config of the sweep, without what varies.
        params: ``hydra.sweeper.params``. A nested key, which the command line gives, replaces one with dots in it.
        arguments: those of the command line, which replace ``params``.
        parser: Hydra's parser.

    Raises:
        ValueError: naming a key whose space cannot be drawn from.
    """
    plain = {key: value for key, value in params.items() if not isinstance(value, Mapping)}
    nested = flatten({key: value for key, value in params.items() if isinstance(value, Mapping) and value})
    pairs = [f"{key}={_typed(value)}" for key, value in {**plain, **nested}.items() if key]
    overrides = {_name(override): override for override in parser.parse_overrides([*pairs, *arguments])}
    space = Space([], [], [])
    for name, override in overrides.items():
        if not override.is_sweep_override():
            space.fixed.append(override.input_line or "")
        elif name == "seed" and override.is_discrete_sweep():
            space.seeds.extend(f"seed={seed}" for seed in override.sweep_string_iterator())
        else:
            space.drawn.append(_drawn(name, override, config))
    return space


def _typed(value: Any) -> str:
    """Return a value of a config as it is typed on the command line."""
    return value if isinstance(value, str) else Transformer.str(value)


def _name(override: Override) -> str:
    """Return the key of an argument without its plus, by which a later argument replaces it."""
    return override.key_or_group if override.package is None else f"{override.key_or_group}@{override.package}"


def _drawn(name: str, override: Override, config: DictConfig) -> Drawn:
    value, argument = override.value(), override.get_key_element()
    if not isinstance(value, IntervalSweep):
        return Drawn(argument, {name: _of_values(override)}, is_list=False)
    unknown = set(value.tags) - {"log", RISING}
    if unknown:
        raise ValueError(f"{name}: expected the tags log and {RISING}, got {', '.join(sorted(unknown))}")
    bounds: list[Any] = [value.start, value.end]
    kind: Any = IntDistribution if all(isinstance(bound, int) for bound in bounds) else FloatDistribution
    try:
        found = kind(*bounds, log="log" in value.tags)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if RISING not in value.tags:
        return Drawn(argument, {name: found}, is_list=False)
    numbers = OmegaConf.select(config, name)
    if not isinstance(numbers, ListConfig):
        raise ValueError(f"{name}: expected a list in the config, whose length tag({RISING}, …) takes, got {numbers}")
    return Drawn(argument, {f"{name}.{place}": found for place in range(len(numbers))}, is_list=True)


def _of_values(override: Override) -> BaseDistribution:
    """Return the distribution of a choice or a range."""
    if override.is_range_sweep():
        # As in a grid, the end of a range is not in it.
        values: list[Any] = sorted(override.sweep_iterator())
        if len(values) > 1:
            kind: Any = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
            return kind(values[0], values[-1], step=abs(override.value().step))  # type: ignore[union-attr]
        return CategoricalDistribution(values)
    # What is no number becomes text that Hydra's grammar reads as the same value.
    elements = [
        element if isinstance(element, bool | int | float) else Transformer.str(element)
        for element in override.sweep_iterator()
    ]
    return CategoricalDistribution(elements)
