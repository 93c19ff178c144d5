"""Networks that turn pictures into feature maps, finest first.

A backbone is any module that maps pictures (B, 3, H, W), uint8 or float in 0 … 255, to a list of feature maps. How
pixels are scaled belongs to the weights: each backbone does it itself (:mod:`ssd_lightning.detector.backbones.normalization`).
:class:`ssd_lightning.detector.model.SSD` reads the number of maps, their channels and grids off a dry run.
"""
