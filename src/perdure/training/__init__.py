"""One stage: a model under LoRA, batch -> loss + penalties -> step, and answers -> scores. Nothing here knows a run's folder."""
