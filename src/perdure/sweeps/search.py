"""Settings that Optuna chooses inside a sweep (extra `search`), the same number of trials for every row.

    search: {training.learning_rate: loguniform(1e-4, 1e-2)}         # of every row; a row may have its own `search` as well
    trials: 16
    methods:
      ps-lora: {search: {method.penalties.sign-magnitude.weight: loguniform(1e-3, 1e-1)}}

Trials are asked for in rounds of `ROUND`: the first two at random, later ones where the records so far promise most (TPE). What
was asked is kept in OUT/search.json, so that a sweep that was stopped goes on with the same trials, whatever failed meanwhile.
"""

from __future__ import annotations

import hashlib
import math
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perdure.errors import ConfigError
from perdure.files.durable import read_json, write_json
from perdure.sweeps.plan import SweepConfig, cells

ROUND = 4
RANDOM = 8
"""Trials of a row before its records are asked."""
PATIENCE = 25
"""How often a new trial is asked for before a space of few values counts as used up."""
FORM = re.compile(r"(uniform|loguniform|int)\(([^,()]+),([^,()]+)\)")
FORMS = "uniform(a, b), loguniform(a, b), int(a, b) or a list of values"


def rounds(sweep: SweepConfig, out: Path) -> Iterator[SweepConfig]:
    """The sweep with the trials of one more round each time, to be run before the next is asked for; itself without a search.

    Raises:
        ConfigError: a space cannot be read, Optuna is missing, scores are of test examples, or `out` holds another search.
    """
    spaces = {name: {**sweep.search, **row.get("search", {})} for name, row in sweep.methods.items()}
    if not any(spaces.values()):
        yield sweep
        return
    _check(sweep, spaces)
    kept = out / "search.json"
    asked = _begun(kept, spaces)
    if any(asked.values()):
        yield _with(sweep, asked)  # those that were stopped come first
    while more := {name: new for name, space in spaces.items() if (new := _ask(sweep, name, space, asked[name], out))}:
        asked |= {name: asked[name] + new for name, new in more.items()}
        write_json(kept, {"spaces": spaces, "asked": asked})
        yield _with(sweep, asked)


def best(sweep: SweepConfig, out: Path) -> list[str]:
    """For each row of a search its best trial, in words."""
    lines: list[str] = []
    if not (out / "search.json").is_file():
        return lines
    for name, row in sweep.methods.items():
        scored = _scored(sweep, name, row.get("trials", []), out)
        if scored:
            score, trial = max(scored, key=lambda each: each[0])
            told = ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in trial.items()
            )
            lines.append(f"{name}: best of {len(scored)} trials {100 * score:.1f} ({told})")
    return lines


def distribution(place: str, given: Any) -> Any:
    """Optuna's distribution of `uniform(a, b)`, `loguniform(a, b)`, `int(a, b)`, or a list of values.

    Raises:
        ConfigError: it is none of them, or its bounds are not in order.
    """
    from optuna import distributions

    if isinstance(given, list) and given:
        return distributions.CategoricalDistribution(given)
    if isinstance(given, str) and (found := FORM.fullmatch(given.replace(" ", ""))):
        kind = found[1]
        try:
            low, high = (int(bound) if kind == "int" else float(bound) for bound in found.groups()[1:])
        except ValueError:
            raise ConfigError(f"{place}: the bounds of {given!r:.80} are no numbers.") from None
        if not (math.isfinite(low) and low < high < math.inf) or (kind == "loguniform" and low <= 0):
            above = ", above 0" if kind == "loguniform" else ""
            raise ConfigError(f"{place}: {given!r:.80} needs a lower and a higher bound{above}.")
        if kind == "int":
            return distributions.IntDistribution(int(low), int(high))
        return distributions.FloatDistribution(low, high, log=kind == "loguniform")
    raise ConfigError(f"{place}: expected {FORMS}; got {given!r:.80}.")


def _check(sweep: SweepConfig, spaces: Mapping[str, Mapping[str, Any]]) -> None:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("`search` needs Optuna. Install it: pip install 'perdure[search]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name, space in spaces.items():
        for key, given in space.items():
            distribution(f"methods.{name}.search.{key}", given)
    first = next(cells(_with(sweep, {name: [] for name in spaces})))
    if first.config.evaluation.split != "validation":
        raise ConfigError(
            "A search chooses settings by their scores, so it must not see test examples: set evaluation.split: validation under "
            "`settings`."
        )


def _begun(kept: Path, spaces: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What was asked for so far."""
    if not kept.is_file():
        return {name: [] for name in spaces}
    found = read_json(kept)
    if found["spaces"] != spaces:
        raise ConfigError(
            f"'{kept.parent}' holds a search of other spaces or rows. Choose another folder, or set `search` as it was."
        )
    return found["asked"]


def _with(sweep: SweepConfig, asked: Mapping[str, list[dict[str, Any]]]) -> SweepConfig:
    rows = {
        name: {
            **{key: value for key, value in row.items() if key != "search"},
            **({"trials": asked[name]} if asked[name] else {}),
        }
        for name, row in sweep.methods.items()
    }
    return sweep.model_copy(update={"methods": rows, "search": {}})


def _ask(
    sweep: SweepConfig, name: str, space: Mapping[str, Any], known: list[dict[str, Any]], out: Path
) -> list[dict[str, Any]]:
    """The next trials of a row, none twice; the same for the same records. Empty once it has had all, or there is no other."""
    import optuna

    count = min(ROUND, sweep.trials - len(known)) if space else 0
    seed = int.from_bytes(hashlib.sha256(f"{sweep.name}/{name}/{len(known)}".encode()).digest()[:4], "big")
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM)
    )
    wanted = {key: distribution(key, given) for key, given in space.items()}
    for score, trial in _scored(sweep, name, known, out):
        study.add_trial(optuna.trial.create_trial(params=trial, distributions=wanted, value=score))
    new: list[dict[str, Any]] = []
    for _ in range(PATIENCE * count):
        if len(new) == count:
            break
        trial = {key: rounded(value, wanted[key]) for key, value in study.ask(wanted).params.items()}
        if trial not in (*known, *new):
            new.append(trial)
    return new


def rounded(value: Any, within: Any) -> Any:
    """A float with three digits, as one would write it, inside the bounds."""
    return min(max(float(f"{value:.3g}"), within.low), within.high) if isinstance(value, float) else value


def _scored(
    sweep: SweepConfig, name: str, trials: list[dict[str, Any]], out: Path
) -> list[tuple[float, dict[str, Any]]]:
    """The trials of which every run has a record, with their mean average accuracy."""
    found = []
    row = {name: {**sweep.methods[name], "search": {}, "trials": trials}}
    scores: dict[str, list[float | None]] = {}
    for cell in cells(sweep.model_copy(update={"methods": row, "search": {}})) if trials else ():
        record = out / "records" / f"{cell.id}.json"
        score = read_json(record)["scores"]["average_accuracy"] if record.is_file() else None
        scores.setdefault(repr({key: cell.varied[key] for key in trials[0]}), []).append(score)
    for trial in trials:
        own = [score for score in scores[repr(trial)] if score is not None]
        if len(own) == len(scores[repr(trial)]):
            found.append((statistics.mean(own), trial))
    return found
