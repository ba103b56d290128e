#!/usr/bin/env bash
# The name of a LoRA adapter decides whether transformers' Trainer decays its weights.
#
# Guess:   An adapter's name is a label. Two runs that differ in nothing but that name (same seed, data, settings) give
#          the same weights. `weight_decay` spares biases and LayerNorm, as the documentation says; LoRA's A and B are
#          neither.
# Happens: The Trainer chooses what to decay by searching the full parameter name, in lower case, for "bias",
#          "layernorm", "rmsnorm", and "norm" at the end of a part of the name. PEFT puts the adapter's name into that
#          name (...q_proj.lora_A.<adapter>.weight). So adapters called "debias", "unbiased-news" or "text_norm" are
#          taken for biases and norms: none of their tensors is decayed, and training with weight_decay=0.1 gives bit
#          for bit the weights of weight_decay=0. No message says so.
# Versions: transformers 5.23.0, peft 0.21.2, accelerate 1.15.0, torch 2.13.0 (CPU), Python 3.11. Date: 2026-11-30.
# Looked up: transformers/trainer.py (`get_decay_parameter_names`: the patterns), trainer_pt_utils.py
#          (`get_parameter_names`: searched in the whole dotted name), training_args.py (`weight_decay`: "excluded from
#          bias and LayerNorm parameters"). No issue or page found that joins it to adapter names.
# Seen:
#   adapter         decayed tensors   norm of A and B   same bits as weight_decay=0
#   default                8 of 8          3.768280   False
#   german                 8 of 8          3.768280   False
#   debias                 0 of 8          3.814908   True
#   unbiased-news          0 of 8          3.814908   True
#   text_norm              0 of 8          3.814908   True
#   As described.
set -euo pipefail
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TQDM_DISABLE=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
  torch==2.13.0 peft==0.21.2 transformers==5.23.0 tokenizers==0.23.3 accelerate==1.15.0 huggingface_hub==2.4.0 \
  safetensors==0.8.0 numpy==2.4.6 >"$work/pip.log" 2>&1 || { cat "$work/pip.log"; exit 1; }
cd "$work"
HF_HOME="$work/hf" "$work/venv/bin/python" - <<'PY'
import contextlib
import io
import warnings

warnings.filterwarnings("ignore")
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments
from transformers.utils import logging

logging.set_verbosity_error()
torch.manual_seed(1)
texts = torch.randint(0, 64, (32, 16))
data = [{"input_ids": row, "labels": row} for row in texts]


def train(adapter, decay):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, config, adapter_name=adapter)
    args = TrainingArguments(
        output_dir="out", per_device_train_batch_size=8, max_steps=40, learning_rate=1e-2, weight_decay=decay,
        report_to=[], save_strategy="no", logging_strategy="no", use_cpu=True, seed=0,
    )
    trainer = Trainer(model, args, train_dataset=data)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    decayed = sum(len(g["params"]) for g in trainer.optimizer.param_groups if g["weight_decay"] > 0)
    flat = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    return decayed, sum(p.requires_grad for p in model.parameters()), flat


_, _, without = train("default", 0.0)
print("adapter         decayed tensors   norm of A and B   same bits as weight_decay=0")
found = {}
for name in ("default", "german", "debias", "unbiased-news", "text_norm"):
    decayed, tensors, flat = train(name, 0.1)
    found[name] = decayed, tensors, torch.equal(flat, without)
    print(f"{name:15} {decayed:8} of {tensors} {flat.norm().item():17.6f}   {found[name][2]}")

labels = all(found[n] == (8, 8, False) for n in ("default", "german"))
spared = all(found[n] == (0, 8, True) for n in ("debias", "unbiased-news", "text_norm"))
if not (labels and spared):
    raise SystemExit("No longer as described.")
print("As described.")
PY
