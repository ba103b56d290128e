"""llama.cpp's server in the environment of `make serve`: prints its address and serves until it is ended.

python llama_server.py MODEL.gguf [ADAPTER.gguf ...]      requests choose adapters: "lora": [{"id": 0, "scale": 1}]
"""

import sys
import threading

import xllamacpp  # type: ignore[import-not-found]

asked = xllamacpp.CommonParams()
asked.model.path = sys.argv[1]
asked.n_ctx, asked.n_parallel, asked.use_jinja = 512, 1, True
asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
asked.lora_init_without_apply = True
adapters = []
for path in sys.argv[2:]:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = path, 0.0
    adapters.append(adapter)
asked.lora_adapters = adapters
server = xllamacpp.Server(asked)
print(f"ADDRESS {server.listening_address}", flush=True)
threading.Event().wait()
