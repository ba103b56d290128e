#!/usr/bin/env bash
# PEFT's Orthogonal Subspace Fine-tuning is not orthogonal under AdamW, the optimizer that its own page uses.
#
# Guess:   OSF freezes the directions of each weight that matter most and keeps updates orthogonal to them, so that what
#          earlier tasks wrote there cannot be touched. Which optimizer runs does not matter.
# Happens: Hooks project the gradients. SGD then stays outside the frozen subspace to rounding. Adam and AdamW divide
#          every entry of the projected gradient by its own scale, and that no longer is orthogonal: after 200 steps up to
#          a fifth of the update (in Frobenius norm; the worst of two layers, input and output side) lies in the frozen
#          directions. Weight decay is innocent (0 gives the same). Projecting the factors again after
#          `optimizer.step()` brings it back to rounding; the tuner does not.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU), Python 3.11. Date: 2026-11-30.
# Looked up: peft/tuners/osf/layer.py (`_attach_hooks`: gradients only; no hook on the optimizer or the parameters) and
#          PEFT's page "OSF (Orthogonal Subspace Fine-tuning)" (says that updates do not interfere; its examples use
#          AdamW, one with weight decay). No PEFT issue found. The authors' other implementation had the same found in
#          April 2026: Red-Hat-AI-Innovation-Team/mini_trainer, issue 90 (closed).
# Seen:
#   optimizer                     share of the update in the frozen directions   loss
#   SGD                               4.68e-07                                 0.1534 -> 0.1073
#   SGD, momentum 0.9                 4.53e-07                                 0.1534 -> 0.1085
#   Adam                              2.13e-01                                 0.1534 -> 0.0438
#   AdamW                             2.12e-01                                 0.1534 -> 0.0438
#   AdamW, weight decay 0             2.13e-01                                 0.1534 -> 0.0438
#   AdamW, step projected again       2.56e-07                                 0.1534 -> 0.0520
#   As described.
set -euo pipefail
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
  torch==2.13.0 peft==0.21.2 transformers==5.23.0 tokenizers==0.23.3 accelerate==1.15.0 huggingface_hub==2.4.0 \
  safetensors==0.8.0 numpy==2.4.6 >"$work/pip.log" 2>&1 || { cat "$work/pip.log"; exit 1; }
cd "$work"
HF_HOME="$work/hf" "$work/venv/bin/python" - <<'PY'
import torch
from peft import OSFConfig, get_peft_model
from torch import nn

rank = 16  # frozen directions of each 48 x 48 weight
torch.manual_seed(0)
teacher = nn.Sequential(nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 48))
x = torch.randn(512, 48)
with torch.no_grad():
    y = teacher(x)


def frozen(weight):
    u, _, v = torch.linalg.svd(weight)
    return u[:, :rank], v[:rank]


def run(make, project_step=False):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 48))
    sides = [frozen(net[i].weight.detach().clone()) for i in (0, 2)]
    model = get_peft_model(net, OSFConfig(target_modules=["0", "2"], effective_rank=rank))
    layers = [model.base_model.model[i] for i in (0, 2)]
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    losses = []
    for _ in range(200):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if project_step:
            with torch.no_grad():
                for layer, (u, v) in zip(layers, sides):
                    part = layer.osf_svd_params["default"]
                    part["U_low"] -= u @ (u.T @ part["U_low"])
                    part["V_low"] -= (part["V_low"] @ v.T) @ v
    shares = []
    for layer, (u, v) in zip(layers, sides):
        update = layer.get_delta_weight("default").detach()
        shares += [(u.T @ update).norm() / update.norm(), (update @ v.T).norm() / update.norm()]
    return max(shares).item(), losses[0], losses[-1]


cases = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1.0),
    "SGD, momentum 0.9": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "AdamW, weight decay 0": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0),
}
print("optimizer                     share of the update in the frozen directions   loss")
found = {}
for name, make in cases.items():
    share, first, last = found[name] = run(make)
    print(f"{name:29} {share:12.2e} {first:38.4f} -> {last:.4f}")
share, first, last = found["again"] = run(cases["AdamW"], project_step=True)
print(f"{'AdamW, step projected again':29} {share:12.2e} {first:38.4f} -> {last:.4f}")

clean = all(found[n][0] < 1e-4 for n in ("SGD", "SGD, momentum 0.9", "again"))
leaks = all(found[n][0] > 0.05 for n in ("Adam", "AdamW", "AdamW, weight decay 0"))
learns = all(last < first for _, first, last in found.values())
if not (clean and leaks and learns):
    raise SystemExit("No longer as described.")
print("As described.")
PY
