"""What was run, as lines of text that are compared over runs; and warnings where runs do not compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """The settings in which the runs differ (one value for each run), and those they share."""
    each = [described(run) for run in runs]
    values = {key: [lines[key] for lines in each] for key in each[0]}
    differ = {key: given for key, given in values.items() if len({*given}) > 1}
    return differ, {key: given[0] for key, given in values.items() if key not in differ}


def warnings(runs: Sequence[Run]) -> list[str]:
    """Why the numbers of these runs may not compare, or are not final."""
    lines = []
    for run in (run for run in runs if not run.finished):
        tasks = len(run.scores.tasks)
        learnt = tasks if run.scores.stages == ["joint"] else len(run.scores.stages)
        why = "its average accuracy counts tasks it has not learnt" if learnt < tasks else "it is not deployed yet"
        lines.append(f"{run.name} is not finished ({learnt} of {tasks} tasks learnt): {why}.")
    for difference, value in COMPARABLE.items():
        if others := [run.name for run in runs[1:] if value(run) != value(runs[0])]:
            lines.append(f"{', '.join(others)}: {difference} than {runs[0].name}; these numbers may not compare.")
    return lines


COMPARABLE: Mapping[str, Callable[[Run], Any]] = {
    "learnt from or scored on other data": lambda run: run.about["tasks"],
    "scored on another split": lambda run: run.about["config"]["evaluation"].get("split"),
    "scored with another set of labels to choose from": lambda run: run.about["config"]["evaluation"].get("labels"),
}
"""What two runs must have in common for their numbers to compare, by the warning if they do not."""


def size_rows(run: Run) -> list[list[str]]:
    """One row a task: its name and examples of each split."""
    sizes = run.about.get("sizes", {})
    splits = ("train", "validation", "test")
    return [[task, *(str(sizes.get(task, {}).get(split, "-")) for split in splits)] for task in run.scores.tasks]


def _parts(method: Mapping[str, Any]) -> str:
    """A composition in one line: 'init kaiming; penalty sign-magnitude (weight 0.01, alpha 100); ...'."""
    parts = [("init", method["init"]), *(("penalty", part) for part in method["penalties"].values())]
    parts += [(role, method[role]) for role in ("step_rule", "consolidate", "replay", "head") if method.get(role)]
    lines = [_part(role.replace("_", " "), part) for role, part in parts]
    if method["stream"] != "one-by-one":
        lines.append(f"stream {method['stream']}")
    return "; ".join(lines)


def _part(role: str, part: Mapping[str, Any]) -> str:
    settings = _pairs({key: value for key, value in part.items() if key != "kind"})
    return f"{role} {part['kind']}" + (f" ({settings})" if settings else "")


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in values.items())


def _first(values: Mapping[str, Any]) -> str:
    """Like `_pairs`, but the first value without its key, which is in the heading."""
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
