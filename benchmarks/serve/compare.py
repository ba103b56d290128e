"""Compares every server's answer with perdure's own: record.json, in which an unequal answer has its gap.

    python benchmarks/serve/compare.py PLACE NAME=VERSION ...

Gap: at the first token in which both answers differ, perdure's logit of its own token above that of the server's, in nats, by
transformers and PEFT in fp32. Below .001 it is a near tie, which rounding decides.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

NEAR, CACHED = 1e-3, "llama.cpp-cached"
HERE = Path(__file__).parent


def gap(model: Any, tokenizer: Any, case: Mapping[str, Any], other: str, longest: int) -> float:
    """Nats by which the greedy token is above the other answer's, where they part."""
    asked = case.get("messages")
    prompt = (
        tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        if asked
        else tokenizer(case["prompt"])["input_ids"]
    )
    ids: list[int] = []

    def text(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    for _ in range(longest):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
        best = int(logits.argmax())
        if best != tokenizer.eos_token_id and other.startswith(text([*ids, best])):
            ids.append(best)
            continue
        for token in logits.argsort(descending=True).tolist():
            ends = token == tokenizer.eos_token_id
            said = text([*ids, token])
            if token != best and (said == other if ends else len(said) > len(text(ids)) and other.startswith(said)):
                return float(logits[best] - logits[token])
        break
    return float("inf")


def main() -> None:
    place = Path(sys.argv[1])
    about = json.loads((place / "cases.json").read_text(encoding="utf-8"))
    versions = dict(word.split("=", 1) for word in sys.argv[2:])
    versions |= {name: version(name) for name in ("torch", "transformers", "peft")}
    tokenizer, rows = AutoTokenizer.from_pretrained(about["base"]), []
    for name in ("vllm", "llama.cpp", CACHED):
        lines = (place / f"answers-{name}.jsonl").read_text(encoding="utf-8").splitlines()
        written = {line["number"]: line["answer"] for line in map(json.loads, lines)}
        for number, case in enumerate(about["cases"]):
            row = {key: case[key] for key in ("case", "task", "answer")} | {"server": name, "equal": True}
            if written[number] != case["answer"]:
                model = AutoModelForCausalLM.from_pretrained(
                    place / "merged" if case["folder"] == "merged" else about["base"], dtype=torch.float32
                )
                if case["folder"] != "merged":
                    model = PeftModel.from_pretrained(model, str(place / case["folder"]))
                distance = gap(model.eval(), tokenizer, case, written[number], about["longest"])
                row |= {"equal": False, "server_answer": written[number], "gap": distance}
            rows.append(row)
    found = {"versions": versions, "machine": platform.machine(), "longest": about["longest"], "rows": rows}
    (HERE / "record.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    equal = sum(row["equal"] for row in rows)
    print(f"{equal} of {len(rows)} answers are equal")
    if far := [row for row in rows if not row["equal"] and row["gap"] > NEAR and row["server"] != CACHED]:
        sys.exit(f"{len(far)} answers differ by more than a near tie: {far[0]}")


if __name__ == "__main__":
    main()
