"""Verdicts of slow trials, kept in the cache: a proof that was run on a model is not run again when the same model is loaded.

    CACHE/verdicts/<circumstances>.json      {"weights": ..., "verdict": null or a reason, "sha256": of these two and the name}

The circumstances are a checksum of what else a trial's outcome depends on: what it tries and its inputs, settings and
configuration, attention, modes, versions, this package's code, the machine's arithmetic; `weights` is one of every weight
that takes part. A file that says anything else, or cannot be read, counts as none; the trial is then run, as it is where
the cache cannot be written.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from perdure.backbones.device import model_device
from perdure.errors import PerdureError
from perdure.files.durable import write_json
from perdure.files.parsing import parse_json, read_limited
from perdure.tasks.sources.packages import cache_folder

SLOW = 1.0
"""Seconds from which on a trial is worth a checksum of the weights."""


class Failed(str):
    """A reason that an error gave, such as too little memory: another time there may be none, so it is not kept."""

    __slots__ = ()


def kept(what: str, model: nn.Module, inputs: Mapping[str, Any], trial: Callable[[], str | None]) -> str | None:
    """What `trial` finds (None, or a reason), or found before in the same circumstances with the same weights.

    Only on a CPU (a GPU tries faster than it hands out its weights), and only of a model that computes with nothing but its
    tensors: no hooks, no adapter switched on.

    Args:
        what: the trial's name.
        inputs: everything it reads besides the model, as JSON.
    """
    if model_device(model).type != "cpu" or not _plain(model):
        return trial()
    path = _path(what, model, inputs)
    with suppress(OSError, ValueError, TypeError, AttributeError, RuntimeError):
        found = parse_json(read_limited(path))
        weights, verdict = found["weights"], found["verdict"]
        if found["sha256"] == _digest(path.stem, weights, verdict) and weights == _weights(model):
            return verdict
    begun = time.perf_counter()
    verdict = trial()
    if time.perf_counter() - begun >= SLOW and not isinstance(verdict, Failed):
        with suppress(PerdureError, OSError, ValueError, TypeError, AttributeError, RuntimeError):
            weights = _weights(model)
            about = {"weights": weights, "verdict": verdict, "sha256": _digest(path.stem, weights, verdict)}
            write_json(path, about)
    return verdict


def _path(what: str, model: nn.Module, inputs: Mapping[str, Any]) -> Path:
    """The file of these circumstances."""
    config: Any = getattr(model, "config", None)
    configs = [config, config.get_text_config()] if hasattr(config, "get_text_config") else [config] if config else []
    about = {
        "what": what,
        "inputs": inputs,
        "config": {**config.to_dict(), "_name_or_path": ""} if config else None,
        "ways": [sorted((k, str(v)) for k, v in vars(own).items() if "_implementation" in k) for own in configs],
        "modules": [(name, str(type(module)), module.training) for name, module in model.named_modules()],
        "versions": [transformers.__version__, torch.__version__, version("peft"), platform.python_version()],
        "code": _code(),
        "machine": [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
        "arithmetic": [
            torch.get_float32_matmul_precision(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.mkldnn.enabled,
        ],
    }
    name = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "verdicts" / f"{name}.json"


@functools.cache
def _code() -> str:
    """A checksum of this folder's code: a trial that is changed is another one."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _plain(model: nn.Module) -> bool:
    """Whether there are no hooks, and adapters are switched off."""
    modules = list(model.modules())
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    return not hooks and all(getattr(module, "disable_adapters", True) for module in modules)


def _weights(model: nn.Module) -> str:
    """A checksum of every tensor that the model computes with: all but an adapter's, which is switched off."""
    digest, seen = hashlib.sha256(), set[tuple[int, int]]()
    for name, tensor in {**model.state_dict(), **dict(model.named_buffers())}.items():
        place = tensor.data_ptr(), tensor.numel()
        if place in seen or ".lora_" in name:
            continue
        seen.add(place)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _digest(*parts: str | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
