"""Data sets, their formats and augmentation, and the datamodule that loads them."""
