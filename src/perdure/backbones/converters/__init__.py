"""Converters from models packaged in other formats to folders that transformers loads; one module per model.

Each has a function `convert(package, folder)` that writes the names and settings of the model's hub page, and a parity test
against the packaged format.
"""
