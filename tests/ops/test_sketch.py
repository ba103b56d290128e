"""Sketches: unbiased within their standard error, linear, repeatable; the low-rank one exact or within its bound."""

import math

import pytest
import torch
from torch import Tensor

from perdure.methods.measured.full_gradients import Sketcher
from perdure.ops.randomized_svd import fixed_signs
from perdure.ops.sketch import CHUNK, CountSketch, LowRankSketch, TestMatrices, error_factor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(cosine: float, size: int = 5000) -> tuple[Tensor, Tensor]:
    """Two unit vectors with exactly this cosine."""
    x, y = torch.randn(2, size, generator=generator(0), dtype=torch.float64)
    x = x / x.norm()
    y = y - (x @ y) * x
    return x, cosine * x + math.sqrt(1 - cosine**2) * y / y.norm()


def sketched(sketch: CountSketch, **tensors: Tensor) -> Tensor:
    """The sketch of all tensors together, [buckets]."""
    found = sketch.empty()
    for name, tensor in tensors.items():
        sketch.add(found, name, tensor)
    return found


@pytest.mark.parametrize("cosine", [0.0, -0.3, 0.8])
def test_cosines_are_right_within_their_standard_error(cosine: float) -> None:
    """200 independent sketches: the mean within 4 standard errors of the truth, the spread as stated (20 %)."""
    x, y = vectors(cosine)
    sketches = [CountSketch(400, seed) for seed in range(200)]
    found = torch.tensor([float(sketched(s, a=x) @ sketched(s, a=y)) for s in sketches])
    error = sketches[0].standard_error(cosine)
    assert abs(float(found.mean()) - cosine) < 4 * error / math.sqrt(200)
    assert 0.8 * error < float(found.std()) < 1.2 * error


def test_count_sketch_by_hand() -> None:
    """One bucket: the signed sum, which is x or -x for a single entry; two sketches agree about the sign."""
    one = CountSketch(1, 3)
    sketch = sketched(one, a=torch.tensor([2.5]))
    assert sketch.abs().tolist() == [2.5]
    assert float(sketch @ sketched(one, a=torch.tensor([4.0]))) == 10.0
    assert one.standard_error() == 1.0


def test_count_sketch_is_linear_and_hashes_by_name_and_seed() -> None:
    sketch, (x, y) = CountSketch(64), vectors(0.2, 300)
    added = sketched(sketch, a=x)
    sketch.add(added, "a", y, factor=-2.0)
    assert torch.allclose(added, sketched(sketch, a=x - 2 * y), atol=1e-6)
    assert torch.equal(sketched(sketch, a=x), sketched(CountSketch(64), a=x.reshape(20, 15)))
    assert not torch.equal(sketched(sketch, a=x), sketched(sketch, b=x))
    assert not torch.equal(sketched(sketch, a=x), sketched(CountSketch(64, seed=1), a=x))
    assert torch.allclose(sketched(sketch, a=x, b=y), sketched(sketch, a=x) + sketched(sketch, b=y))


def test_tensors_beyond_one_chunk_keep_their_norm() -> None:
    x = torch.randn(CHUNK + 1000, generator=generator(0))
    found = sketched(CountSketch(10_000), a=x)
    assert float(found @ found / (x @ x)) == pytest.approx(1.0, abs=5 * math.sqrt(2 / 10_000))


def matrix(height: int, width: int, decay: float) -> Tensor:
    """Singular values 1, decay, decay^2, ..."""
    size = min(height, width)
    U = torch.linalg.qr(torch.randn(height, size, generator=generator(1))).Q
    V = torch.linalg.qr(torch.randn(width, size, generator=generator(2))).Q
    return U * decay ** torch.arange(size) @ V.mT


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (7, 50)])
def test_low_rank_matrices_are_recovered_exactly(shape: tuple[int, int]) -> None:
    exact = matrix(*shape, 0.5)
    U, S, Vh = torch.linalg.svd(exact, full_matrices=False)
    exact = U[:, :5] * S[:5] @ Vh[:5]
    tests = TestMatrices.draw(shape, 8, generator(0))
    found_U, found_S, found_Vh = LowRankSketch.of(exact, tests).svd(tests, 5)
    assert torch.allclose(found_U * found_S @ found_Vh, exact, atol=1e-5)
    assert torch.allclose(found_U.abs(), U[:, :5].abs(), atol=1e-3)
    assert torch.allclose(fixed_signs(found_U, found_Vh)[0], found_U)


def test_error_factor_by_hand() -> None:
    """Q = 8, S = 17, rank 3: 16/8 * 10/4 = 5."""
    assert error_factor(8, 3) == 5.0


@pytest.mark.parametrize("decay", [0.7, 0.9, 0.99])
def test_error_stays_within_the_bound(decay: float) -> None:
    """Mean squared error over 30 draws <= the smallest of the theorem's bounds over all ranks; and far above 0 at slow decay."""
    exact = matrix(60, 50, decay)
    spectrum = torch.linalg.svdvals(exact)
    bound = min(error_factor(16, rank) * float(spectrum[rank:].square().sum()) for rank in range(15))
    errors = []
    for seed in range(30):
        tests = TestMatrices.draw((60, 50), 16, generator(seed))
        U, S, Vh = LowRankSketch.of(exact, tests).svd(tests, 16)
        errors.append(float((exact - U * S @ Vh).square().sum()))
    assert sum(errors) / 30 <= bound
    assert sum(errors) / 30 >= float(spectrum[16:].square().sum())


def test_the_sketch_is_linear() -> None:
    x, y = matrix(20, 30, 0.8), torch.randn(20, 30, generator=generator(5))
    tests = TestMatrices.draw((20, 30), 6, generator(0))
    summed = LowRankSketch.of(x, tests)
    summed.add_(LowRankSketch.of(y, tests, factor=0.5))
    mixed = LowRankSketch.of(x, tests).combined(1.0, LowRankSketch.of(y, tests), 0.5)
    direct = LowRankSketch.of(x + 0.5 * y, tests)
    for found in (summed, mixed):
        assert all(torch.allclose(getattr(found, n), getattr(direct, n), atol=1e-4) for n in "YXZ")


def test_memory_is_linear_in_the_sides() -> None:
    """4096 x 11008, Q = 64: 0.98 M numbers against 45 M."""
    tests = TestMatrices.draw((4096, 11008), 64, generator(0))
    sketch = LowRankSketch.of(torch.zeros(4096, 11008), tests)
    numbers = sum(getattr(sketch, n).numel() for n in "YXZ")
    assert numbers == (4096 + 11008) * 64 + 129**2
    assert numbers < 4096 * 11008 / 40


def test_equal_sketches_give_equal_bits_whatever_the_memory_held_before() -> None:
    """A rank-one matrix, whose further triplets are noise: the least squares inside must not read memory it did not set."""
    tests = TestMatrices.draw((10, 12), 8, generator(0))
    sketch = LowRankSketch.of(
        torch.randn(10, 1, generator=generator(1)) @ torch.randn(1, 12, generator=generator(2)), tests
    )
    first = sketch.svd(tests, 4)
    for fill in range(64):
        junk = [torch.full((size,), fill % 5 - 2, dtype=torch.int32) for size in (8, 10, 12) for _ in range(20)]
        del junk
        assert all(torch.equal(a, b) for a, b in zip(first, sketch.svd(tests, 4), strict=True))


def test_a_sketch_is_made_where_its_matrix_is() -> None:
    """On the device without memory, as on any other: test matrices drawn on the CPU come along."""
    sketcher = Sketcher(4, 16, lambda what: generator(0))
    matrix = torch.empty(6, 5, device="meta")
    sketch = LowRankSketch.of(matrix, sketcher.tests((6, 5), matrix.device))
    assert {part.device.type for part in (sketch.Y, sketch.X, sketch.Z)} == {"meta"}
    here = sketcher.tests((6, 5), torch.device("cpu"))
    assert torch.equal(here.omega, TestMatrices.draw((6, 5), 4, generator(0)).omega)
