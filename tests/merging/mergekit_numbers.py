"""Writes mergekit_numbers.json: what mergekit makes of small updates, for test_like_mergekit.py. Run by hand, in an environment
that has perdure and mergekit 0.1.5 (pip install --no-deps mergekit==0.1.5 will do):

    python -m tests.merging.mergekit_numbers

Updates are given as models on a base of zeros. Where mergekit draws at random it gets perdure's draws for module "m" and seed 0.
"""

import json
from importlib import import_module
from pathlib import Path

import torch

from perdure.merging.dare import drawn

NUMBERS = Path(__file__).with_suffix(".json")
WEIGHTS = [[1, 1], [0.5, 0.5], [0.7, 0.3], [2, 1], [1, -1], [0.5, 0.3, 0.4]]
SPARSE = {"density": 0.4}
ON_BASE = {
    "task_arithmetic": [{}, {"lambda": 0.5}],
    "ties": [SPARSE, {**SPARSE, "normalize": False}, {**SPARSE, "rescale": True, "lambda": 2.0}],
    "dare_ties": [SPARSE, {**SPARSE, "normalize": True}],
    "dare_linear": [SPARSE, {**SPARSE, "rescale": False}],
    "breadcrumbs": [{"density": 0.6, "gamma": 0.1}, {"density": 0.95, "gamma": 0.1, "rescale": True}],
    "breadcrumbs_ties": [{"density": 0.6, "gamma": 0.1}, {"density": 0.6, "gamma": 0.0, "normalize": True}],
    "della": [{"density": 0.5, "epsilon": 0.3}, {"density": 0.4, "rescale": False}],
    "della_linear": [{"density": 0.5, "epsilon": 0.3}],
    "multislerp": [{}],
    "nuslerp": [{}],
}
"""Method -> its options; each with all weights, except where mergekit itself divides by 0."""
UNWEIGHTED = {"sce": [{}, {"select_topk": 0.5}], "model_stock": [{}], "ram": [{"epsilon": 0.5}]}
WITHOUT_BASE = {"karcher": [{}]}
OF_TWO = {"slerp": [{"t": 0.3}, {"t": 1.2}], "nearswap": [{"t": 0.5}]}


def updates() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(A, B) of three updates."""
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(2, 6, generator=generator), torch.randn(4, 2, generator=generator)) for _ in range(3)]


def merged(method: str, deltas: list[torch.Tensor], options: dict, weights: list[float] | None, base: str) -> list:
    """mergekit's result."""
    merge_tensors = import_module("mergekit.merge_methods.api").merge_tensors

    ids = ["base", *"abc"[: len(deltas)]] if base == "zeros" else [*"abc"[: len(deltas)]]
    tensors = [torch.zeros_like(deltas[0]), *deltas] if base == "zeros" else deltas
    parameters = dict(options)
    if weights is not None:
        parameters["weight"] = dict(zip("abc", weights, strict=False))
    queue = [drawn(0, index) for index in range(len(deltas))]

    def bernoulli(shares: torch.Tensor) -> torch.Tensor:
        draws = queue.pop(0)("m", 0, (shares.shape[0], shares.shape[1])).astype("float64")
        return (torch.from_numpy(draws) < shares.double() * 2**32).to(shares.dtype)

    original, torch.bernoulli = torch.bernoulli, bernoulli
    try:
        index = {"zeros": 0, "first": 0, "none": None}[base]
        return merge_tensors(tensors, method, parameters=parameters, ids=ids, base_index=index).tolist()
    finally:
        torch.bernoulli = original


def cases() -> list[dict]:
    """Every method with its options and weights, and mergekit's result."""
    every = [B @ A for A, B in updates()]
    found: list[dict] = []

    def add(method: str, count: int, options: dict, weights: list[float] | None, base: str, size: float = 1.0) -> None:
        deltas = [size * delta for delta in every[:count]]
        result = merged(method, deltas, options, weights, base)
        found.append(
            {"method": method, "options": options, "weights": weights, "count": count, "size": size, "is": result}
        )

    for weights in WEIGHTS:
        for method, ways in ON_BASE.items():
            if (method == "nuslerp" and len(weights) > 2) or (method == "multislerp" and sum(weights) == 0):
                continue
            for options in ways:
                add(method, len(weights), options, weights, "zeros")
        if sum(weights):
            add("linear", len(weights), {}, weights, "none")
    for count in (2, 3):
        for methods, base in ((UNWEIGHTED, "zeros"), (WITHOUT_BASE, "none")):
            for method, ways in methods.items():
                for options in ways:
                    add(method, count, options, None, base)
    add("sce", 2, {}, None, "zeros", 1e-4)  # so small that mergekit weighs the updates equally
    for method, ways in OF_TWO.items():
        for options in ways:
            add(method, 2, options, None, "first")
    return found


def main() -> None:
    """Write the file."""
    from importlib.metadata import version

    found = {
        "mergekit": version("mergekit"),
        "updates": [{"A": A.tolist(), "B": B.tolist()} for A, B in updates()],
        "cases": cases(),
    }
    lines = ",\n".join(json.dumps(case) for case in found["cases"])
    head = json.dumps({key: found[key] for key in ("mergekit", "updates")})[:-1]
    NUMBERS.write_text(f'{head}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
