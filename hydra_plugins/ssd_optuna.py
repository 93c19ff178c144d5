"""The sweeper ``hydra/sweeper=optuna``, in the package where Hydra looks for plugins. Quick to import."""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Sweeper that lets Optuna choose the values of each job; see ``ssd_lightning/cli/sweep/search.py``.

    Args:
        settings: keys of ``conf/hydra/sweeper/optuna.yaml``.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives to a sweeper, and create the launcher that the config names."""
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search, whose space is in ``params`` and in the arguments of the command line."""
        # Imported here, since Hydra imports this module for every command.
        from ssd_lightning.cli.sweep.search import search

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        search(self.config, arguments, self.launcher, self.hydra_context.config_loader, **self.settings)
