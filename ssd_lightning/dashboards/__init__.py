"""What a training shows while it runs, beside the table of its numbers: on Weights & Biases, and in TensorBoard."""

from ssd_lightning.dashboards.board import Dashboard, Results, dashboards_of, read_results, running
from ssd_lightning.dashboards.callback import ShowOnDashboards
from ssd_lightning.dashboards.pictures import ShownPictures, rows_to_show

__all__ = [
    "Dashboard",
    "Results",
    "ShowOnDashboards",
    "ShownPictures",
    "dashboards_of",
    "read_results",
    "rows_to_show",
    "running",
]
