"""PEFT adapter folders: what one may contain, read and written module by module."""

from perdure.moved import moved_names

__getattr__ = moved_names("perdure.adapters", "perdure.adapters.folder")
