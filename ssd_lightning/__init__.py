"""Train, compare and use Single Shot MultiBox Detectors.

The names of this package are its public interface: configs and checkpoints refer to them, so that a file may move
without breaking either. Each name is imported when it is first used; ``__init__.pyi`` lists all of them by room.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
