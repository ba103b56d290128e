#!/usr/bin/env bash
# PEFT's weighted average of n equal LoRA adapters is n times the adapter, the adapter, or an n-th of it.
#
# Guess:   `add_weighted_adapter` with weights that sum to 1 averages what the adapters add to the weights. Merging copies
#          of one adapter, each with weight 1/n, must give that adapter, whichever way of combining is chosen: "linear"
#          is called a weighted average of the task tensors in the merging guide, and TIES at density 1 has nothing to
#          trim and no signs in conflict.
# Happens: With 4 copies "linear", "dare_linear" and "magnitude_prune" give 4 times the update, "ties" a quarter and only
#          "cat" and "svd" the update itself. The first three sum A and B apart, each by the root of its weight, and
#          multiply afterwards: (4 * sqrt(1/4))^2 = 4; for different adapters that also brings in products of one
#          adapter's B with another's A. TIES does divide by how many agree, after the weights were already applied, so
#          weights that sum to 1 divide twice; it expects weights of 1 each. So the right scale of `weights` depends on
#          `combination_type`, and one set of weights compared over the types compares strengths from 1/4 to 4.
#          With `use_rslora` everything is sqrt(rank of the result) larger still.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU), Python 3.11. Date: 2026-11-30.
# Looked up: peft/tuners/lora/model.py (`_generalized_task_arithmetic_weighted_adapter`), peft/utils/merge_utils.py
#          (`ties`, `disjoint_merge`), PEFT's guide "Model merging" (names the methods; nothing on the scale of the weights).
#          The cross terms of "linear" are known from issue 1155 and pull request 3013 (closed, not merged), rsLoRA from
#          issue 3761 (open). That TIES is meant with weights of 1 its author says in pull request 1364, PEFT nowhere.
# Seen:
#   copies               cat             svd          linear     dare_linear magnitude_prune            ties        ties_svd
#   2                 1.0000          1.0000          2.0000          2.0000          2.0000          0.5000          0.5000
#   4                 1.0000          1.0000          4.0000          4.0000          4.0000          0.2500          0.2500
#   As described.
#   rsLoRA 4          4.0000          2.0000          8.0000          8.0000          8.0000          0.5000          0.5000
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
import warnings

warnings.filterwarnings("ignore")
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

types = ("cat", "svd", "linear", "dare_linear", "magnitude_prune", "ties", "ties_svd")


def strength(n, rslora=False):
    """The merged update as a multiple of the one adapter's, and how far it is from that multiple."""
    torch.manual_seed(0)
    config = dict(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False, use_rslora=rslora)
    model = get_peft_model(nn.Sequential(nn.Linear(32, 32)), LoraConfig(**config), adapter_name="copy0")
    layer = model.base_model.model[0]
    for i in range(1, n):
        model.add_adapter(f"copy{i}", LoraConfig(**config))
        for part in (layer.lora_A, layer.lora_B):
            part[f"copy{i}"].load_state_dict(part["copy0"].state_dict())
    update = layer.get_delta_weight("copy0").detach()
    out = {}
    for kind in types:
        more = {} if kind in ("cat", "svd", "linear") else {"density": 1.0}
        names = [f"copy{i}" for i in range(n)]
        model.add_weighted_adapter(names, [1 / n] * n, kind, combination_type=kind, **more)
        merged = layer.get_delta_weight(kind).detach()
        scale = ((merged * update).sum() / update.square().sum()).item()
        out[kind] = scale, ((merged - scale * update).norm() / merged.norm()).item()
    return out


print("copies  " + "".join(f"{k:>16}" for k in types))
as_described = True
for n in (2, 4):
    found = strength(n)
    print(f"{n:<8}" + "".join(f"{found[k][0]:16.4f}" for k in types))
    wanted = {"cat": 1, "svd": 1, "linear": n, "dare_linear": n, "magnitude_prune": n, "ties": 1 / n, "ties_svd": 1 / n}
    as_described &= all(abs(found[k][0] - wanted[k]) < 1e-3 and found[k][1] < 1e-3 for k in types)
if not as_described:
    raise SystemExit("No longer as described.")
print("As described.")
found = strength(4, rslora=True)  # reported as issue 3761, so shown but not checked
print("rsLoRA 4" + "".join(f"{found[k][0]:16.4f}" for k in types))
PY
