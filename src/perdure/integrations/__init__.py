"""perdure's methods inside your own transformers `Trainer` or TRL `SFTTrainer` (docs/integrations.md).

continual = Continual("ps-lora", history=["adapters/march", "adapters/april"])
continual.attach(trainer)      # any Trainer whose model is a plain PEFT LoRA; then trainer.train() as always
continual.save("adapters/may")
"""

from __future__ import annotations

from perdure.integrations.continual import Continual

__all__ = ["Continual"]
