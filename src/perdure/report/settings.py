"""What was run, as named lines of text: the rows that are compared over runs, and warnings where runs do not compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.report.runs import Run


def described(run: Run) -> dict[str, str]:
    """Heading -> value: method with its parts, tasks, budget, model, training, versions."""
    about, config = run.about, run.about["config"]
    method, suite = config["method"], _first({k: config[k] for k in ("suite", "order", "data") if config.get(k)})
    budget = {split: "all" if size is None else size for split, size in config["budget"].items()}
    return {
        "Method": method["name"],
        "Parts": _parts(method),
        "Suite": suite or "own tasks",
        "Tasks": ", ".join(run.scores.tasks),
        "Added later": ", ".join(about.get("added", ())) or "none",
        "History of adapters": ", ".join(about.get("history", ())) or "none",
        "Stages finished": f"{len(run.scores.stages)} of {1 if method['stream'] == 'joint' else len(run.scores.tasks)}",
        "Seed": f"{config['seed']} (data: {config.get('data_seed', 0)})" if suite else str(config["seed"]),
        "Budget a task": f"{_pairs(budget)} examples" if suite else "as each task says",
        "Model": _first(config["backbone"]),
        "LoRA": _pairs(config["lora"]),
        "Training": _pairs(config["training"]),
        "Evaluation": _pairs(config["evaluation"]),
        "Precision": str(about.get("precision", "-")),
        "Threads, machine": f"{about.get('threads', '-')}, {about.get('machine', '-')}",
        "Versions": _pairs(about.get("versions", {})),
        "Folder": run.scores.folder,
    }


def compared(runs: Sequence[Run]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The settings in which the runs differ (one value a run), and those they share."""
    each = [described(run) for run in runs]
    differ, same = {}, {}
    for key in each[0]:
        values = [lines[key] for lines in each]
        if len(set(values)) > 1:
            differ[key] = values
        else:
            same[key] = values[0]
    return differ, same


def warnings(runs: Sequence[Run]) -> list[str]:
    """Why numbers of these runs may not be compared, or are not final."""
    found = []
    for run in runs:
        if not run.finished:
            of = len(run.scores.tasks)
            learnt = of if run.scores.stages == ["joint"] else len(run.scores.stages)
            why = (
                "its average accuracy counts tasks it has not learnt" if learnt < of else "its model is not written yet"
            )
            found.append(f"{run.name} is not finished ({learnt} of {of} tasks learnt): {why}.")
    for key, what in {
        "tasks": "learnt from or scored on other data",
        "split": "scored on another split",
        "labels": "scored with another set of labels to choose from",
    }.items():
        first = _comparable(runs[0], key)
        if others := [run.name for run in runs[1:] if _comparable(run, key) != first]:
            found.append(f"{', '.join(others)}: {what} than {runs[0].name}; these numbers may not compare.")
    return found


def _comparable(run: Run, key: str) -> Any:
    return run.about["tasks"] if key == "tasks" else run.about["config"]["evaluation"].get(key)


def size_rows(run: Run) -> list[list[str]]:
    """One row a task: its name and examples of each split."""
    sizes = run.about.get("sizes", {})
    splits = ("train", "validation", "test")
    return [[task, *(str(sizes.get(task, {}).get(split, "-")) for split in splits)] for task in run.scores.tasks]


def noticed(run: Run) -> list[str]:
    """What was odd about the data: rows removed, splits cut, texts too long."""
    return list(run.about.get("warnings", []))


def _parts(method: Mapping[str, Any]) -> str:
    """A composition in one line: 'init kaiming; penalty sign-magnitude (weight 0.01, alpha 100); ...'."""
    found = [_part("init", method["init"])]
    found += [_part("penalty", part) for part in method["penalties"].values()]
    roles = {"step_rule": "step rule", "consolidate": "consolidate", "replay": "replay"}
    found += [_part(word, method[role]) for role, word in roles.items() if method.get(role)]
    if method["stream"] != "one-by-one":
        found.append(f"stream {method['stream']}")
    return "; ".join(found)


def _part(role: str, part: Mapping[str, Any]) -> str:
    settings = _pairs({key: value for key, value in part.items() if key != "kind"})
    return f"{role} {part['kind']}" + (f" ({settings})" if settings else "")


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in values.items())


def _first(values: Mapping[str, Any]) -> str:
    """As `_pairs`, the first value without its key, which the heading says."""
    first, *rest = values.items() or [("", "")]
    return ", ".join([_value(first[1]), *([_pairs(dict(rest))] if rest else [])])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return f"({_pairs(value)})"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_value, value)) or "usual"
    return "none" if value is None else str(value)
