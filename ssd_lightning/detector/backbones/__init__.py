"""Networks that turn pictures into feature maps, finest first.

A backbone is any module that maps pictures (B, 3, H, W), uint8 or float in 0 … 255, to a list of feature maps. Each
backbone normalizes the pixels itself, because mean and std belong to its weights: see
:mod:`ssd_lightning.detector.backbones.normalization`. :class:`ssd_lightning.detector.model.SSD` finds the number of
maps, their channels and their grids by a dry run.
"""
