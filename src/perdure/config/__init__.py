"""What a run is, as validated settings; a preset's name or a composition of parts becomes the whole method."""

from perdure.moved import moved_names

__getattr__ = moved_names("perdure.config", "perdure.config.run_config")
