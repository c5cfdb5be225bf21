"""Random small models that the tests build themselves, at least one for every backbone family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedTokenizerFast

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
_FFN = {"intermediate_size": 24}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 6}
_OPT = {"word_embed_proj_dim": 16, "ffn_dim": 24}
_GPT2 = {"n_inner": 24, "bos_token_id": 1, "eos_token_id": 1}
_WINDOW = {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1}
_LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", _OPT),
    # Shaped like OPT-350m: projections around the layers, no last norm.
    "opt_post_norm": ("opt", {**_OPT, "word_embed_proj_dim": 12, "do_layer_norm_before": False}),
    "opt_three_layers": ("opt", {**_OPT, "num_hidden_layers": 3}),
    "gpt2": ("gpt2", _GPT2),
    "gpt2_scaled": ("gpt2", {**_GPT2, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}),
    "llama": ("llama", {**_FFN, **_GROUPED}),
    "llama_3": ("llama", {**_FFN, "attention_bias": True, "mlp_bias": True, "rope_parameters": _LLAMA_3}),
    # The window of the last layer is as long as the longest stream that is compared with Hugging Face's forward.
    "qwen2": ("qwen2", {**_FFN, "num_key_value_heads": 1, **_WINDOW}),
    "qwen3": ("qwen3", {**_FFN, **_GROUPED}),
    "bert": ("bert", _FFN),
    "roberta": ("roberta", {**_FFN, "type_vocab_size": 1, "pad_token_id": 1}),
}
"""Name to family and what its config says besides the sizes."""


def tiny_model(name: str, layers: int = 2, vocabulary: int = 300) -> Any:
    """The model of this name, whose every weight is random, norms and biases included."""
    family, details = TINY[name]
    config = CONFIG_MAPPING[family](**{**_SIZES, "num_hidden_layers": layers, "vocab_size": vocabulary, **details})
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    for parameter in model.parameters():
        kept = parameter.mean() if parameter.dim() == 1 else 0  # 1 of a norm's weight, 0 of a bias
        parameter.data.normal_(std=0.2 if parameter.dim() == 1 else 0.3).add_(kept)
    return model


def save_tiny(folder: Path, texts: list[str], name: str, layers: int = 2) -> Path:
    """A model folder with a byte-level BPE tokenizer trained on `texts`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="</s>", eos_token="</s>")
    tiny_model(name, layers, vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_opt(folder: Path, texts: list[str], post_norm: bool = False, layers: int = 2) -> Path:
    """The same for OPT."""
    return save_tiny(folder, texts, "opt_post_norm" if post_norm else "opt", layers)
