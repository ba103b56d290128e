"""A run at a glance: `perdure show RUN`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perdure.state.outcomes import TaskOutcome, task_outcomes
from perdure.state.rank_file import bound_in_words, read_bound
from perdure.state.scores import read_scores
from perdure.state.store import DEPLOYED, QUARANTINE, STAGES, Store, set_aside
from perdure.state.words import BASELINE, compared, interval, next_steps, points, state_sentence
from perdure.training.coverage import coverage_line
from perdure.training.metrics import FORMULAS, Scores, averaged, noun

PER_TASK = "one adapter a task"


def describe_run(folder: str | Path) -> dict[str, Any]:
    """Method, model, tasks with scores and sizes, metrics, disk bytes, warnings and next commands; StoreError without a run."""
    store = Store(Path(folder))
    about = store.about
    learnt = [name for name in store.stages() if name not in about.get("history", {})]
    scores = read_scores(folder) if learnt else None
    outcomes = {outcome.task: outcome for outcome in task_outcomes(store)} if learnt else {}
    config = about["config"]
    return {
        "folder": str(folder),
        "finished": store.finished,
        **{key: config[key] for key in ("method", "backbone", "lora", "seed")},
        "adapted": about.get("adapted"),
        "base": about.get("base"),
        "precision": about.get("precision"),
        "source": config.get("suite") or "own tasks",
        "history": list(about.get("history", {})),
        "tasks": _tasks(about, scores, outcomes),
        "state": state_sentence(list(outcomes.values())),
        "advice": next_steps(list(outcomes.values()), str(folder)),
        "metrics": {name: getattr(scores, name) if scores else None for name in FORMULAS},
        "split": config["evaluation"]["split"],
        "deployed": _deployed(store.folder / DEPLOYED),
        "bound": read_bound(store.folder / DEPLOYED),
        "bytes": {
            name: sum(path.stat().st_size for path in (store.folder / name).rglob("*") if path.is_file())
            for name in (STAGES, DEPLOYED, QUARANTINE)
        },
        "warnings": about.get("warnings", []),
        "aside": set_aside(store),
        "next": _next(store, about),
    }


def _tasks(about: dict[str, Any], scores: Scores | None, outcomes: dict[str, TaskOutcome]) -> list[dict[str, Any]]:
    rows = []
    for t, task in enumerate(about["tasks"]):
        stage = scores.stages.index(task) if scores and task in scores.stages else None
        learnt = scores is not None and (stage is not None or scores.stages == ["joint"])
        rows.append(
            {
                "task": task,
                "metric": about.get("asked", {}).get(task, {}).get("metric", "accuracy"),
                "learnt": learnt,
                "added": task in about["added"],
                "sizes": about["sizes"][task],
                "when_learnt": scores.score_matrix[stage][t] if scores and stage is not None else None,
                "now": scores.score_matrix[-1][t] if scores and learnt else None,
                **compared(outcomes.get(task)),
            }
        )
    return rows


def _deployed(folder: Path) -> str | None:
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if (folder / "config.json").is_file():
        return "model"
    return PER_TASK if folder.is_dir() else None


def _next(store: Store, about: dict[str, Any]) -> list[str]:
    folder, own_tasks = store.folder, about["config"].get("suite") or about["config"]["tasks"]
    if not store.finished:
        return [f"perdure resume {folder}" if own_tasks else f"perdure.learn(tasks=[...], out='{folder}') to resume"]
    learnt = [name for name in store.stages() if name in about["tasks"]]
    commands = [f"perdure predict {folder} FILE" + (" --task TASK" if len(about["tasks"]) > 1 else "")]
    if about["config"]["method"]["stream"] != "joint":
        commands.append(f"perdure add {folder} FILE" if own_tasks else f"perdure.add('{folder}', task, tasks=[...])")
    if len(learnt) > 1:
        commands.append(f"perdure rollback {folder} --to {learnt[-2]}")
    export = f"perdure export {folder} --as model --out FOLDER"
    if _deployed(folder / DEPLOYED) == PER_TASK:
        export += " --task TASK"
    return [*commands, f"perdure report {folder}", export]


def run_lines(run: dict[str, Any]) -> Iterator[str]:
    """`describe_run` as lines of text."""
    method, backbone = run["method"], run["backbone"]
    state = "finished" if run["finished"] else "not finished"
    yield f"{run['folder']}: {method['name']} on {backbone['model']}, {run['source']}, seed {run['seed']}, {state}"
    penalties = ", ".join(method["penalties"]) or "no penalty"
    replay = f", replay {method['replay']['kind']}" if method.get("replay") else ""
    yield f"method: init {method['init']['kind']}, {penalties}, consolidate {method['consolidate']['kind']}{replay}"
    yield f"lora: rank {run['lora']['rank']}, alpha {run['lora']['alpha']:g}; precision {run['precision']}"
    if run["adapted"]:
        yield coverage_line(run["adapted"])
    if run["history"]:
        yield f"history: {', '.join(run['history'])}"
    width = max(len(task["task"]) for task in run["tasks"])
    yield f"{'task':<{width}}  train  {run['split']:>10}  when learnt    now  change  95 % interval  baseline"
    for task in run["tasks"]:
        when, now, change, baseline = (points(task[key]) for key in ("when_learnt", "now", "change", "baseline"))
        sizes = f"{task['sizes']['train']:>5}  {task['sizes'][run['split']]:>10}"
        metric = "" if task["metric"] == "accuracy" else noun(task["metric"])
        notes = "added" if task["added"] else "" if task["learnt"] else "not learnt yet"
        notes = ", ".join(note for note in (metric, notes, task["standing"]) if note)
        columns = f"{change:>6}  {interval(task['interval']):>13}  {baseline:>8}"
        yield f"{task['task']:<{width}}  {sizes}  {when:>11}  {now:>5}  {columns}  {notes}".rstrip()
    yield f"scores in points; the interval is of the change. {BASELINE}."
    yield run["state"]
    yield from (f"to do: {line}" for line in run["advice"])
    name_of_score = averaged(task["metric"] for task in run["tasks"])
    for name, value in run["metrics"].items():
        if value is not None:
            yield f"{name.replace('_', ' ').replace('accuracy', name_of_score)}: {100 * value:.1f}"
    bound = f" of {bound_in_words(run['bound'])}" if run["bound"] else ""
    yield f"deployed: {run['deployed'] or 'nothing yet'}{bound}"
    sizes = ", ".join(f"{name} {count / 1e6:.1f} MB" for name, count in run["bytes"].items() if count)
    yield f"on disk: {sizes or 'nothing yet'}"
    for folder, why in run["aside"].items():
        yield f"aside/{folder}: {why}"
    for line in run["warnings"]:
        yield f"warning: {line}"
    for line in run["next"]:
        yield f"next: {line}"
