"""What a run or a merge state deploys as a GGUF file for llama.cpp: `perdure export RUN --as gguf | gguf-model`.

llama.cpp's own converter is called, which knows every architecture that llama.cpp runs; an adapter's file is then checked to
have every layer of the adapter.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

from perdure.errors import ConfigError

FORMS = {"gguf": "adapter", "gguf-model": "model"}
"""Form -> the form it is converted from, which names the file."""
SCRIPTS = {"gguf": "convert_lora_to_gguf.py", "gguf-model": "convert_hf_to_gguf.py"}
FOLDER = "LLAMA_CPP"
"""The environment's variable with llama.cpp's source folder."""
DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
INSTALL = "pip install 'perdure[gguf]'"
KEPT = ("README.md", "perdure.json", "merge.json")


def converter(form: str) -> Path:
    """llama.cpp's script for this form: in the folder $LLAMA_CPP, else on the path; ConfigError says what to install."""
    name = SCRIPTS[form]
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"GGUF needs the package gguf: {INSTALL}.")
    folder = os.environ.get(FOLDER)
    found = Path(folder) / name if folder else Path(shutil.which(name) or name)
    if not found.is_file():
        where = f"not in the folder {FOLDER} names ('{folder}')" if folder else "not on the path"
        raise ConfigError(
            f"GGUF is written by llama.cpp's converter {name}, which is {where}. Fetch llama.cpp's source "
            f"(https://github.com/ggml-org/llama.cpp, or vendor/llama.cpp of `pip download --no-binary :all: --no-deps "
            f"llama-cpp-python`, unpacked) and set {FOLDER} to that folder."
        )
    return found


def convert(script: Path, form: str, plain: Path, base: str | Path | None, out: Path) -> None:
    """Write the GGUF file of the exported folder `plain` into `out`, with its card and perdure.json.

    Args:
        base: the base's folder, for an adapter: its configuration and tokenizer are read.

    Raises:
        ConfigError: llama.cpp's converter refuses the model, or leaves layers out.
    """
    name = FORMS[form]
    made = out / f"{name}.gguf"
    words = [sys.executable, str(script), str(plain), "--outfile", str(made), "--outtype", _outtype(plain)]
    words += ["--base", str(base)] if base else []
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(words, capture_output=True, text=True, errors="replace", env=quiet, check=False)
    if ended.returncode != 0 or not made.is_file():
        last = (ended.stderr.strip() or "it said nothing").splitlines()[-1]
        hint = f" {INSTALL}." if "No module named" in last else ""
        raise ConfigError(f"llama.cpp's {script.name} cannot convert this {name}: {last}{hint} Nothing was written.")
    if base:
        _check_layers(plain, made)
    for file in KEPT:
        if (plain / file).is_file():
            shutil.copy(plain / file, out / file)


def _outtype(plain: Path) -> str:
    """As stored: rounding is asked for by --dtype, and said there."""
    file = next(iter(sorted(plain.glob("*.safetensors"))))
    with safe_open(file, framework="pt") as opened:
        kinds = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    return "f32" if "F32" in kinds else DTYPES.get(min(kinds), "f32")


def _check_layers(plain: Path, made: Path) -> None:
    """ConfigError if the file has fewer layers than the adapter."""
    from gguf import GGUFReader

    with safe_open(plain / "adapter_model.safetensors", framework="pt") as opened:
        learnt = sum("lora_A" in key for key in opened.keys())  # noqa: SIM118
    written = sum(tensor.name.endswith(".lora_a") for tensor in GGUFReader(made).tensors)
    if written != learnt:
        raise ConfigError(
            f"llama.cpp's converter wrote {written} of the adapter's {learnt} layers. Export the whole model (--as gguf-model)."
        )
