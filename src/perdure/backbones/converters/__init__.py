"""Folders that transformers loads, out of models that packages hold in other forms; one file a model.

Every converter is called `convert(package, folder)`, writes the names and settings of the model's page on the hub, and has
a parity test against the form it comes from.
"""
