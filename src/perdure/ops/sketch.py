"""Small linear sketches of large tensors: CountSketch for inner products, a three-sided sketch for singular vectors.

Sketches add up like what they sketch, so a mean gradient or its surgery (a c + b r) never needs the full matrix.

    CountSketch      Charikar, Chen and Farach-Colton 2002; standard error of a cosine <= sqrt((1 + cos^2) / buckets)
    low-rank sketch  Tropp, Yurtsever, Udell and Cevher, arXiv 1902.08651, alg. 3.1-4.3 (real field)

Legend: O output features, I input features, Q range width, S core width (2 Q + 1).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perdure.ops.randomized_svd import fixed_signs

CHUNK = 1 << 20
"""Entries hashed at a time."""


@dataclass(frozen=True)
class CountSketch:
    """Adds named tensors of any size into `buckets` numbers: every entry into one random bucket with a random sign.

    Equal (buckets, seed, name) hash alike, so sketches made at different times can be compared. The expected inner product
    of two sketches is that of the tensors; its variance is at most (|x|^2 |y|^2 + <x, y>^2) / buckets.
    """

    buckets: int
    seed: int = 0

    def empty(self) -> Tensor:
        """The sketch of zero, [buckets] fp32."""
        return torch.zeros(self.buckets)

    def add(self, sketch: Tensor, name: str, tensor: Tensor, factor: float = 1.0) -> None:
        """Add factor * the sketch of the tensor called `name` to `sketch`, in place.

        The hash is drawn on the tensor's device: sketches from different kinds of devices cannot be compared.
        """
        flat = tensor.detach().reshape(-1).float()
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator(flat.device).manual_seed(int.from_bytes(digest[:7], "big"))
        signed = flat.new_zeros(2 * self.buckets)  # one half per sign: cheaper than multiplying by signs
        for start in range(0, flat.numel(), CHUNK):
            part = flat[start : start + CHUNK]
            drawn = torch.randint(
                2 * self.buckets, part.shape, generator=generator, dtype=torch.int32, device=flat.device
            )
            signed.index_add_(0, drawn, part)
        sketch.add_((signed[: self.buckets] - signed[self.buckets :]).to(sketch.device), alpha=factor)

    def standard_error(self, cosine: float = 0.0) -> float:
        """Upper bound on the standard error of a cosine between two sketches."""
        return math.sqrt((1 + cosine**2) / self.buckets)


@dataclass(frozen=True, eq=False)
class TestMatrices:
    """The random matrices of a sketch, shared by all matrices of one shape.

    Shapes: `omega` [I, Q], `upsilon` [Q, O], `phi` [S, O], `psi` [S, I].
    """

    __test__ = False  # not a test class despite its name

    omega: Tensor
    upsilon: Tensor
    phi: Tensor
    psi: Tensor

    @classmethod
    def draw(cls, shape: tuple[int, int], width: int, generator: torch.Generator) -> TestMatrices:
        """Gaussian matrices for [O, I] = `shape` and range width Q = min(width, O, I)."""
        out_features, in_features = shape
        width = min(width, *shape)
        core_out, core_in = min(2 * width + 1, out_features), min(2 * width + 1, in_features)
        shapes = (in_features, width), (width, out_features), (core_out, out_features), (core_in, in_features)
        return cls(*(torch.randn(size, generator=generator) for size in shapes))

    def to(self, device: torch.device) -> TestMatrices:
        """The matrices on `device`; they are drawn on the CPU, so that all kinds of devices have the same ones."""
        return TestMatrices(*(matrix.to(device) for matrix in (self.omega, self.upsilon, self.phi, self.psi)))


@dataclass(frozen=True, eq=False)
class LowRankSketch:
    """The sketch of a matrix G [O, I]: its range Y = G omega, co-range X = upsilon G and core Z = phi G psi^T.

    Memory O((O + I) Q + Q^2). Shapes: `Y` [O, Q], `X` [Q, I], `Z` [S, S'].
    """

    Y: Tensor
    X: Tensor
    Z: Tensor

    @classmethod
    def of(cls, matrix_OI: Tensor, tests: TestMatrices, factor: float = 1.0) -> LowRankSketch:
        """The sketch of factor * matrix."""
        matrix = matrix_OI.float()
        Y, X, Z = matrix @ tests.omega, tests.upsilon @ matrix, (tests.phi @ matrix) @ tests.psi.mT
        return cls(Y.mul_(factor), X.mul_(factor), Z.mul_(factor))

    def add_(self, other: LowRankSketch) -> None:
        """Add another sketch made with the same test matrices, in place."""
        self.Y.add_(other.Y)
        self.X.add_(other.X)
        self.Z.add_(other.Z)

    def combined(self, a: float, other: LowRankSketch, b: float) -> LowRankSketch:
        """The sketch of a G + b G'."""
        return LowRankSketch(a * self.Y + b * other.Y, a * self.X + b * other.X, a * self.Z + b * other.Z)

    def svd(self, tests: TestMatrices, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """U [O, R], S [R] descending, Vh [R, I]: leading singular triplets of the reconstruction Q C P^T.

        With Q = orth(Y), P = orth(X^T) and C = (phi Q)^+ Z ((psi P)^+)^T the reconstruction is exact for matrices of rank <= Q,
        otherwise E ||G - Q C P^T||_F^2 <= `error_factor` times the best error of a lower rank.
        """
        range_OQ = torch.linalg.qr(self.Y.double()).Q
        corange_IQ = torch.linalg.qr(self.X.double().mT).Q
        # not the default driver: in 1 of 60 runs it gave other last bits for equal inputs
        left = torch.linalg.lstsq(tests.phi.double() @ range_OQ, self.Z.double(), driver="gels").solution
        core = torch.linalg.lstsq(tests.psi.double() @ corange_IQ, left.mT, driver="gels").solution.mT
        U, S, Vh = torch.linalg.svd(core)
        U, Vh = fixed_signs(range_OQ @ U, Vh @ corange_IQ.mT)
        rank = min(rank, S.numel())
        return U[:, :rank].float(), S[:rank].float(), Vh[:rank].float()


def error_factor(width: int, rank: int) -> float:
    """Gamma in E ||G - G^||_F^2 <= Gamma tau_rank(G)^2, tau the best error of that rank; rank < width - 1 (theorem 5.1).

    Gamma = (S - 1) / (S - Q - 1) * (Q + rank - 1) / (Q - rank - 1) with Q = width, S = 2 Q + 1: about 2 (Q + rank) / (Q - rank).
    """
    return 2 * (width + rank - 1) / (width - rank - 1)
