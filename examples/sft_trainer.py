"""Continual learning in TRL's SFTTrainer, which creates the PEFT model itself (pip install 'perdure[trl]').

python examples/sft_trainer.py MODEL --out adapters/march
python examples/sft_trainer.py MODEL --out adapters/april --history adapters/march
"""

from __future__ import annotations

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from perdure.integrations import Continual

ROWS = [{"prompt": f"What is {n} times two? ", "completion": f"{2 * n}."} for n in range(32)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--out", required=True)
    parser.add_argument("--history", nargs="*", default=[])
    given = parser.parse_args()

    trainer = SFTTrainer(
        model=given.model,
        args=SFTConfig(
            "runs/sft",
            num_train_epochs=1,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            bf16=torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list(ROWS),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )

    continual = Continual("o-lora+n-lora", history=given.history)
    continual.attach(trainer)
    trainer.train()
    continual.save(given.out)
    print(continual.penalties)


if __name__ == "__main__":
    main()
