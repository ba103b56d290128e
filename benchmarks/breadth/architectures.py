"""Tiny, randomly initialised models of about a hundred architectures of transformers, as folders with a tokenizer.

Two layers, 64 wide. They test code, not quality. `KINDS` lists them, `config` gives one's configuration, `build` saves one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

WORDS = 400
"""Size of every vocabulary."""
WIDER = 3.0
"""Factor of the initial weights, so that outputs differ clearly between inputs."""
TEXTS = (
    "It will rain all day with thunder",
    "Sunshine and a light breeze",
    "The soup was cold and bland",
    "Best bread I ever had in years",
    "Storms are coming tonight",
    "A clear blue sky over the hills",
    "An awful greasy burger",
    "A wonderful dinner with friends",
    "bad weather",
    "good weather",
    "bad meal",
    "good meal: so : tasty",
    "positive negative neutral",
)
"""What the tokenizers are trained on."""

Sizes = dict[str, Any]
ENDS: Sizes = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def decoder(**changes: Any) -> Sizes:
    """A decoder of Llama's shape."""
    sizes = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512}
    return sizes | heads | ENDS | changes


def gpt(**changes: Any) -> Sizes:
    """A decoder of GPT-2's shape."""
    return {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512} | changes


def recurrent(**changes: Any) -> Sizes:
    """A decoder without attention."""
    return {"vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 2} | ENDS | changes


def latent(**changes: Any) -> Sizes:
    """A decoder with DeepSeek's compressed attention."""
    return decoder(
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        num_key_value_heads=4,
        head_dim=8,
        **changes,
    )


def t5(**changes: Any) -> Sizes:
    """An encoder-decoder of T5's shape."""
    sizes = {"vocab_size": WORDS, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    return sizes | {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2} | changes


def halves(**values: Any) -> Sizes:
    """The same settings for encoder and decoder."""
    return {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in values.items()}


BART: Sizes = {
    "vocab_size": WORDS,
    "d_model": 64,
    **halves(layers=2, attention_heads=4, ffn_dim=96),
    "max_position_embeddings": 512,
    **ENDS,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}


def encoder(**changes: Any) -> Sizes:
    """An encoder of BERT's shape."""
    sizes = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    return sizes | {"num_attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": 0} | changes


def image(**changes: Any) -> Sizes:
    """A vision transformer."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return sizes | {"image_size": 32, "patch_size": 8, "num_channels": 3} | changes


HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_chunk_size": 16}
MAMBA2 = {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
NUMBERED = {"num_experts": 4, "num_experts_per_tok": 2}
LAYERED_INPUT = {"vocab_size_per_layer_input": WORDS, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0}
FALCON: Sizes = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "new_decoder_architecture": False,
    "multi_query": True,
    **ENDS,
}
OPT: Sizes = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "word_embed_proj_dim": 64,
    **ENDS,
}

CAUSAL: dict[str, Sizes] = {
    "apertus": decoder(),
    "bamba": decoder(attn_layer_indices=[1], mamba_expand=2, **MAMBA),
    "bitnet": decoder(),
    "bloom": {"vocab_size": WORDS, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "codegen": gpt(rotary_dim=8, bos_token_id=1, eos_token_id=2),
    "cohere": decoder(logit_scale=0.0625),
    "cohere2": decoder(sliding_window=8),
    "ctrl": gpt(dff=96),
    "deepseek_v2": latent(q_lora_rank=None, **ROUTED),
    "deepseek_v3": latent(q_lora_rank=32, n_group=1, topk_group=1, **ROUTED),
    "ernie4_5_moe": decoder(moe_num_experts=4, moe_k=2, moe_intermediate_size=32, moe_layer_start_index=1),
    "exaone4": decoder(sliding_window=8),
    "falcon": {**FALCON, "alibi": False},
    "falcon-alibi": {"model_type": "falcon", **FALCON, "alibi": True},
    "falcon_h1": decoder(mamba_d_ssm=128, **MAMBA),
    "falcon_mamba": recurrent(state_size=16),
    "gemma2": decoder(sliding_window=8, query_pre_attn_scalar=16),
    "gemma3_text": decoder(sliding_window=8),
    "gemma3n_text": decoder(
        altup_num_inputs=2, laurel_rank=8, activation_sparsity_pattern=[0.0, 0.0], **LAYERED_INPUT, **WINDOWS
    ),
    "gemma4_text": decoder(global_head_dim=16, **LAYERED_INPUT, **WINDOWS),
    "glm4": decoder(),
    "glm4_moe": decoder(n_group=1, topk_group=1, **ROUTED),
    "gpt2": gpt(bos_token_id=1, eos_token_id=2),
    "gpt_bigcode": gpt(bos_token_id=1, eos_token_id=2),
    "gpt_neo": {
        "vocab_size": WORDS,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": 512,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 12,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": decoder(),
    "gpt_oss": decoder(sliding_window=8, **LOCAL),
    "gptj": gpt(rotary_dim=8, bos_token_id=1, eos_token_id=2),
    "granite": decoder(logits_scaling=8.0),
    "granitemoe": decoder(**LOCAL),
    "granitemoehybrid": decoder(
        layer_types=["mamba", "attention"], shared_intermediate_size=32, mamba_expand=2, **LOCAL, **MAMBA
    ),
    "hunyuan_v1_dense": decoder(),
    "jamba": decoder(
        num_experts=2,
        num_experts_per_tok=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=16,
        use_mamba_kernels=False,
    ),
    "kimi_linear": decoder(),
    "lfm2": decoder(layer_types=["conv", "full_attention"]),
    "llama": decoder(),
    "llama4_text": decoder(
        num_local_experts=2, intermediate_size_mlp=96, attention_chunk_size=16, num_experts_per_tok=1
    ),
    "longcat_flash": decoder(),
    "mamba": recurrent(state_size=16),
    "mamba2": recurrent(**MAMBA2),
    "minimax": decoder(block_size=16, **HYBRID, **LOCAL),
    "mistral": decoder(sliding_window=None),
    "mixtral": decoder(num_local_experts=4),
    "modernbert-decoder": decoder(local_attention=8),
    "mpt": {"vocab_size": WORDS, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 512},
    "nemotron": decoder(),
    "nemotron_h": decoder(
        layers_block_type=["mamba", "attention"],
        mamba_num_heads=8,
        mamba_head_dim=16,
        ssm_state_size=16,
        n_groups=1,
        chunk_size=16,
    ),
    "olmo2": decoder(),
    "olmo3": decoder(sliding_window=8),
    "olmoe": decoder(**NUMBERED),
    "openai-gpt": gpt(),
    "opt": OPT,
    "phi3": decoder(),
    "phimoe": decoder(sliding_window=None, **LOCAL),
    "qwen2": decoder(),
    "qwen3": decoder(),
    "qwen3_5_text": decoder(**HYBRID, **DELTA),
    "qwen3_moe": decoder(moe_intermediate_size=32, **NUMBERED),
    "qwen3_next": decoder(moe_intermediate_size=32, shared_expert_intermediate_size=32, **HYBRID, **DELTA, **NUMBERED),
    "recurrent_gemma": decoder(
        lru_width=64, attention_window_size=16, block_types=["recurrent", "attention"], num_key_value_heads=1
    ),
    "rwkv": recurrent(context_length=512, attention_hidden_size=64),
    "seed_oss": decoder(),
    "smollm3": decoder(),
    "stablelm": decoder(),
    "starcoder2": decoder(sliding_window=8),
    "xglm": {
        "vocab_size": WORDS,
        "d_model": 64,
        "ffn_dim": 96,
        "num_layers": 2,
        "attention_heads": 4,
        "max_position_embeddings": 512,
    },
    "xlstm": {
        "vocab_size": WORDS,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native",
        "step_kernel": "native",
    },
    "zamba2": decoder(
        num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        num_mem_blocks=1,
        mamba_d_state=16,
        mamba_expand=2,
        n_mamba_heads=8,
        mamba_ngroups=1,
        chunk_size=16,
        use_shared_attention_adapter=False,
        num_key_value_heads=4,
        attention_head_dim=32,
    ),
}
SEQ2SEQ: dict[str, Sizes] = {
    **dict.fromkeys(("bart", "blenderbot", "m2m_100", "marian", "mbart", "pegasus"), BART),
    "flan": {
        "model_type": "t5",
        **t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    },
    "led": {
        **{
            name: value
            for name, value in BART.items()
            if name not in ("max_position_embeddings", "forced_eos_token_id")
        },
        "max_encoder_position_embeddings": 512,
        "max_decoder_position_embeddings": 512,
        "attention_window": 16,
    },
    "longt5": t5(),
    "mt5": t5(),
    "prophetnet": {
        "vocab_size": WORDS,
        "hidden_size": 64,
        "max_position_embeddings": 512,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        **halves(ffn_dim=96),
        **ENDS,
        "decoder_start_token_id": 1,
    },
    "switch_transformers": t5(
        num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_decoder_layers=2
    ),
    "t5": t5(),
    "t5gemma": {
        "vocab_size": WORDS,
        "pad_token_id": 0,
        "encoder": decoder(query_pre_attn_scalar=16, sliding_window=8),
        "decoder": decoder(query_pre_attn_scalar=16, sliding_window=8),
    },
    "umt5": t5(),
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
XLM = {"vocab_size": WORDS, "emb_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 512, "pad_index": 0}
BERT_LIKE = (
    "bert bert-generation camembert ernie esm fnet gte ibert jina_embeddings_v3 layoutlm megatron-bert mpnet nomic_bert roberta"
    " xlm-roberta"
)
ENCODER: dict[str, Sizes] = {
    **dict.fromkeys(BERT_LIKE.split(), encoder()),
    "albert": encoder(embedding_size=32, num_hidden_layers=3),
    "big_bird": encoder(block_size=4, num_random_blocks=1),
    "convbert": encoder(),
    "deberta": encoder(**RELATIVE),
    "deberta-v2": encoder(position_buckets=16, **RELATIVE),
    "distilbert": {
        "vocab_size": WORDS,
        "dim": 64,
        "hidden_dim": 96,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    },
    "electra": encoder(embedding_size=32),
    "eurobert": decoder(),
    "flaubert": XLM,
    "longformer": encoder(attention_window=8),
    "mobilebert": encoder(embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32),
    "modernbert": encoder(local_attention=8, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3),
    "nystromformer": encoder(segment_means_seq_len=16, num_landmarks=4),
    "qwen3": decoder(),
    "rembert": encoder(input_embedding_size=32, output_embedding_size=32),
    "roformer": encoder(embedding_size=64),
    "squeezebert": encoder(embedding_size=64),
    "t5": t5(),
    "xlm": XLM,
    "xlnet": {"vocab_size": WORDS, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96},
    "xmod": encoder(languages=["en_XX"], default_language="en_XX"),
}
SWIN: Sizes = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 32,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
CONVNEXT: Sizes = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "image_size": 32}
VIT_LIKE = (
    "aimv2_vision_model clip_vision_model data2vec-vision deit dinov2 dinov2_with_registers dinov3_vit ijepa mlcd_vision_model"
    " radio siglip_vision_model vit vit_mae vit_msn"
)
VISION: dict[str, Sizes] = {
    **dict.fromkeys(VIT_LIKE.split(), image()),
    "beit": image(vocab_size=32),
    "clip": {
        "text_config": {
            "vocab_size": WORDS,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "vision_config": image(),
    },
    "convnext": CONVNEXT,
    "dinov3_convnext": CONVNEXT,
    "efficientnet": {"image_size": 32},
    "hiera": {
        "image_size": [32, 32],
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "query_stride": [2, 2],
        "masked_unit_size": [4, 4],
        "patch_size": [3, 3],
        "patch_stride": [2, 2],
        "patch_padding": [1, 1],
        "num_query_pool": 1,
    },
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
    },
    "mobilevit": {"image_size": 32},
    "pixtral": image(head_dim=16),
    "pvt_v2": {
        "hidden_sizes": [16, 32, 48, 64],
        "num_attention_heads": [1, 1, 2, 4],
        "depths": [1] * 4,
        "image_size": 32,
    },
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    "segformer": {
        "hidden_sizes": [16, 32],
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "num_attention_heads": [1, 2],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "mlp_ratios": [2, 2],
    },
    "siglip2_vision_model": image(num_patches=16),
    "swin": SWIN,
    "swinv2": SWIN,
}
KINDS: Mapping[str, dict[str, Sizes]] = {
    "causal": CAUSAL,
    "seq2seq": SEQ2SEQ,
    "encoder": ENCODER,
    "vision": VISION,
}
"""Kind of backbone -> name -> sizes. dbrx, funnel and cvt cannot be built tiny by transformers 5.24 itself."""
AUTO: Mapping[str, Any] = {
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "encoder": AutoModel,
    "vision": AutoModel,
}


def config(kind: str, name: str) -> Any:
    """The configuration of a tiny model."""
    sizes = dict(KINDS[kind][name])
    return AutoConfig.for_model(sizes.pop("model_type", name), **sizes)


def build(kind: str, name: str, folder: Path) -> Path:
    """Save the model of that name, seeded, with its tokenizer or image processor; nothing if it is there already."""
    if (folder / "config.json").is_file():
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AUTO[kind].from_config(config(kind, name)).float()
    _widen(model)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    model.save_pretrained(partial)
    _processor(kind, name).save_pretrained(partial)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(folder)
    return folder


@torch.no_grad()
def _widen(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and parameter.is_floating_point() and "conv" not in name:
            parameter.mul_(WIDER)


def _processor(kind: str, name: str) -> Any:
    if kind == "vision":
        return image_processor(name)
    if kind == "encoder" and name not in ("qwen3", "t5"):
        return word_tokenizer()
    return byte_tokenizer(ends=kind != "causal")


def image_processor(name: str) -> Any:
    """Resizes to the model's images."""
    if name == "siglip2_vision_model":
        return transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    side = 64 if name == "levit" else 32
    return transformers.ViTImageProcessorPil(size={"height": side, "width": side})


def byte_tokenizer(ends: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `ends`: every text ends with </s>."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trained)
    if ends:
        ending = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
        tokenizer.post_processor = ending  # type: ignore[assignment]
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's word pieces, with [CLS] text [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.decoder = decoders.WordPiece()  # type: ignore[assignment]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained = trainers.WordPieceTrainer(vocab_size=WORDS, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trained)
    around = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.post_processor = around  # type: ignore[assignment]
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
