"""Sweeps: many runs from one file, their processes and records, and the comparison of methods."""
