"""Slow references of merge rules on stacked dense updates [T, O, I], written from their papers (or pages) as they stand."""

import inspect

import torch

from perdure.merging.dare import drawn
from perdure.merging.modules import at_module, module_names
from perdure.ops.lowrank import dense


def on_stacks(updates, merge):
    """Module by module; `merge` also gets the draws in [0, 1) of seed 0 if it takes them."""
    found = {}
    for name in module_names(updates):
        stack = torch.stack([dense(delta) for delta in at_module(updates, name) if delta is not None])
        wants_draws = len(inspect.signature(merge).parameters) > 1
        shape = (stack.shape[1], stack.shape[2])
        draws = [torch.from_numpy(drawn(0, i)(name, 0, shape) / 2**32) for i in range(len(stack))]
        found[name] = merge(stack, torch.stack(draws)) if wants_draws else merge(stack)
    return found


def mean_of_agreeing(stack):
    """TIES' election and mean."""
    sign = torch.where(stack.sum(dim=0) >= 0, 1.0, -1.0)
    agree = (stack.sign() == sign).float()
    return (stack * agree).sum(dim=0) / agree.sum(dim=0).clamp_min(1)


def breadcrumbs(stack, density, gamma):
    """Each update without its outliers and small entries, by sorting."""
    flat = stack.reshape(len(stack), -1)
    total = flat.shape[1]
    first = min(int(gamma * total), total - int(density * total))
    places = flat.abs().argsort(dim=1, descending=True)[:, first : first + int(density * total)]
    return torch.zeros_like(flat).scatter(1, places, flat.gather(1, places)).view_as(stack)


def della(stack, draws, density, epsilon):
    """MagPrune entry by entry: the rank is how many of the row are smaller."""
    kept = torch.zeros_like(stack)
    updates, height, width = stack.shape
    for t in range(updates):
        for i in range(height):
            for j in range(width):
                rank = int((stack[t, i].abs() < stack[t, i, j].abs()).sum())
                share = density - epsilon + 2 * epsilon * rank / (width - 1)
                kept[t, i, j] = stack[t, i, j] / share if draws[t, i, j] < share else 0.0
    return kept


def sce(stack, select):
    """Select by variance, weigh by squares, erase the minority."""
    variance = stack.var(dim=0, unbiased=False).flatten()
    keep = torch.zeros_like(variance)
    keep[variance.topk(int(select * int((variance > 0).sum()))).indices] = 1
    chosen = stack if select == 1 else stack * keep.view(stack.shape[1:])
    weights = chosen.square().sum(dim=(1, 2))
    weights = (weights / weights.sum())[:, None, None]
    agree = (chosen.sign() == torch.where(chosen.sum(dim=0) >= 0, 1.0, -1.0)).float() * weights
    return (chosen * agree).sum(dim=0) / agree.sum(dim=0).clamp_min(1e-30)


def ram(stack, epsilon):
    """The mean of the entries above epsilon, position by position."""
    changed = stack.abs() > epsilon
    return (stack * changed).sum(dim=0) / changed.sum(dim=0).clamp_min(1)


def slerp(stack, t):
    """On two flat vectors; linear if they are parallel."""
    first, second = stack.double().reshape(2, -1)
    cosine = torch.dot(first, second) / first.norm() / second.norm()
    if cosine.abs() > 0.9995:
        return ((1 - t) * stack[0] + t * stack[1]).float()
    angle = cosine.acos()
    turned = (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)
    return turned.view(stack.shape[1:]).float()


def multislerp(stack):
    """Equal weights, with the step in the tangent space that mergekit makes."""
    flat = stack.double().reshape(len(stack), -1)
    lengths = flat.norm(dim=1)
    units = flat / lengths[:, None]
    mean = units.mean(dim=0) / units.mean(dim=0).norm()
    tangent = (units - (units @ mean)[:, None] * mean).mean(dim=0)
    size = tangent.norm() + 1e-300
    result = mean * torch.cos(size) + tangent * (torch.sin(size) / size)
    return (lengths.mean() * result).view(stack.shape[1:]).float()


def karcher(stack):
    """The mean on the sphere by many small steps down the sum of squared angles."""
    flat = stack.double().reshape(len(stack), -1)
    units = flat / flat.norm(dim=1, keepdim=True)
    mean = units.sum(dim=0) / units.sum(dim=0).norm()
    for _ in range(2000):
        dots = (units @ mean).clamp(-1, 1)
        angles = dots.acos()
        factors = torch.where(angles > 1e-7, angles / angles.sin(), 1.0)
        mean = mean + 0.1 * (factors[:, None] * (units - dots[:, None] * mean)).mean(dim=0)
        mean = mean / mean.norm()
    return (flat.norm(dim=1).mean() * mean).view(stack.shape[1:]).float()


def model_stock(stack):
    """t times the mean, t from the mean cosine over pairs."""
    flat = stack.double().reshape(len(stack), -1)
    pairs = [(i, j) for i in range(len(flat)) for j in range(i)]
    cosine = sum(float(torch.cosine_similarity(flat[i], flat[j], dim=0)) for i, j in pairs) / len(pairs)
    t = len(flat) * cosine / (1 + (len(flat) - 1) * cosine)
    return (t * flat.mean(dim=0)).view(stack.shape[1:]).float()
