"""A custom penalty: first-order, importance-weighted sign alignment. Unlike PS-LoRA's, it does not vanish at W = 0.

    L = sum_ij |H_ij| |W_ij| sigmoid(-a W_ij sign(H_ij))        W: the new update, H: the sum of the earlier ones

Run:  python examples/own_method.py        (checks it with perdure.testing, then learns the quickstart with a small budget)
Any configuration can use it as  method: {penalties: {"own_method:SignAlignment": {weight: 0.1}}}  if `perdure` is started in
this folder, or the folder is on PYTHONPATH.
"""

from __future__ import annotations

from perdure.parts import WeightPenalty, dense


class SignAlignment(WeightPenalty):
    """The equation above; zero on the first task."""

    sharpness: float = 1000.0

    def value_and_grad(self, module, factors, past):
        W = dense(factors.update())
        H = dense(past.total[module]) if module in past.total else W.new_zeros(W.shape)
        gate = (-self.sharpness * W * H.sign()).sigmoid()
        value = (H.abs() * W.abs() * gate).sum()
        slope = W.sign() * gate - W.abs() * self.sharpness * H.sign() * gate * (1 - gate)
        return value, *factors.gradients(H.abs() * slope)


if __name__ == "__main__":
    import perdure
    from perdure.testing import check_part

    check_part(SignAlignment)  # same bits, resumed as uninterrupted, weight 0, gradients
    scores = perdure.learn(
        suite="quickstart",
        out="runs/own-method",
        method={"preset": "inc-lora", "penalties": {"own_method:SignAlignment": {"weight": 0.1}}},
        budget={"train": 64, "validation": 0, "test": 100},
    )
    print(f"average {scores.average_accuracy:.3f}, forgetting {scores.forgetting:.3f}")
