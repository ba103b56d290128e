"""A run's configuration: validated settings, with the method resolved from a preset's name or a composition of parts."""

from perdure.moved import moved_names

__getattr__ = moved_names("perdure.config", "perdure.config.run_config")
