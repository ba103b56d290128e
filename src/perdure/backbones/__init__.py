"""Backbones: encoder, causal, seq2seq and vision models behind one protocol."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from perdure.backbones.base import Backbone
from perdure.backbones.models import model_kind, model_names
from perdure.errors import ConfigError, UnknownName
from perdure.settings.read import validate

KINDS: Mapping[str, tuple[str, str, str]] = {
    "encoder": ("perdure.backbones.encoder", "Encoder", "EncoderSettings"),
    "causal": ("perdure.backbones.causal", "CausalLM", "CausalSettings"),
    "seq2seq": ("perdure.backbones.seq2seq", "Seq2SeqLM", "Seq2SeqSettings"),
    "vision": ("perdure.backbones.vision", "Vision", "VisionSettings"),
}
"""Kind -> module, backbone class, settings class."""


def load_backbone(settings: Mapping[str, Any]) -> Backbone:
    """The backbone that `settings` describe; `kind` is optional for a known model.

    Raises:
        ConfigError: an unknown kind or setting, or a model that needs `kind`.
    """
    kind = backbone_kind(settings)
    module_name, class_name, settings_name = KINDS[kind]
    module = importlib.import_module(module_name)
    return getattr(module, class_name).load(
        validate(getattr(module, settings_name), {**settings, "kind": kind}, "backbone")
    )


def backbone_kind(settings: Mapping[str, Any]) -> str:
    """The `kind` in `settings`, or that of their known model.

    Raises:
        ConfigError: an unknown kind or model, or a model that needs `kind`.
    """
    model = str(settings.get("model", ""))
    kind = settings.get("kind") or model_kind(model)
    if kind is None and "/" not in model and not os.path.exists(model):
        error = UnknownName("model", model, model_names())
        error.args = (f"{error} For a folder or a hub model also give its kind: {{kind: encoder, model: {model}}}.",)
        raise error
    if kind is None:
        raise ConfigError(f"backbone.kind is missing for the model '{model}': give one of {', '.join(KINDS)}.")
    if kind not in KINDS:
        raise UnknownName("kind of backbone", str(kind), KINDS)
    return kind
