"""`perdure merge`: options to one library call, and its outcome as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.commands.base_folder import base_folder
from perdure.commands.guarded_merge import GuardedReport, guarded_folders
from perdure.commands.input_moments import measured_moments, read_moments
from perdure.errors import ConfigError, UnknownName
from perdure.merging.folders import merge_folders
from perdure.merging.guarded import Guard
from perdure.merging.like import Liked, rule_like
from perdure.merging.merge_file import Override, read_merge_file
from perdure.merging.result import MergeReport
from perdure.merging.rules import CovarianceGain, Rule, rule_named
from perdure.merging.sources import largest_rank
from perdure.merging.state import merge_into
from perdure.settings.read import parse_overrides
from perdure.tasks.task import Task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def merge(
    adapters: Sequence[str | Path],
    out: str | Path,
    rule: str = "sum",
    settings: Mapping[str, Any] | None = None,
    *,
    like: str | None = None,
    base: str | None = None,
    rank: int | None = None,
    dtype: str | None = None,
    tasks: Sequence[Task] = (),
    backbone: str | Mapping[str, Any] = "minilm",
    overwrite: bool = False,
) -> MergeReport | GuardedReport:
    """Merge adapter folders (or hub ids), oldest first, into the folder `out`.

    Args:
        rule: see docs/merging.md; `settings` are its own, such as {"density": 0.3} for 'ties'.
        like: 'peft' or 'mergekit': `rule` and `settings` are that tool's, with its defaults.
        base: a base model: write the whole model with the merged update in its weights.
        rank: of the adapter; required for rules whose result is not low rank.
        dtype: of what is written: 'fp32', 'bf16' or 'fp16'.
        tasks, backbone: only for 'guarded': one task per adapter, and the model to score them with.

    Raises:
        ConfigError: an unknown rule, setting or dtype, no rank where one is needed, or tasks missing.
        AdapterError, StoreError: see `perdure.merging.folders.merge_folders`.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    if tasks and rule != "guarded":
        raise ConfigError(f"Rule '{rule}' scores no tasks; leave `tasks` out, or merge with rule='guarded'.")
    chosen = _rule_or_guard(rule, settings or {}, like=like)
    request = Request(base=base, rank=rank, dtype=DTYPES[dtype] if dtype else None, overwrite=overwrite)
    if isinstance(chosen, Guard):
        return guarded_folders(adapters, tasks, backbone, out, chosen, **request.output())
    request = replace(request, rank=_rank(chosen, adapters, base, rank))
    return merge_folders(adapters, out, chosen.rule, **request.output())


@dataclass(frozen=True)
class Request:
    """The options of the command; see `perdure merge --help`."""

    adapters: tuple[str, ...] = ()
    rule: str | None = None
    like: str | None = None
    out: Path | None = None
    settings: tuple[str, ...] = ()
    base: str | None = None
    rank: int | None = None
    dtype: torch.dtype | None = None
    file: Path | None = None
    into: Path | None = None
    weight: float = 1.0
    again: bool = False
    moments: tuple[Path, ...] = ()
    tasks: str | None = None
    order: str | None = None
    backbone: str | None = None
    kind: str | None = None
    tolerance: float | None = None
    confidence: float | None = None
    overwrite: bool = False
    overrides: tuple[Override, ...] = ()

    def output(self) -> dict[str, Any]:
        """What is written, as arguments of the library call; a base on a hub is downloaded."""
        base = base_folder(self.base) if self.base else None
        return {"base": base, "rank": self.rank, "dtype": self.dtype, "overwrite": self.overwrite}

    def backbone_settings(self) -> dict[str, Any]:
        """The model to score or measure with."""
        return {"model": self.backbone} | ({"kind": self.kind} if self.kind else {})


@dataclass(frozen=True)
class Outcome:
    """What to print."""

    text: tuple[str, ...]
    values: dict[str, Any]

    def lines(self) -> tuple[str, ...]:
        """For people."""
        return self.text

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return self.values


def run_merge(request: Request) -> Outcome:
    """Carry out the command.

    Raises:
        ConfigError: options that do not go together.
    """
    if request.into is not None:
        return _one_more(request, request.into)
    if request.weight != 1.0 or request.again:
        raise ConfigError("--weight and --again are for --into; else give weights with --set weights=[...].")
    request, chosen = _with_file(request)
    if not isinstance(chosen, Guard) and (request.tolerance is not None or request.confidence is not None):
        raise ConfigError("--tolerance and --confidence are for --rule guarded.")
    if request.out is None:
        raise ConfigError("No output folder: give one with --out.")
    if isinstance(chosen, Guard):
        return _guarded(request, request.out, chosen)
    rank = _rank(chosen, request.adapters, request.base, request.rank)
    output = {**request.output(), "rank": rank}
    moments, rule = _moments(request, chosen.rule), chosen.rule
    report = merge_folders(request.adapters, request.out, rule, overrides=request.overrides, moments=moments, **output)
    return Outcome(tuple(lines_of(report)), report.as_json())


def lines_of(report: MergeReport) -> list[str]:
    """What was written, in a sentence, and its notes."""
    if report.form in ("model", "gguf-model"):
        written = f"Wrote the merged model to {report.out}."
    elif report.energy < 1:
        kept = f"it keeps {100 * report.energy:.2f} % of the energy"
        written = f"Wrote an adapter of rank {report.rank} to {report.out}; {kept}."
    else:
        narrow = {str(DTYPES[name]).removeprefix("torch."): name for name in ("bf16", "fp16")}
        but = f" except for rounding to {narrow[report.dtype]}" if report.dtype in narrow else ""
        written = f"Wrote an adapter of rank {report.rank} to {report.out}; it is exact{but}."
    return [written, *report.notes]


def _rule_or_guard(
    name: str,
    settings: Mapping[str, Any],
    tolerance: float | None = None,
    confidence: float | None = None,
    like: str | None = None,
) -> Liked | Guard:
    """The rule, in the words of `like` if given; for 'guarded' its guard, with `tolerance` and `confidence` if given."""
    if like is not None:
        return rule_like(like, name, settings)
    if name != "guarded":
        return Liked(rule_named(name, settings))
    if unknown := sorted(set(settings) - {"tolerance", "confidence"}):
        raise ConfigError(f"guarded takes a tolerance and a confidence; it has no setting '{unknown[0]}'.")
    for key, value in settings.items():
        if isinstance(value, bool) or not (isinstance(value, int | float) or (key == "confidence" and value is None)):
            raise ConfigError(f"guarded's {key} is a number, not {value!r}.")
    given = {"tolerance": tolerance, "confidence": confidence}
    return Guard(**{**settings, **{key: value for key, value in given.items() if value is not None}})


def _rank(chosen: Liked, adapters: Sequence[str | Path], base: str | None, rank: int | None) -> int | None:
    """The rank to write: as asked for, or as the other tool would; None for a model or the smallest exact one."""
    if isinstance(chosen.rank, int) and not (base is None and rank is None):
        raise ConfigError("svd_rank writes an adapter of that rank; leave it out, or leave --rank and --base out.")
    if base is not None or rank is not None:
        return rank
    return largest_rank(adapters) if chosen.rank == "largest" else chosen.rank


def _with_file(request: Request) -> tuple[Request, Liked | Guard]:
    """The request, completed from its merge file, and the rule."""
    settings = parse_overrides(list(request.settings))
    options = (request.tolerance, request.confidence)
    if request.file is None:
        if request.rule is None:
            raise ConfigError("No rule: give one with --rule NAME, or a merge file with --file MERGE.yaml.")
        return request, _rule_or_guard(request.rule, settings, *options, request.like)
    written = read_merge_file(request.file)
    if request.rule is not None or settings or request.like is not None:
        raise ConfigError("The merge file states the rule and its settings; leave --rule, --set and --like out.")
    if request.adapters and written.adapters:
        raise ConfigError("The merge file lists the adapters; name them there or on the command line, not twice.")
    if written.dtype not in (None, *DTYPES):
        raise ConfigError(f"{request.file}: dtype is one of {', '.join(DTYPES)}, not '{written.dtype}'.")
    keys = ("base", "rank", "tasks", "order", "backbone", "kind")
    filled = replace(
        request,
        adapters=request.adapters or tuple(source.path for source in written.adapters),
        out=request.out or (Path(written.out) if written.out else None),
        dtype=request.dtype or (DTYPES[written.dtype] if written.dtype else None),
        overrides=written.spelt_out(),
        **{key: getattr(request, key) or getattr(written, key) for key in keys},
    )
    if written.rule != "guarded" or written.like is not None:
        return filled, written.chosen()
    if written.overrides or any(source.weight is not None for source in written.adapters):
        raise ConfigError(f"{request.file}: guarded finds the scales itself; it takes no weights and no overrides.")
    return filled, _rule_or_guard("guarded", written.settings, *options)


def _one_more(request: Request, into: Path) -> Outcome:
    if len(request.adapters) != 1:
        raise ConfigError("--into merges one adapter into a state; give exactly one.")
    useful = {"adapters", "rule", "like", "settings", "into", "weight", "again"}
    others = [each for each in fields(request) if each.name not in useful]
    if given := [f"--{each.name}" for each in others if getattr(request, each.name) != each.default]:
        raise ConfigError(
            f"{given[0]} has no meaning with --into; leave it out, and write the state out with `perdure export`."
        )
    if request.rule == "guarded" and request.like is None:
        raise ConfigError(
            "'guarded' scores all tasks again for every adapter; it cannot be kept in a state. Merge all at once."
        )
    if (request.settings or request.like) and request.rule is None:
        raise ConfigError("--set and --like belong to --rule; the state keeps its own settings.")
    settings = parse_overrides(list(request.settings))
    chosen = _rule_or_guard(request.rule, settings, like=request.like) if request.rule else None
    assert not isinstance(chosen, Guard), "refused above"
    if chosen is not None and isinstance(chosen.rank, int):
        raise ConfigError("A state has no rank; leave svd_rank out, and give --rank to `perdure export`.")
    state = merge_into(
        into, request.adapters[0], chosen.rule if chosen else None, weight=request.weight, again=request.again
    )
    about, size = state.about, (state.folder / state.about.file).stat().st_size
    text = (
        f"{state.folder} now holds {about.count} adapter(s), merged by {about.rule}: {size / 1e6:.1f} MB, "
        "whatever their number.",
        *about.notes,
        f"Write it out with: perdure export {state.folder} --as adapter|model --out DIR",
    )
    return Outcome(text, {"state": str(state.folder), **about.model_dump(mode="json")})


def _guarded(request: Request, out: Path, guard: Guard) -> Outcome:
    if request.moments:
        raise ConfigError(
            "guarded scores tasks and weighs no inputs; leave --moments out, or use --rule covariance-gain."
        )
    tasks, backbone = _tasks(request), request.backbone_settings()
    report = guarded_folders(request.adapters, tasks, backbone, out, guard, **request.output())
    lines = lines_of(report.written)
    for step in report.steps:
        lines += step.lines(guard)
    return Outcome(tuple(lines), report.as_json())


def _tasks(request: Request) -> Sequence[Task]:
    if request.tasks is None or request.backbone is None:
        raise ConfigError(
            "Give --tasks (a suite, one task per adapter) and --backbone (the base, to score or measure with)."
        )
    from perdure.tasks.suites import load_suite

    return load_suite(request.tasks, order=request.order).tasks


def _moments(request: Request, rule: Rule) -> list[dict[str, Tensor]] | None:
    """Input second moments, from files or measured; None where the rule needs none or cannot have them."""
    chosen = [rule, *(override.chosen(rule) for override in request.overrides)]
    against = {each.against for each in chosen if isinstance(each, CovarianceGain)}
    measuring = [f"--{name}" for name in ("tasks", "backbone", "order", "kind") if getattr(request, name)]
    if not against and request.moments:
        raise ConfigError("--moments is for covariance-gain; the other rules do not use inputs. Leave it out.")
    if not against and measuring:
        raise ConfigError(
            f"{measuring[0]} is for covariance-gain or guarded; the other rules do not use texts. Leave it out."
        )
    if request.moments and measuring:
        raise ConfigError(f"Input moments are read from --moments or measured on --tasks; leave {measuring[0]} out.")
    if request.moments:
        return [read_moments(path) for path in request.moments]
    if not against or request.tasks is None:
        return None  # covariance-gain says what it needs
    return measured_moments(request.adapters, _tasks(request), request.backbone_settings(), against)
