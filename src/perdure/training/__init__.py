"""One stage: a model under LoRA, batch -> loss + penalties -> step, and answers -> scores. Nothing here knows a run's folder."""

from perdure.moved import moved_names

__getattr__ = moved_names("perdure.training", "perdure.training.train")
