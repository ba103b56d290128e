"""Settings of any kind: read from YAML and key=value, checked against a class, and explained in words."""

from perdure.moved import moved_names

__getattr__ = moved_names("perdure.settings", "perdure.settings.read")
