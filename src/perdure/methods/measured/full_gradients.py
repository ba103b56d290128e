"""Mean gradients of the full target weights, for the inits that start from them (LoRA-GA, SLICE): dense, or as sketches.

    DenseGradients      one fp32 matrix per module, exact: the reference                        O I numbers a module
    SketchedGradients   a range, co-range and core sketch for the singular vectors and a        (O + I) Q + S^2 + buckets
                        CountSketch for inner products, summed during backward: one module's
                        gradient is alive at a time

Legend: O output features, I input features, Q sketch width, S = 2 Q + 1, K singular triplets requested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from perdure.errors import DataError, TrainingError
from perdure.methods.contract.context import Context
from perdure.ops import surgery
from perdure.ops.randomized_svd import fixed_signs, randomized_svd
from perdure.ops.sketch import CountSketch, LowRankSketch, TestMatrices
from perdure.ops.surgery import UNCHANGED, Coefficients, Gram
from perdure.tasks.task import Example

Storage = Literal["dense", "sketched"]
Triplets = tuple[Tensor, Tensor, Tensor]
"""U [O, K], S [K], Vh [K, I]."""


class DenseGradients:
    """A mean gradient of every target module's weight; exact up to the randomised SVD (`iterations`, generator by module)."""

    def __init__(self, generator: Callable[[str], torch.Generator], iterations: int = 4) -> None:
        self._sums: dict[str, Tensor] = {}
        self._generator, self._iterations = generator, iterations

    def add(self, module: str, grad_OI: Tensor, factor: float) -> None:
        """Add factor * gradient."""
        if module in self._sums:
            self._sums[module].add_(grad_OI, alpha=factor)
        else:
            self._sums[module] = grad_OI.detach().float() * factor

    def norms(self) -> dict[str, float]:
        """Module -> Frobenius norm."""
        return {module: float(grad.norm()) for module, grad in self._sums.items()}

    def gram(self, module: str, other: FullGradients) -> Gram:
        """Inner products with another one of the same class."""
        assert isinstance(other, DenseGradients)
        return surgery.gram(self._sums[module], other._sums[module])

    def triplets(
        self, module: str, count: int, old: FullGradients | None = None, mix: Coefficients = UNCHANGED, remove: int = 0
    ) -> Triplets:
        """At most `count` leading singular triplets of a c + b r: c is this one, r is `old`, (a, b) is `mix`.

        With `remove` = k: of c - U U^T c instead, U the top-k left singular vectors of r.
        """
        matrix = self._sums[module]
        if old is not None:
            assert isinstance(old, DenseGradients)
            other = old._sums[module]
            matrix = surgery.null_space(matrix, other, remove) if remove else surgery.combine(matrix, other, mix)
        return self._svd(module, matrix, count)

    def weighted_triplets(self, module: str, count: int, weigh: Callable[[Tensor], Tensor]) -> Triplets:
        """Leading singular triplets of c P, where `weigh` maps rows [N, I] to rows times P."""
        return self._svd(module, weigh(self._sums[module]), count)

    def _svd(self, module: str, matrix_OI: Tensor, count: int) -> Triplets:
        return randomized_svd(matrix_OI, count, self._generator(module), width=2 * count, iterations=self._iterations)

    def drop(self, module: str) -> None:
        """Free a module that is not needed any more."""
        del self._sums[module]


class Sketcher:
    """Test matrices (one set per shape) and a hash, shared by all gradients that are compared or mixed."""

    def __init__(self, width: int, buckets: int, generator: Callable[[str], torch.Generator]) -> None:
        self.hash = CountSketch(buckets, seed=int(torch.randint(1 << 30, (), generator=generator("hash"))))
        self._width, self._generator = width, generator
        self._tests: dict[tuple[tuple[int, int], torch.device], TestMatrices] = {}

    def tests(self, shape: tuple[int, int], device: torch.device) -> TestMatrices:
        """The test matrices for weights of this shape on this device."""
        if (shape, device) not in self._tests:
            drawn = TestMatrices.draw(shape, self._width, self._generator(f"tests.{shape}"))
            self._tests[shape, device] = drawn.to(device)
        return self._tests[shape, device]


class SketchedGradients:
    """Methods as of `DenseGradients`, within the errors stated in `ops.sketch`. Keeps no matrix of a weight's size."""

    def __init__(self, sketcher: Sketcher) -> None:
        self._sketcher = sketcher
        self._sketches: dict[str, LowRankSketch] = {}
        self._hashed: dict[str, Tensor] = {}

    def add(self, module: str, grad_OI: Tensor, factor: float) -> None:
        tests = self._sketcher.tests((grad_OI.shape[0], grad_OI.shape[1]), grad_OI.device)
        sketch = LowRankSketch.of(grad_OI, tests, factor)
        if module in self._sketches:
            self._sketches[module].add_(sketch)
        else:
            self._sketches[module], self._hashed[module] = sketch, self._sketcher.hash.empty()
        self._sketcher.hash.add(self._hashed[module], module, grad_OI, factor)

    def norms(self) -> dict[str, float]:
        return {module: float(hashed.norm()) for module, hashed in self._hashed.items()}

    def gram(self, module: str, other: FullGradients) -> Gram:
        assert isinstance(other, SketchedGradients)
        return surgery.gram(self._hashed[module], other._hashed[module])

    def triplets(
        self, module: str, count: int, old: FullGradients | None = None, mix: Coefficients = UNCHANGED, remove: int = 0
    ) -> Triplets:
        own = self._sketches[module]
        tests = self._tests_of(own)
        if old is None:
            return own.svd(tests, count)
        assert isinstance(old, SketchedGradients)
        other = old._sketches[module]
        if not remove:
            return own.combined(mix[0], other, mix[1]).svd(tests, count)
        U, S, Vh = own.svd(tests, own.Y.shape[1])
        top, _, _ = other.svd(tests, remove)
        return product_svd((U - top @ (top.mT @ U)) * S, Vh, count)

    def weighted_triplets(self, module: str, count: int, weigh: Callable[[Tensor], Tensor]) -> Triplets:
        own = self._sketches[module]
        U, S, Vh = own.svd(self._tests_of(own), own.Y.shape[1])
        return product_svd(U * S, weigh(Vh), count)

    def _tests_of(self, sketch: LowRankSketch) -> TestMatrices:
        return self._sketcher.tests((sketch.Y.shape[0], sketch.X.shape[1]), sketch.Y.device)

    def drop(self, module: str) -> None:
        del self._sketches[module], self._hashed[module]


FullGradients = DenseGradients | SketchedGradients


def product_svd(left_OK: Tensor, right_KI: Tensor, count: int) -> Triplets:
    """Leading singular triplets of left @ right, at most `count`, without forming the product."""
    Q_OK, R_left = torch.linalg.qr(left_OK)
    Q_IK, R_right = torch.linalg.qr(right_KI.mT)
    U, S, Vh = torch.linalg.svd(R_left @ R_right.mT)
    U, Vh = fixed_signs(Q_OK @ U, Vh @ Q_IK.mT)
    return U[:, :count], S[:count], Vh[:count]


def full_batches(
    ctx: Context, examples: Sequence[Example], size: int, count: int, purpose: str, whose: str
) -> list[Sequence[Example]]:
    """At most `count` random batches of exactly `size` examples, so that a classifier's mean over batches is that over examples.

    A language model's loss is the mean over a batch's answer tokens. Every batch counts the same, so the mean over batches is
    close to, but not, the mean over all tokens.

    Raises:
        DataError: fewer examples than one batch; `whose` names their owner.
    """
    if len(examples) < size:
        raise DataError(
            f"{whose} has {len(examples)} examples, fewer than one batch of {size} for the gradient that starts the "
            "adapter; lower the init's `batch_size`, or provide (or keep) more examples."
        )
    batches = (batch for batch in ctx.batches(examples, size, purpose) if len(batch) == size)
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def add_mean(ctx: Context, batches: Sequence[Sequence[Example]], into: FullGradients, share: float = 1.0) -> None:
    """Add `share` times the batches' mean gradient to `into`."""
    factor = share / len(batches)
    ctx.stream(batches, "gradients", lambda module, grad_OI: into.add(module, grad_OI, factor))


def check_norms(ctx: Context, norms: Mapping[str, float], whose: str) -> None:
    """Every target module has a gradient to start from.

    Raises:
        TrainingError: a module's gradient is zero or not finite; names the module.
    """
    for module in ctx.factors:
        norm = norms.get(module, 0.0)
        if not 0 < norm < math.inf:
            raise TrainingError(
                f"{whose}: the gradient at '{module}' is {'not finite' if norm else 'zero'}, so no adapter can start from it. "
                f"Remove '{module}' from lora.targets if the loss does not depend on it, or choose another init."
            )
