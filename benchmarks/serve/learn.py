"""What is served: three small runs of SmolLM2-135M on free text and chats, exported, with perdure's own greedy answers.

    python benchmarks/serve/learn.py PLACE

PLACE/cases.json: a list of questions, each with the served folder that answers it. PLACE/gguf: the same folders for llama.cpp,
by its converter in the folder $LLAMA_CPP. What is there is not made again.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import perdure
from perdure.commands.gguf import converter

MODEL, RANK, TRAIN, ASKED, LONGEST = "smollm2-135m", 8, 64, 10, 24
SCORED = {"evaluation": {"every_stage": "own"}}
words = str.split
ONES = words("zero one two three four five six seven eight nine")
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
MONTHS = words("January February March April May June July August September October November December")
FIRST = words("Ada Bela Carla Dov Edna Farid Greta Hugo Ines Jonas Karim Lena Mona Nils Olga Pavel")
LAST = words("Archer Baker Cooper Dyer Fisher Gardner Hunter Mason Porter Ryder Sawyer Tanner Usher Weaver")
PLACES = words("Aarhus Bergen Cork Dover Essen Faro Genoa Hamar Izmir Jena Kiel Lugano Malmo Nantes Oslo Porto")


def rows(seed: int) -> dict[str, list[tuple[str, str]]]:
    """Task -> questions and answers, none twice."""
    draw = random.Random(seed)
    numbers = [(f"{ten}-{one}", f"{20 + 10 * i + j}") for i, ten in enumerate(TENS) for j, one in enumerate(ONES) if j]
    hundreds = [(f"{ONES[h]} hundred {w}", f"{h}{n}") for h in (1, 2, 3) for w, n in numbers]
    dates = [
        (f"{day} {m} {y}", f"{y}-{i + 1:02}-{day:02}")
        for i, m in enumerate(MONTHS)
        for day in range(1, 28, 3)
        for y in (1999, 2024)
    ]
    names = [(f"{first} {last}", f"{last}, {first[0]}.") for first in FIRST for last in LAST]
    trips = [(f"{a} to {b}", f"leaves {a}, reaches {b}") for a in PLACES for b in PLACES if a != b]
    found = {"numbers": numbers + hundreds, "dates": dates, "names": names, "trips": trips}
    for pairs in found.values():
        draw.shuffle(pairs)
    return found


def task(name: str, pairs: list[Any]) -> perdure.Task:
    """A task of free text."""
    template = f"{name}: {{text}} ->"
    return perdure.Task(name, pairs[:TRAIN], test=pairs[TRAIN : TRAIN + ASKED], metric="exact-match", template=template)


def chat(text: str, answer: str | None = None) -> dict[str, Any]:
    """A chat of three or four turns."""
    asked = [
        {"role": "system", "content": "You write names for a register."},
        {"role": "user", "content": "Are you ready?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": f"Register {text}"},
    ]
    return {"messages": [*asked, *([{"role": "assistant", "content": answer}] if answer else [])]}


def learnt(place: Path, name: str, tasks: list[perdure.Task], method: str, **backbone: Any) -> Path:
    """A run's folder; an unfinished run goes on."""
    run = place / name
    about = {"kind": "causal", "model": MODEL, "max_length": 128, "max_new_tokens": LONGEST, **backbone}
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "later_learning_rate_factor": 1.0}
    if (run / "manifest.json").is_file():
        perdure.resume(run, tasks=tasks)
    else:
        perdure.learn(
            out=run, tasks=tasks, method=method, backbone=about, training=training, lora={"rank": RANK}, **SCORED
        )
    return run


def exported(run: Path, out: Path, form: Any = "adapter", task: str | None = None) -> str:
    """A folder that a server is given."""
    if not out.is_dir():
        perdure.export(run, out, form, task=task)
    return out.name


def cases(place: Path) -> Iterator[dict[str, Any]]:
    """Every question with perdure's answer, what it is sent as, and which folder answers."""
    found = rows(0)
    plain = [task(name, pairs) for name, pairs in found.items()]
    prompts = {t.name: [e.text for e in t.test] for t in plain}
    summed = learnt(place, "summed", plain, "inc-lora", chat=False)
    alone = learnt(place, "alone", plain[:3], "per-task", chat=False)
    register: list[Any] = [chat(*pair) for pair in found["names"][: TRAIN + ASKED]]
    spoken = perdure.Task("register", register[:TRAIN], test=register[TRAIN:], metric="exact-match")
    chats = learnt(place, "chats", [spoken], "inc-lora")
    merged, adapter = exported(summed, place / "merged", "model"), exported(summed, place / "adapter")
    for name, texts in prompts.items():
        answers = [row["text"] for row in perdure.predict(summed, texts, task=name)]
        for case, folder in (("deployed adapter", adapter), ("merged model", merged)):
            yield from asked(case, name, folder, texts, answers)
    for name in [t.name for t in plain[:3]]:
        folder = exported(alone, place / f"alone-{name}", task=name)
        answers = [row["text"] for row in perdure.predict(alone, prompts[name], task=name)]
        yield from asked("an adapter for each task", name, folder, prompts[name], answers)
    folder, questions = (
        exported(chats, place / "chats-adapter"),
        [chat(text) for text, _ in found["names"][TRAIN:][:ASKED]],
    )
    answers = [row["text"] for row in perdure.predict(chats, questions)]
    for question, answer in zip(questions, answers, strict=True):
        yield {"case": "chats", "task": "register", "folder": folder, "answer": answer, **question}


def ggufs(place: Path) -> None:
    """Everything that is served, for llama.cpp; the base by llama.cpp's converter itself."""
    made = place / "gguf"
    made.mkdir(exist_ok=True)
    exported(place / "summed", made / "merged", "gguf-model")
    exported(place / "summed", made / "adapter", "gguf")
    exported(place / "chats", made / "chats-adapter", "gguf")
    for folder in sorted(place.glob("alone-*")):
        exported(place / "alone", made / folder.name, "gguf", folder.name.removeprefix("alone-"))
    if not (base := made / "base.gguf").is_file():
        script, partial = converter("gguf-model"), made / "base.partial"
        model = str(perdure.model_folder(MODEL))
        subprocess.run([sys.executable, script, model, "--outtype", "f32", "--outfile", partial], check=True)
        partial.rename(base)


def asked(case: str, name: str, folder: str, texts: list[str], answers: list[str]) -> Iterator[dict[str, Any]]:
    """Questions of one task, as the prompt that is learnt from and sent."""
    for text, answer in zip(texts, answers, strict=True):
        yield {"case": case, "task": name, "folder": folder, "prompt": f"{name}: {text} ->", "answer": answer}


def main() -> None:
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "cases.json").is_file():
        torch.set_num_threads(1)
        found = {"base": str(perdure.model_folder(MODEL)), "longest": LONGEST, "cases": list(cases(place))}
        (place / "cases.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    ggufs(place)


if __name__ == "__main__":
    main()
