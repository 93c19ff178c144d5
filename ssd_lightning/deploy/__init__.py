"""Use of a trained detector: predicting on pictures, export, and running exported files."""
