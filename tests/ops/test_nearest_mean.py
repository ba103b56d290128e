"""perdure.ops.nearest_mean: by hand in the plane, against slow references and torch's Gaussian densities."""

import pytest
import torch

from perdure.ops.nearest_mean import Sums, left_out, oas_shrinkage, shrunk, squared_distances

SQUARE = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def test_two_squares_in_the_plane_by_hand():
    """Corners of a square around (0, 0) and around (10, 0): W is the identity, distances are Euclidean."""
    sums = Sums.empty(2).with_vectors("left", SQUARE).with_vectors("right", SQUARE + torch.tensor([10.0, 0.0]))
    assert sums.means().tolist() == [[0, 0], [10, 0]]
    assert sums.within().tolist() == [[1, 0], [0, 1]]
    distance_NG = squared_distances(torch.tensor([[1.0, 2.0], [7.0, 0.0]]), sums.means(), sums.within())
    torch.testing.assert_close(distance_NG, torch.tensor([[5.0, 85.0], [49.0, 9.0]], dtype=torch.float64))


def test_the_covariance_stretches_distances_by_hand():
    """Variance 4 along the first axis: two steps along it count as one."""
    distance_NG = squared_distances(
        torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.zeros(1, 2), torch.diag(torch.tensor([4.0, 1.0]))
    )
    assert distance_NG.squeeze(1).tolist() == [1, 4]


def test_shrinkage_by_hand():
    """diag(3, 1), D = 2: tr(W^2) = 10, tr(W)^2 = 16, so a = 16 / (n (10 - 8)), 1 at most."""
    cov_DD = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    assert oas_shrinkage(cov_DD, 16) == pytest.approx(0.5)
    assert oas_shrinkage(cov_DD, 4) == 1
    assert shrunk(cov_DD, 0.5).tolist() == [[2.5, 0], [0, 1.5]]
    assert oas_shrinkage(torch.eye(3), 100) == 1  # the identity already


def test_streamed_sums_are_those_of_all_vectors_at_once():
    generator = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(40, 5, generator=generator).double() + place for place, name in enumerate("abc")}
    streamed = Sums.empty(5)
    for start in range(0, 40, 7):
        for name in rows:
            streamed = streamed.with_vectors(name, rows[name][start : start + 7])
    centred = torch.cat([own - own.mean(dim=0) for own in rows.values()])
    torch.testing.assert_close(streamed.within(), centred.T @ centred / 120, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        streamed.means(), torch.stack([own.mean(dim=0) for own in rows.values()]), rtol=1e-12, atol=1e-12
    )


def test_distances_are_those_of_gaussian_densities():
    """-d/2 and torch's log density of N(m_g, S) differ by the same number for every group."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(6, 6, generator=generator).double()
    sums = Sums.empty(6)
    for place in range(4):
        rows = torch.randn(30, 6, generator=generator).double() @ mix + torch.randn(6, generator=generator)
        sums = sums.with_vectors(place, rows)
    asked = torch.randn(50, 6, generator=generator).double() @ mix
    cov_DD = shrunk(sums.within(), 0.3)
    density = torch.distributions.MultivariateNormal(sums.means(), cov_DD)
    own = squared_distances(asked, sums.means(), cov_DD)
    torch.testing.assert_close((-own / 2).log_softmax(1), density.log_prob(asked[:, None]).log_softmax(1))


def test_leaving_a_vector_out_is_computing_anew_without_it():
    """Slow reference: means and covariance from all other vectors, with the same shrinkage (share and level) and divisor."""
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randn(n, 4, generator=generator).double() + 2 * place for place, n in enumerate((5, 9, 3))]
    x_ND, own_N = torch.cat(rows), torch.tensor([place for place, own in enumerate(rows) for _ in own])
    sums = Sums.empty(4)
    for place, own in enumerate(rows):
        sums = sums.with_vectors(place, own)
    share, within = 0.2, sums.within()
    cov_DD, level = shrunk(within, share), float(within.trace()) / 4
    found = left_out(
        squared_distances(x_ND, sums.means(), cov_DD),
        squared_distances(sums.means(), sums.means(), cov_DD),
        own_N,
        torch.tensor([5, 9, 3]),
        (1 - share) / 17,
    )
    for i in range(17):
        kept = [own[[j for j in range(len(own)) if not (own[j] == x_ND[i]).all()]] for own in rows]
        mean_GD = torch.stack([own.mean(dim=0) for own in kept])
        scatter = sum((own - own.mean(dim=0)).T @ (own - own.mean(dim=0)) for own in kept)
        without = (1 - share) * scatter / 17 + share * level * torch.eye(4, dtype=torch.float64)
        torch.testing.assert_close(found[i : i + 1], squared_distances(x_ND[i : i + 1], mean_GD, without))


def test_bad_vectors_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        Sums.empty(2).with_vectors("a", torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(ValueError, match="are the same"):
        shrunk(Sums.empty(2).with_vectors("a", torch.ones(3, 2)).within(), 0.5)
