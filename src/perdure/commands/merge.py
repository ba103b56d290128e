"""What `perdure merge` was asked for -> the one library call that does it, and what to say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.adapters.format import opened
from perdure.commands.guarded_merge import GuardedReport, guarded_folders
from perdure.errors import AdapterError, ConfigError, UnknownName
from perdure.merging.base import COPIED_SUFFIXES, LEGAL
from perdure.merging.folders import MergeReport, merge_folders
from perdure.merging.guarded import Guard
from perdure.merging.merge_file import Override, read_merge_file
from perdure.merging.rules import RULES, CovarianceGain, Rule, rule_named, unknown_rule
from perdure.merging.sources import open_sources
from perdure.merging.state import State, merge_into
from perdure.ops.lowrank import add_updates
from perdure.settings.read import parse_overrides
from perdure.tasks.task import Task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def merge(
    adapters: Sequence[str | Path],
    out: str | Path,
    rule: str = "sum",
    settings: Mapping[str, Any] | None = None,
    *,
    base: str | None = None,
    rank: int | None = None,
    dtype: str | None = None,
    tasks: Sequence[Task] = (),
    backbone: str | Mapping[str, Any] = "minilm",
    overwrite: bool = False,
) -> MergeReport | GuardedReport:
    """Merge adapter folders (or hub ids), oldest first, into the folder `out`.

    Args:
        rule: see `perdure merge --help`; `settings` are its own, such as {"density": 0.3} of 'ties'.
        base: a base model: write the whole model with the merged update in its weights.
        rank: of the adapter; needed for rules whose result is not low rank.
        dtype: of what is written: 'fp32', 'bf16' or 'fp16'.
        tasks, backbone: for 'guarded' alone: one task an adapter, and the model to score them with.

    Raises:
        ConfigError: an unknown rule, setting or dtype, no rank where one is needed, or tasks missing.
        AdapterError, StoreError: see `perdure.merging.folders.merge_folders`.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    if tasks and rule != "guarded":
        raise ConfigError(f"Rule '{rule}' scores no tasks; leave `tasks` out, or merge with rule='guarded'.")
    common: dict[str, Any] = {
        "base": base_folder(base) if base else None,
        "rank": rank,
        "dtype": DTYPES[dtype] if dtype else None,
        "overwrite": overwrite,
    }
    if rule == "guarded":
        guard = _with_guard(Request(), settings or {}).guard
        return guarded_folders(adapters, tasks, backbone, out, guard, **common)
    if rule not in RULES:
        raise unknown_rule(rule, ["guarded"])
    return merge_folders(adapters, out, rule_named(rule, dict(settings or {})), **common)


@dataclass(frozen=True)
class Request:
    """The options of the command; see `perdure merge --help`."""

    adapters: tuple[str, ...] = ()
    rule: str | None = None
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
    guard: Guard = field(default_factory=Guard)
    overwrite: bool = False
    overrides: tuple[Override, ...] = field(default=())


@dataclass(frozen=True)
class Told:
    """What to tell: lines for people, values for machines."""

    said: tuple[str, ...]
    values: dict[str, Any]

    def lines(self) -> tuple[str, ...]:
        """For people."""
        return self.said

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return self.values


def run_merge(request: Request) -> Told:
    """Do what was asked for.

    Raises:
        ConfigError: options that do not go together.
    """
    if request.into is not None:
        return _one_more(request)
    if request.weight != 1.0 or request.again:
        raise ConfigError("--weight and --again are for --into; else give weights with --set weights=[...].")
    request, rule = _with_file(request)
    if rule is not None and (request.tolerance is not None or request.confidence is not None):
        raise ConfigError("--tolerance and --confidence are for --rule guarded.")
    if request.out is None:
        raise ConfigError("Say where to write with --out.")
    if rule is None:
        if request.moments:
            raise ConfigError(
                "guarded scores tasks and weighs no inputs; leave --moments out, or use --rule covariance-gain."
            )
        return _guarded(request)
    report = merge_folders(
        request.adapters,
        request.out,
        rule,
        base=base_folder(request.base) if request.base else None,
        rank=request.rank,
        dtype=request.dtype,
        overrides=request.overrides,
        moments=_moments(request, rule),
        overwrite=request.overwrite,
    )
    return Told(tuple(lines_of(report)), report.as_json())


def lines_of(report: MergeReport) -> list[str]:
    """What was written, in a sentence or two, and its notes."""
    if report.form == "model":
        said = f"Wrote the merged model to {report.out}."
    elif report.energy < 1:
        said = f"Wrote an adapter of rank {report.rank} to {report.out}; it keeps {100 * report.energy:.2f} % of the energy."
    else:
        narrow = {str(DTYPES[name]).removeprefix("torch."): name for name in ("bf16", "fp16")}
        but = f" but for rounding to {narrow[report.dtype]}" if report.dtype in narrow else ""
        said = f"Wrote an adapter of rank {report.rank} to {report.out}; it is exact{but}."
    return [said, *report.notes]


def base_folder(name: str, revision: str | None = None) -> str:
    """The folder of a base model: a folder, a model perdure knows by name, or one of a hub, fetched into its cache.

    Args:
        revision: branch, tag or commit of a hub's; None = the main branch.

    Raises:
        UnknownName, ConfigError, FetchError: see `perdure.backbones.models.model_folder`.
        AdapterError: the hub does not have it, or cannot be reached.
    """
    from perdure.backbones.models import model_folder

    place = model_folder(name)
    if Path(place).is_dir():
        return place
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    layers = "[0-9]_*/*"  # of sentence-transformers, such as 2_Dense/pytorch_model.bin
    wanted = [*(f"*{suffix}" for suffix in (".safetensors", *sorted(COPIED_SUFFIXES))), *LEGAL, layers]
    try:
        return snapshot_download(place, revision=revision, allow_patterns=wanted)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterError(
            f"The base '{place}' could not be fetched from the hub ({type(error).__name__}). "
            "Check the spelling, or download it and give its folder."
        ) from error


def _with_file(request: Request) -> tuple[Request, Rule | None]:
    """The request with what its merge file adds, and the rule (None: guarded)."""
    settings = parse_overrides(list(request.settings))
    if request.file is None:
        if request.rule is None:
            raise ConfigError("Say how to merge: --rule NAME, or --file MERGE.yaml.")
        if request.rule == "guarded":
            return _with_guard(request, settings), None
        if request.rule not in RULES:
            raise unknown_rule(request.rule, ["guarded"])
        return request, rule_named(request.rule, settings)
    written = read_merge_file(request.file)
    if request.rule is not None or settings:
        raise ConfigError("The merge file states the rule and its settings; leave --rule and --set out.")
    if request.adapters and written.adapters:
        raise ConfigError("The adapters stand in the merge file; name them there or on the command line, not twice.")
    if written.dtype not in (None, *DTYPES):
        raise ConfigError(f"{request.file}: dtype is one of {', '.join(DTYPES)}, not '{written.dtype}'.")
    given = {
        key: getattr(request, key) or getattr(written, key)
        for key in ("base", "rank", "tasks", "order", "backbone", "kind")
    }
    filled = replace(
        request,
        adapters=request.adapters or tuple(source.path for source in written.adapters),
        out=request.out or (Path(written.out) if written.out else None),
        dtype=request.dtype or (DTYPES[written.dtype] if written.dtype else None),
        overrides=written.overrides,
        **given,
    )
    if written.rule != "guarded":
        return filled, written.chosen()
    if written.overrides or any(source.weight is not None for source in written.adapters):
        raise ConfigError(f"{request.file}: guarded finds the scales itself; it takes no weights and no overrides.")
    return _with_guard(filled, written.settings), None


def _with_guard(request: Request, settings: Mapping[str, Any]) -> Request:
    """The request with guarded's settings; those of the command line come first."""
    if unknown := sorted(set(settings) - {"tolerance", "confidence"}):
        raise ConfigError(f"guarded takes a tolerance and a confidence; it has no setting '{unknown[0]}'.")
    for key, value in settings.items():
        if isinstance(value, bool) or not (isinstance(value, int | float) or (key == "confidence" and value is None)):
            raise ConfigError(f"guarded's {key} is a number, not {value!r}.")
    given = {key: value for key in ("tolerance", "confidence") if (value := getattr(request, key)) is not None}
    return replace(request, guard=Guard(**{**settings, **given}))


def _one_more(request: Request) -> Told:
    if len(request.adapters) != 1 or request.into is None:
        raise ConfigError("--into merges one adapter into a state; give exactly one.")
    useless = (
        "out",
        "base",
        "rank",
        "dtype",
        "file",
        "moments",
        "tasks",
        "order",
        "backbone",
        "kind",
        "tolerance",
        "confidence",
        "overwrite",
    )
    values = {name: getattr(request, name) for name in useless}  # 0 was given, although it equals False
    if given := [f"--{name}" for name, value in values.items() if not (value is None or value is False or value == ())]:
        raise ConfigError(
            f"{given[0]} has no meaning with --into; leave it out, and write the state out with `perdure export`."
        )
    if request.rule == "guarded":
        raise ConfigError(
            "'guarded' scores all tasks again for every adapter; it cannot be kept in a state. Merge all at once."
        )
    if request.settings and request.rule is None:
        raise ConfigError("--set belongs to --rule; the state keeps its own settings.")
    rule = rule_named(request.rule, parse_overrides(list(request.settings))) if request.rule else None
    state = merge_into(request.into, request.adapters[0], rule, weight=request.weight, again=request.again)
    return Told(tuple(_state_lines(state)), {"state": str(state.folder), **state.about.model_dump(mode="json")})


def _state_lines(state: State) -> list[str]:
    size = (state.folder / state.about.file).stat().st_size
    return [
        f"{state.folder} now holds {state.about.count} adapter(s), merged by {state.about.rule}: {size / 1e6:.1f} MB, "
        "whatever their number.",
        *state.about.notes,
        f"Write it out with: perdure export {state.folder} --as adapter|model --out DIR",
    ]


def _guarded(request: Request) -> Told:
    assert request.out is not None
    report = guarded_folders(
        request.adapters,
        _tasks(request),
        _backbone(request),
        request.out,
        request.guard,
        base=base_folder(request.base) if request.base else None,
        rank=request.rank,
        dtype=request.dtype,
        overwrite=request.overwrite,
    )
    said = lines_of(report.written)
    for step in report.steps:
        kept = step.kept_gain()
        share = "" if kept is None else f", {100 * kept:.0f} % of the unguarded gain"
        gain = step.test["after"][step.task] - step.test["before"][step.task]
        test, validation = (step.largest_loss(split) for split in ("test", "validation"))
        said.append(
            f"{step.task}: {gain:+.3f} on test{share}; the earlier task that lost most since it was added lost "
            f"{test.mean:+.3f} (standard error {test.standard_error:.3f}) on test and {validation.mean:+.3f} "
            f"({validation.standard_error:.3f}) on validation ({step.evaluations} evaluations)."
        )
        said += [refusal] if (refusal := step.refusal(request.guard)) else []
    return Told(tuple(said), report.as_json())


def _tasks(request: Request) -> Sequence[Task]:
    if request.tasks is None or request.backbone is None:
        raise ConfigError(
            "Give --tasks (a suite, one task an adapter) and --backbone (the base, to score or measure on)."
        )
    from perdure.tasks.suites import load_suite

    return load_suite(request.tasks, order=request.order).tasks


def _backbone(request: Request) -> dict[str, Any]:
    return {"model": request.backbone} | ({"kind": request.kind} if request.kind else {})


def _moments(request: Request, rule: Rule) -> list[dict[str, Tensor]] | None:
    """Input second moments: from files, or measured on the training texts of the tasks; None where the rule needs none."""
    chosen = [rule, *(override.chosen(rule) for override in request.overrides)]
    against = {each.against for each in chosen if isinstance(each, CovarianceGain)}
    measuring = [f"--{name}" for name in ("tasks", "backbone", "order", "kind") if getattr(request, name)]
    if not against:
        if request.moments:
            raise ConfigError("--moments is for covariance-gain; the other rules do not look at inputs. Leave it out.")
        if measuring:
            raise ConfigError(
                f"{measuring[0]} is for covariance-gain or guarded; the other rules do not look at texts. Leave it out."
            )
        return None
    if request.moments:
        if measuring:
            raise ConfigError(
                f"The input moments are read from --moments or measured on --tasks; leave {measuring[0]} out."
            )
        return [read_moments(path) for path in request.moments]
    if request.tasks is None:
        return None  # the rule says what it needs
    from perdure.training.workbench import Workbench

    sources, tasks = open_sources(request.adapters), _tasks(request)
    if len(tasks) != len(sources.adapters):
        raise ConfigError(f"One task an adapter: {len(sources.adapters)} adapters, {len(tasks)} tasks.")
    if len(against) > 1:
        raise ConfigError(
            "Moments are measured as the adapters were trained, apart or one on top of the other: "
            "give all modules the same `against`, or files with --moments."
        )
    bench = Workbench(_backbone(request), tasks, sources.modules)
    updates = [dict(update) for update in sources.updates]
    present = (
        accumulate(updates, add_updates) if against == {"earlier"} else updates
    )  # one on top of the other, or apart
    return [bench.moments(task.name, update) for task, update in zip(tasks, present, strict=True)]


def _is_moment(moment: Tensor) -> bool:
    """Symmetric up to the rounding of half precision, and nothing negative on the diagonal; [I, I]."""
    size = float(moment.abs().max()) if moment.numel() else 0.0
    symmetric = torch.allclose(moment, moment.mT, rtol=0, atol=0.01 * size)
    return symmetric and bool((moment.diagonal() >= 0).all())


def read_moments(path: Path) -> dict[str, Tensor]:
    """Module -> second moment [I, I], from a safetensors file.

    Raises:
        AdapterError: unreadable, or a tensor that is not square and finite, or no second moment.
    """
    if not path.is_file():
        raise AdapterError(f"There is no file of input moments '{path}'.")
    found: dict[str, Tensor] = {}
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
            moment = file.get_tensor(name).float()
            if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not moment.isfinite().all():
                raise AdapterError(f"{path}: '{name}' is no finite square matrix of input moments.")
            if not _is_moment(moment):
                raise AdapterError(
                    f"{path}: '{name}' is no second moment: it is not symmetric, or negative on its diagonal."
                )
            found[name] = moment
    return found
