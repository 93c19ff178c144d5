"""Sweeps: many jobs from one command line, each in a process of its own."""
