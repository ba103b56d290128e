"""Settings of any kind: read from YAML and key=value pairs, validated by a class, and described in words."""

from perdure.moved import moved_names

__getattr__ = moved_names("perdure.settings", "perdure.settings.read")
