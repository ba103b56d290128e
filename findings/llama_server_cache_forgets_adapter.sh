#!/usr/bin/env bash
# llama.cpp's server answers with one adapter from what another adapter computed, if a different prompt came in between.
#
# Guess:   `"lora": [{"id": 1, "scale": 1}]` in a request chooses the adapter, so the answer is that adapter's. When a slot's
#          adapter changes, the server drops what it had cached: asking the same prompt under adapter 0 and right after under
#          adapter 1 gives adapter 1's own answer.
# Happens: Since the server also keeps prompts in memory (`--cache-ram`, 8 GiB by default), a prompt that was asked under
#          adapter 0, then another prompt, then the first one under adapter 1, is answered from the keys and values that
#          adapter 0 computed: that cache looks for equal tokens, not for equal adapters. The answer is neither adapter's, and
#          nothing is said; only `timings.cache_n` counts the tokens. `"cache_prompt": false` in the request, or no such cache
#          (`--cache-ram 0`), gives adapter 1's own answer.
# Versions: xllamacpp 2026.10.11549 (llama.cpp's server as a wheel), gguf 0.19.0, numpy 2.4.6, Python 3.11. Date: 2026-12-01.
# Looked up: ggml-org/llama.cpp issue 26207 (open, July 2026) reports the wrong answers for the same prompt; it does not say
#          that another prompt must come in between, or which of the two caches it is.
# Seen:
#   adapter 1 is asked                  its own answers   tokens from a cache, most
#   right after adapter 0                        8 of 8                           0
#   another prompt in between                    0 of 8                         107
#   ... with cache_prompt false                  8 of 8                           0
#   ... without the cache in memory              8 of 8                           3
#   As described.
set -euo pipefail
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
  xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6 >"$work/pip.log" 2>&1 || { cat "$work/pip.log"; exit 1; }
cd "$work"
cat >probe.py <<'PY'
import json
import sys
import urllib.request

import gguf
import numpy as np
import xllamacpp

WIDTH, HEADS, INNER, LAYERS, VOCAB, PROMPTS = 64, 4, 128, 2, 259, 8
draw = np.random.default_rng(0)


def matrix(rows, columns, scale):
    return (scale * draw.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)


def closed(out):
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_model():
    """A random Llama of two layers whose tokens are bytes."""
    out = gguf.GGUFWriter("base.gguf", "llama")
    out.add_context_length(512)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_vocab_size(VOCAB)
    out.add_tokenizer_model("llama")
    out.add_token_list([b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256))])
    out.add_token_scores([0.0] * VOCAB)
    out.add_token_types([2, 3, 3, *([6] * 256)])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_add_bos_token(False)
    out.add_tensor("token_embd.weight", matrix(VOCAB, WIDTH, 8))
    out.add_tensor("output.weight", matrix(VOCAB, WIDTH, 8))
    out.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            out.add_tensor(f"blk.{i}.{name}.weight", matrix(WIDTH, WIDTH, 2))
        for name, rows, columns in (("ffn_gate", INNER, WIDTH), ("ffn_up", INNER, WIDTH), ("ffn_down", WIDTH, INNER)):
            out.add_tensor(f"blk.{i}.{name}.weight", matrix(rows, columns, 2))
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{i}.{name}.weight", np.ones(WIDTH, np.float32))
    closed(out)


def write_adapter(path, rank=4):
    out = gguf.GGUFWriter(path, "llama")
    out.add_type("adapter")
    out.add_string("adapter.type", "lora")
    out.add_float32("adapter.lora.alpha", float(rank))
    for i in range(LAYERS):
        for name, rows, columns in (("attn_v", WIDTH, WIDTH), ("ffn_down", WIDTH, INNER)):
            out.add_tensor(f"blk.{i}.{name}.weight.lora_a", matrix(rank, columns, 3))
            out.add_tensor(f"blk.{i}.{name}.weight.lora_b", matrix(rows, rank, 3))
    closed(out)


def serve(cache_mib):
    asked = xllamacpp.CommonParams()
    asked.model.path, asked.n_ctx, asked.n_parallel = "base.gguf", 512, 1
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    asked.lora_init_without_apply = True
    if cache_mib is not None:
        asked.cache_ram_mib = cache_mib
    adapters = []
    for path in ("zero.gguf", "one.gguf"):
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = path, 0.0
        adapters.append(adapter)
    asked.lora_adapters = adapters
    return xllamacpp.Server(asked)


def ask(server, prompt, adapter, **more):
    chosen = [{"id": i, "scale": float(i == adapter)} for i in range(2)]
    body = {"prompt": prompt, "n_predict": 12, "temperature": 0, "lora": chosen, "return_tokens": True, **more}
    request = urllib.request.Request(
        f"{server.listening_address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    found = json.loads(urllib.request.urlopen(request, timeout=120).read())
    return found["tokens"], found["timings"]["cache_n"]


def own_answers(server, between, **last):
    """How many of the prompts adapter 1 answers as it does without any cache, after adapter 0 had them."""
    words = ["apple", "river", "stone", "cloud", "horse", "glass", "paper", "chair"]
    right, cached = 0, []
    for n in range(PROMPTS):
        prompt = " ".join(np.random.default_rng(n).permutation(words)) + f": what is it, then, and why {n}?"
        wanted, _ = ask(server, prompt, 1, cache_prompt=False)
        ask(server, prompt, 0)
        if between:
            ask(server, "ZYX " * 12 + " ".join(np.random.default_rng(100 + n).permutation(words)).upper(), 1)
        answer, taken = ask(server, prompt, 1, **last)
        right += answer == wanted
        cached.append(taken)
    return right, max(cached)


write_model()
write_adapter("zero.gguf")
write_adapter("one.gguf")
kind = sys.argv[1]
server = serve({"default": None, "none": 0}[kind])
if kind == "default":
    results = {
        "right after adapter 0": own_answers(server, between=False),
        "another prompt in between": own_answers(server, between=True),
        "... with cache_prompt false": own_answers(server, between=True, cache_prompt=False),
    }
else:
    results = {"... without the cache in memory": own_answers(server, between=True)}
json.dump(results, open(f"{kind}.json", "w"))
PY
for kind in default none; do
  "$work/venv/bin/python" probe.py "$kind" >"$work/$kind.log" 2>&1 || { tail -5 "$work/$kind.log"; exit 1; }
done
"$work/venv/bin/python" - <<'PY'
import json

found = json.load(open("default.json")) | json.load(open("none.json"))
print(f"{'adapter 1 is asked':34}{'its own answers':>17}{'tokens from a cache, most':>28}")
for name, (right, cached) in found.items():
    print(f"{name:34}{right:>12} of 8{cached:>28}")
right = [right for right, _ in found.values()]
as_described = right[0] == right[2] == right[3] == 8 and right[1] < 8 and found["another prompt in between"][1] > 50
print("As described." if as_described else "Not as described any more.")
raise SystemExit(not as_described)
PY
