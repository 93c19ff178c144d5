"""Parts of one's own for ssd_lightning: a backbone, a loss, a matcher and a data format."""

from .backbone import TwoLevels
from .data import CsvPictures
from .loss import LogCosh
from .matcher import LenientMatcher

__all__ = ["CsvPictures", "LenientMatcher", "LogCosh", "TwoLevels"]
