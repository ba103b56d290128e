"""The randomised SVD against the exact one, its repeatability, and its signs."""

import pytest
import torch
from torch import Tensor

from perdure.ops.randomized_svd import fixed_signs, randomized_svd


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decaying(height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A matrix whose singular values are 1, 1/2, 1/4, ..."""
    g = generator(1)
    size = min(height, width)
    U = torch.linalg.qr(torch.randn(height, size, generator=g, dtype=dtype)).Q
    V = torch.linalg.qr(torch.randn(width, size, generator=g, dtype=dtype)).Q
    return U * 0.5 ** torch.arange(size, dtype=dtype) @ V.mT


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (6, 50)])
def test_leading_triplets_are_the_exact_ones(shape: tuple[int, int]) -> None:
    matrix = decaying(*shape)
    U, S, Vh = randomized_svd(matrix, 4, generator())
    exact_U, exact_S, exact_Vh = torch.linalg.svd(matrix, full_matrices=False)
    exact_U, exact_Vh = fixed_signs(exact_U, exact_Vh)
    assert torch.allclose(S, exact_S[:4], atol=1e-10)
    assert torch.allclose(U, exact_U[:, :4], atol=1e-8)
    assert torch.allclose(Vh, exact_Vh[:4], atol=1e-8)


def test_error_is_close_to_the_best_on_a_slow_spectrum() -> None:
    """White noise is the hardest case: still within 5 % of the best rank-8 error after four iterations."""
    matrix = torch.randn(60, 80, generator=generator(2))
    U, S, Vh = randomized_svd(matrix, 8, generator())
    best = torch.linalg.svdvals(matrix)[8:].norm()
    assert (matrix - U * S @ Vh).norm() <= 1.05 * best
    assert torch.allclose(U.mT @ U, torch.eye(8), atol=1e-5)


def test_iterations_help() -> None:
    matrix = torch.randn(60, 80, generator=generator(2))
    kept = [float(randomized_svd(matrix, 8, generator(), iterations=n)[1].norm()) for n in (0, 4)]
    assert kept[0] < 0.95 * kept[1]


def test_same_generator_same_bits() -> None:
    matrix = decaying(20, 15, torch.float32)
    first, again = randomized_svd(matrix, 3, generator(5)), randomized_svd(matrix, 3, generator(5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_rank_above_the_matrix_gives_what_there_is() -> None:
    U, S, Vh = randomized_svd(decaying(5, 3), 10, generator())
    assert (U.shape, S.shape, Vh.shape) == ((5, 3), (3,), (3, 3))


def test_signs_make_the_largest_left_entry_positive() -> None:
    U, Vh = fixed_signs(torch.tensor([[0.6, 0.8], [-0.8, 0.6]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert torch.equal(U, torch.tensor([[-0.6, 0.8], [0.8, 0.6]]))
    assert Vh.tolist() == [[-1.0, -2.0], [3.0, 4.0]]
