#!/usr/bin/env bash
# Handing a PiSSA or OLoRA model to TRL's DPOTrainer changes what the model computes, before any training.
#
# Guess:   A trainer's constructor leaves the model's function alone. `DPOTrainer(model=peft_model)` without a reference
#          model keeps a frozen copy of the adapter as the reference; the policy still answers as before.
# Happens: The copy is made with `add_adapter("ref", <the same config>)`. With `init_lora_weights="pissa"` or "olora" that
#          call starts a new adapter from the base weight that is there now, which already is the remainder after the
#          first one, and takes the new one out of it too. Then the new adapter's factors are overwritten with those of
#          the first. So policy and reference both stand on a base that lacks r more directions. Since both lack them,
#          the first loss is ln 2 as it should be, and nothing shows. With the usual init the model stays bit for bit.
#          The alternative, `DPOTrainer(model=base, peft_config=...)`, leaves the policy alone, but its reference is the
#          base with the adapter switched off: the remainder, not the model that training starts from; there the first
#          loss is not ln 2.
# Versions: trl 1.16.0, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU), Python 3.11. Date: 2026-11-30.
# Looked up: trl/trainer/dpo_trainer.py (the branch for a PeftModel without a reference model; grpo_trainer, kto_trainer
#          and rloo_trainer have the same lines) and peft/tuners/lora/layer.py (`pissa_init`, `olora_init` write to the
#          base layer). PEFT's documentation and issue 2184 (open) say that PiSSA changes the base weights; its warning
#          against PiSSA beside other adapters is given on loading only, not by `add_adapter`. Nothing found in TRL's
#          documentation or issues says that a trainer adds a second such adapter by itself.
# Seen:
#   init   handed over as       KL(before | after DPOTrainer(...))   first loss (ln 2 = 0.6931)
#   True   PeftModel                  0.000000                                     0.6931
#   True   base + peft_config         0.000000                                     0.6931
#   pissa  PeftModel                  1.016124                                     0.6931
#   pissa  base + peft_config         0.000000                                     0.3376
#   olora  PeftModel                  0.589916                                     0.6931
#   olora  base + peft_config         0.000000                                     0.5917
#   As described.
set -euo pipefail
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TQDM_DISABLE=1 TOKENIZERS_PARALLELISM=false
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
  torch==2.13.0 trl==1.16.0 peft==0.21.2 transformers==5.23.0 tokenizers==0.23.3 datasets==5.2.0 accelerate==1.15.0 \
  huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6 >"$work/pip.log" 2>&1 || { cat "$work/pip.log"; exit 1; }
cd "$work"
HF_HOME="$work/hf" "$work/venv/bin/python" - <<'PY'
import contextlib
import io
import math
import warnings

warnings.filterwarnings("ignore")
import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

disable_progress_bars()
logging.set_verbosity_error()

bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
bpe.train_from_iterator(
    ["good morning"],
    trainers.BpeTrainer(
        vocab_size=258,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<pad>", "<eos>"],
        show_progress=False,
    ),
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")
pairs = Dataset.from_dict({"prompt": ["good"] * 4, "chosen": [" morning"] * 4, "rejected": [" evening"] * 4})
ids = torch.arange(40)[None]


def small_llama():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.2,
        )
    ).eval()


def answers(model):
    model.eval()
    with torch.no_grad():
        return model(ids).logits.log_softmax(-1)


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1).mean().item()


def run(init, wrapped):
    model = small_llama()
    config = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", init_lora_weights=init, task_type="CAUSAL_LM")
    if wrapped:
        model = get_peft_model(model, config)
    before = answers(model)
    args = DPOConfig(
        output_dir="out", per_device_train_batch_size=4, max_steps=1, learning_rate=0.0, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
    )
    more = {} if wrapped else {"peft_config": config}
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = DPOTrainer(model=model, args=args, train_dataset=pairs, processing_class=tokenizer, **more)
        after = answers(trainer.model)
        trainer.train()
    loss = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    return kl(before, after), loss


print("init   handed over as       KL(before | after DPOTrainer(...))   first loss (ln 2 = %.4f)" % math.log(2))
found = {}
for init in (True, "pissa", "olora"):
    for wrapped in (True, False):
        moved, loss = found[init, wrapped] = run(init, wrapped)
        print(f"{init!s:6} {'PeftModel' if wrapped else 'base + peft_config':20} {moved:14.6f} {loss:42.4f}")

ln2 = math.log(2)
same = all(abs(found[True, w][0]) < 1e-9 and abs(found[True, w][1] - ln2) < 1e-4 for w in (True, False))
hidden = all(found[i, True][0] > 0.01 and abs(found[i, True][1] - ln2) < 1e-4 for i in ("pissa", "olora"))
other = all(abs(found[i, False][0]) < 1e-6 and abs(found[i, False][1] - ln2) > 1e-3 for i in ("pissa", "olora"))
if not (same and hidden and other):
    raise SystemExit("No longer as described.")
print("As described.")
PY
