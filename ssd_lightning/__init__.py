"""Train, compare and use Single Shot MultiBox Detectors.

The names of this package are its public interface. Configs and checkpoints refer to these names, so a file may move
without breaking either. Each name is imported when it is first used; ``__init__.pyi`` lists all of them by room.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
