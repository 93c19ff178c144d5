"""Ground truth that the tests of this room share."""

import pytest
from made_up_sweep import truth_of

from ssd_lightning.scoring.stored_detections import StoredDetections


@pytest.fixture(scope="session")
def truth(tmp_path_factory: pytest.TempPathFactory) -> StoredDetections:
    return truth_of(tmp_path_factory.mktemp("data") / "bananas")
