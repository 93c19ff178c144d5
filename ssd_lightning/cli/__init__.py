"""The commands. Hydra is used here only."""
