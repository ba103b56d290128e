#!/usr/bin/env bash
# The same target_modules adapts exactly opposite halves of a Qwen2-MoE and of a DeepSeek-V3 in transformers 5.
#
# Guess:   `target_modules=["gate_proj", "up_proj", "down_proj"]` adapts the feed-forward projections of those names.
#          Both models have the same three kinds: the dense layer, the shared expert (both plain nn.Linear) and the routed
#          experts (one fused 3-D parameter each since transformers 5). A good engineer expects all of them, or at least
#          the plain linear ones, and the same in both models.
# Happens: On Qwen2-MoE the dense layer and the shared expert get LoRA and the routed experts (most of the weights) none.
#          On DeepSeek-V3 the routed experts get it, and every nn.Linear that really bears these names gets none: PEFT
#          rewrites the list to `target_parameters` and leaves target_modules empty. A name written in full,
#          "...shared_experts.down_proj", is rewritten as well: asking for the shared expert alone adapts the routed
#          experts and not the shared one. Nothing is raised; the warnings only say that a rank_pattern (which PEFT made
#          itself) was ignored. The rule for "qwen2_moe" is applied to some 25 model types (DeepSeek, GLM-4-MoE,
#          Qwen3-MoE, ...) but not to the type "qwen2_moe" itself.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU), Python 3.11. Date: 2026-11-30.
# Looked up: peft/utils/transformers_weight_conversion.py (`_convert_peft_config_moe`: every target that ends in one of
#          the names is moved; the family is looked up in transformers' `_MODEL_TO_CONVERSION_PATTERN`, where "qwen2_moe"
#          is only a value, no key). The documentation of LoraConfig describes `target_parameters`, not the rewriting.
#          PEFT issue 3711 (open, September 2026) reports names in full on a model outside transformers.
# Seen:
#   Qwen2-MoE    the three names        dense 100%  shared expert 100%  routed experts   0%   warnings of it 0
#   DeepSeek-V3  the three names        dense   0%  shared expert   0%  routed experts 100%   warnings of it 0
#   DeepSeek-V3  shared expert in full  dense   0%  shared expert   0%  routed experts 100%   warnings of it 0
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
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DeepseekV3Config, Qwen2MoeConfig

small = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, num_experts_per_tok=2,
)
configs = {
    "Qwen2-MoE": Qwen2MoeConfig(
        num_experts=4, shared_expert_intermediate_size=16, mlp_only_layers=[0], decoder_sparse_step=1, **small
    ),
    "DeepSeek-V3": DeepseekV3Config(
        n_routed_experts=4, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=8,
        kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, **small,
    ),
}
names = ["gate_proj", "up_proj", "down_proj"]
shared = [f"model.layers.1.mlp.shared_experts.{n}" for n in names]


def adapted(model_name, targets):
    """Which of the three kinds does an adapter's update reach? Each weight is compared before and after a merge."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[model_name])
    before = {n: w.detach().clone() for n, w in model.named_parameters()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    model = model.merge_and_unload()
    reach = {"dense": [0, 0], "shared expert": [0, 0], "routed experts": [0, 0]}
    for n, w in model.named_parameters():
        if ".mlp." not in n or "_proj" not in n:
            continue
        kind = "dense" if ".layers.0." in n else "shared expert" if "shared_expert" in n else "routed experts"
        reach[kind][1] += w.numel()
        if not torch.equal(w, before[n]):
            reach[kind][0] += w.numel()
    told = ("shared_expert", "target_modules", "target_parameters", "gate_proj")
    return {k: a / b for k, (a, b) in reach.items()}, sum(any(t in str(w.message) for t in told) for w in caught)


found = []
for model_name, label, targets in (
    ("Qwen2-MoE", "the three names", names),
    ("DeepSeek-V3", "the three names", names),
    ("DeepSeek-V3", "shared expert in full", shared),
):
    reach, warned = adapted(model_name, targets)
    found.append(([round(v, 3) for v in reach.values()], warned))
    parts = "  ".join(f"{k} {v:4.0%}" for k, v in reach.items())
    print(f"{model_name:12} {label:22} {parts}   warnings of it {warned}")

if found != [([1, 1, 0], 0), ([0, 0, 1], 0), ([0, 0, 1], 0)]:
    raise SystemExit("No longer as described.")
print("As described.")
PY
