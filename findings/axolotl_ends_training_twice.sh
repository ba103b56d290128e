#!/usr/bin/env bash
# axolotl tells its plug-ins twice that training has ended, and between the two it writes the adapter.
#
# Guess:   `post_train(cfg, model)` of a plug-in, "Performs actions after training is complete", is called once, like every
#          other hook of its base class: a plug-in may save, upload or count there.
# Happens: One `axolotl.train.train` calls it twice: at the end of `execute_training`, before anything is written, and as the
#          last thing of `train`, when adapter and tokenizer are in output_dir. What a plug-in does there it does twice: an
#          upload is repeated, a count is doubled, a change of the weights (a merge, a rescaling) is applied again, and only
#          its first half is in what axolotl has written. Both calls are given the same model, and nothing says which is which.
# Versions: axolotl 0.19.0 with its own pins: transformers 5.16.1, peft 0.20.0, trl 1.9.0, accelerate 1.13.0, datasets 4.8.4;
#          torch 2.13.0 (CPU), Python 3.11. Date: 2026-12-01.
# Looked up: axolotl/train.py (both calls), axolotl/integrations/base.py (the hook's description). The documentation's list of
#          hooks names post_train once and says nothing of a second call.
# Seen:
#   call of post_train   adapter in output_dir   norm of lora_B that it sees, before it doubles it
#                    1                   False          1.0 x
#                    2                    True          2.0 x
#   written 2.0 x, in memory 4.0 x
#   As described.
set -euo pipefail
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TQDM_DISABLE=1 AXOLOTL_DO_NOT_TRACK=1 DO_NOT_TRACK=1 WANDB_MODE=disabled
export ACCELERATE_USE_CPU=true TRANSFORMERS_VERBOSITY=error
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check "$@" >>"$work/pip.log" 2>&1 || {
  cat "$work/pip.log"; exit 1; }; }
# axolotl's own dependencies include 3 GB for GPUs and clouds that a CPU run does not touch
pip torch==2.13.0 transformers==5.16.1 peft==0.20.0 accelerate==1.13.0 datasets==4.8.4 tokenizers==0.23.1 huggingface_hub==1.17.0 \
  pydantic==2.12.5 addict==2.4.0 colorama==0.4.6 PyYAML==6.0.3 requests==2.34.2 scipy==1.17.1 python-dotenv==1.0.1 \
  packaging==26.0 jinja2==3.1.6 psutil==7.2.2 click==8.5.1 numpy==2.4.6 safetensors==0.8.0 rich==14.3.0 \
  wandb==0.31.0 pillow==13.0.0 six==1.17.0
pip --no-deps axolotl==0.19.0 axolotl-contribs-lgpl==0.0.7 axolotl-contribs-mit==0.0.6 trl==1.9.0 posthog==6.7.11 distro==1.9.0 \
  numba==0.68.1 llvmlite==0.50.0 termcolor==3.3.0 bitsandbytes==0.50.2 kernels==0.16.0 evaluate==0.4.1 triton==3.9.0 \
  fastcore==2.2.41 kernels-data==0.16.2 backoff==2.2.1
cat >"$work/watching.py" <<'PY'
import os

from axolotl.integrations.base import BasePlugin

calls = []


class Watching(BasePlugin):
    def post_train(self, cfg, model):
        written = os.path.exists(os.path.join(cfg["output_dir"], "adapter_model.safetensors"))
        lora_B = [p for name, p in model.named_parameters() if "lora_B" in name]
        calls.append((written, sum(p.norm().item() for p in lora_B)))
        for p in lora_B:
            p.data.mul_(2)
PY
cat >"$work/run.py" <<'PY'
import json
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")


def main():
    import torch
    import yaml
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = ["[UNK]", "[PAD]", "[EOS]", *(f"w{i}" for i in range(61))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]"
    ).save_pretrained("tiny")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=1, eos_token_id=2, bos_token_id=2,
        )
    ).save_pretrained("tiny")
    rows = [{"text": f"w{i} w{i + 1} w{i + 2} w{i + 3}"} for i in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "base_model": "tiny", "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "completion"}],
        "output_dir": "out", "dataset_prepared_path": "prepared", "sequence_len": 32, "adapter": "lora", "lora_r": 4,
        "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj"], "micro_batch_size": 4,
        "gradient_accumulation_steps": 1, "num_epochs": 1, "learning_rate": 0.01, "bf16": False, "fp16": False,
        "val_set_size": 0, "plugins": ["watching.Watching"],
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))

    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train
    from safetensors.torch import load_file

    cfg = load_cfg("config.yaml")
    model, *_ = train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))
    from watching import calls

    stored = load_file("out/adapter_model.safetensors")
    written = sum(tensor.norm().item() for name, tensor in stored.items() if "lora_B" in name)
    memory = sum(p.norm().item() for name, p in model.named_parameters() if "lora_B" in name)
    print("call of post_train   adapter in output_dir   norm of lora_B that it sees, before it doubles it")
    for number, (there, norm) in enumerate(calls, 1):
        print(f"{number:18}   {there!s:>21}   {norm / calls[0][1]:10.1f} x")
    print(f"written {written / calls[0][1]:.1f} x, in memory {memory / calls[0][1]:.1f} x")
    seen = [there for there, _ in calls], [round(norm / calls[0][1]) for norm in (*(n for _, n in calls), written, memory)]
    if seen != ([False, True], [1, 2, 2, 4]):
        raise SystemExit(f"No longer as described: {seen}")
    print("As described.")


if __name__ == "__main__":
    main()
PY
cd "$work"
HF_HOME="$work/hf" PYTHONPATH="$work" "$work/venv/bin/python" run.py >"$work/out.log" 2>"$work/err.log" && tail -5 "$work/out.log" || { tail -5 "$work/out.log"; tail -20 "$work/err.log"; exit 1; }
