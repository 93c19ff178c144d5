"""Training with Lightning: the module, schedules, callbacks, checkpoints and loggers."""
