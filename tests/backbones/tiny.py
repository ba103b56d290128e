"""One tiny, randomly initialised model of every kind, saved to a folder as a real one would be.

Two layers, hidden size 32, a byte-level tokenizer (every text has tokens, none is unknown); the weights depend on
`seed` only. Nothing is downloaded, and nothing here means anything: they test code, not quality.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

IMAGE_SIZE = 16
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """A BertModel (modules `query`, `value`) with [CLS] text [SEP] tokens; maximum length 128."""
    tokenizer = byte_tokenizer({"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"})
    ids = tokenizer.convert_tokens_to_ids
    tokenizer.backend_tokenizer.post_processor = processors.BertProcessing(  # type: ignore[assignment]
        ("[SEP]", ids("[SEP]")), ("[CLS]", ids("[CLS]"))
    )
    tokenizer.model_max_length = 128
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(folder, _seeded(BertModel, config, seed), tokenizer)


def tiny_causal(folder: Path, seed: int = 0, *, chat: bool = False, pad: bool = True, hidden: int = 32) -> Path:
    """A LlamaForCausalLM (`q_proj`, `v_proj`; grouped queries: v_proj is 32 -> 16), optionally with a chat template."""
    special = {"bos_token": "<bos>", "eos_token": "<eos>"} | ({"pad_token": "<pad>"} if pad else {})
    tokenizer = byte_tokenizer(special)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,  # large enough that outputs differ clearly between inputs
    )
    return _save(folder, _seeded(LlamaForCausalLM, config, seed), tokenizer)


def tiny_seq2seq(folder: Path, seed: int = 0) -> Path:
    """A T5ForConditionalGeneration (modules `q`, `v`, cross-attention included); texts end with </s>."""
    tokenizer = byte_tokenizer({"pad_token": "<pad>", "eos_token": "</s>"})
    eos = tokenizer.convert_tokens_to_ids("</s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", eos)]
    )
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=eos,
        decoder_start_token_id=tokenizer.pad_token_id,
        dropout_rate=0.0,
        initializer_factor=2.0,
    )
    return _save(folder, _seeded(T5ForConditionalGeneration, config, seed), tokenizer)


def tiny_vision(folder: Path, seed: int = 0) -> Path:
    """A ViTModel for 16 x 16 images in patches of 8, with the image processor that resizes any image to that."""
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=IMAGE_SIZE,
        patch_size=8,
        initializer_range=0.3,
    )
    pil = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)  # one class in older versions
    processor = pil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return _save(folder, _seeded(ViTModel, config, seed), processor)


def tiny_images(
    folder: Path, colours: dict[str, tuple[int, int, int]], each: int, seed: int = 0
) -> dict[str, list[Path]]:
    """Label -> paths of `each` PNGs of a noisy colour, of differing sizes."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Path]] = {}
    for label, colour in colours.items():
        for index in range(each):
            noisy = tuple(max(0, min(255, channel + draw.randint(-20, 20))) for channel in colour)
            path = folder / f"{label}-{index}.png"
            Image.new("RGB", (12 + draw.randint(0, 8), 12 + draw.randint(0, 8)), noisy).save(path)
            found.setdefault(label, []).append(path)
    return found


def byte_tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    """One token a byte, after the special ones in the order given."""
    names = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def _seeded(kind: type, config: object, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).eval()


def _save(folder: Path, model: PreTrainedModel, tokenizer_or_processor: object) -> Path:
    model.save_pretrained(folder)
    tokenizer_or_processor.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder
