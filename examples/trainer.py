"""Continual learning in a plain transformers Trainer: PS-LoRA's penalty protects the skills of earlier months.

python examples/trainer.py MODEL --out adapters/march
python examples/trainer.py MODEL --out adapters/april --history adapters/march
"""

from __future__ import annotations

import argparse

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from perdure.integrations import Continual

TEXTS = [f"Question: what is {n} plus {n}? Answer: {n + n}." for n in range(32)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--out", required=True)
    parser.add_argument("--history", nargs="*", default=[])
    given = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = Dataset.from_dict({"text": TEXTS})
    data = data.map(lambda row: tokenizer(row["text"]), remove_columns="text")
    model = AutoModelForCausalLM.from_pretrained(given.model)
    trainer = Trainer(
        model=get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")),
        args=TrainingArguments(
            "runs/trainer", num_train_epochs=1, learning_rate=1e-3, logging_steps=1, save_strategy="no"
        ),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )

    continual = Continual("ps-lora", history=given.history)
    continual.attach(trainer)
    trainer.train()
    continual.save(given.out)
    print(continual.penalties)


if __name__ == "__main__":
    main()
