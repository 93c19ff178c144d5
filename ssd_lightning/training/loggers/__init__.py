"""Loggers: a metrics file, TensorBoard and Weights & Biases."""
