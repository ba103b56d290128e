"""Starts the real servers one after another and asks them every question of PLACE/cases.json over HTTP, greedily.

    python ask.py PLACE vllm | llama.cpp | llama.cpp-cached PYTHON       PYTHON: that server's environment

PLACE/answers-SERVER.jsonl: one line an answer; what is there is not asked again. Only the standard library is used.
llama.cpp is asked with "cache_prompt": false, and once more as it is by default: it then answers a prompt that was asked before
under another adapter from what that one left in its cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PORT, PATIENCE = 18211, 600
HERE = Path(__file__).parent
QUIET = {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
MERGED = "merged"


def vllm(python: str, place: Path, base: str, folders: Sequence[str]) -> tuple[list[str], str]:
    """The command of a vLLM server, and its address; the console script of vllm-cpu 0.32.0 asks for a package `vllm`."""
    merged = list(folders) == [MERGED]
    ranks = [json.loads((place / f / "adapter_config.json").read_text())["r"] for f in folders if not merged]
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(place / MERGED) if merged else base]
    words += ["--served-model-name", MERGED if merged else "base", "--dtype", "float32", "--max-model-len", "512"]
    words += ["--enforce-eager", "--generation-config", "vllm", "--max-num-seqs", "4", "--port", str(PORT)]
    if not merged:
        allowed = next(rank for rank in (8, 16, 32, 64, 128, 256, 320, 512) if rank >= max(ranks))
        words += ["--enable-lora", "--max-lora-rank", str(allowed), "--max-loras", str(len(folders)), "--lora-modules"]
        words += [f"{folder}={place / folder}" for folder in folders]
    return words, f"http://127.0.0.1:{PORT}"


def llama(python: str, place: Path, _: str, folders: Sequence[str]) -> tuple[list[str], str]:
    """The command of a llama.cpp server, which prints its address; its base is a file of its own."""
    words = [python, str(HERE / "llama_server.py")]
    if list(folders) == [MERGED]:
        return [*words, str(place / "gguf" / MERGED / "model.gguf")], ""
    return [*words, str(place / "gguf/base.gguf"), *(str(place / "gguf" / f / "adapter.gguf") for f in folders)], ""


CACHED = "llama.cpp-cached"
SERVERS = {"vllm": vllm, "llama.cpp": llama, CACHED: llama}


@contextmanager
def running(words: Sequence[str], address: str, log: Path) -> Iterator[str]:
    """The address of a started server that answers; it is ended afterwards."""
    with log.open("w") as out:
        server = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **QUIET})
        try:
            until = time.monotonic() + PATIENCE
            while not (found := _ready(address or _printed(log))):
                if server.poll() is not None or time.monotonic() > until:
                    sys.exit(f"The server did not start; see {log}.")
                time.sleep(1)
            yield found
        finally:
            server.terminate()
            server.wait(60)


def _printed(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return next((line.removeprefix("ADDRESS ") for line in lines if line.startswith("ADDRESS ")), "")


def _ready(address: str) -> str:
    try:
        return address if address and urllib.request.urlopen(f"{address}/health", timeout=5).status == 200 else ""
    except (urllib.error.URLError, OSError):
        return ""


def answer(address: str, name: str, case: Mapping[str, Any], folders: Sequence[str], longest: int) -> str:
    """What the server writes for a question, as perdure compares it: stripped."""
    lora = [{"id": i, "scale": float(f == case["folder"])} for i, f in enumerate(folders) if f != MERGED]
    asked = {"model": case["folder"], "max_tokens": longest, "temperature": 0, **({"lora": lora} if lora else {})}
    asked |= {"cache_prompt": False} if name == "llama.cpp" else {}
    path = "chat/completions" if "messages" in case else "completions"
    asked |= {"messages": case["messages"]} if "messages" in case else {"prompt": case["prompt"]}
    request = urllib.request.Request(
        f"{address}/v1/{path}", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as read:
        found = json.loads(read.read())["choices"][0]
    return str(found["message"]["content"] if "messages" in case else found["text"]).strip()


def main() -> None:
    place, name, python = Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3]
    about = json.loads((place / "cases.json").read_text(encoding="utf-8"))
    file = place / f"answers-{name}.jsonl"
    known = {json.loads(line)["number"] for line in file.read_text().splitlines()} if file.is_file() else set()
    left = [(number, case) for number, case in enumerate(about["cases"]) if number not in known]
    for merged in (False, True):
        own = [(number, case) for number, case in left if (case["folder"] == MERGED) == merged]
        folders = sorted({case["folder"] for case in about["cases"] if (case["folder"] == MERGED) == merged})
        if not own:
            continue
        words, address = SERVERS[name](python, place, about["base"], folders)
        with running(words, address, place / f"{name}.log") as found, file.open("a", encoding="utf-8") as out:
            for number, case in own:
                written = answer(found, name, case, folders, about["longest"])
                out.write(json.dumps({"number": number, "answer": written}) + "\n")
                out.flush()


if __name__ == "__main__":
    main()
