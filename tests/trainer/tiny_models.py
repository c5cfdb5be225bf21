"""Random small models that the tests build themselves."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import OPTConfig, OPTModel, PreTrainedTokenizerFast


def tiny_opt(post_norm: bool = False, layers: int = 2, vocabulary: int = 300) -> OPTModel:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        word_embed_proj_dim=12 if post_norm else 16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        ffn_dim=24,
        max_position_embeddings=512,
        do_layer_norm_before=not post_norm,
        dropout=0.0,
        init_std=0.3,
    )
    return OPTModel(config).eval()


def save_tiny_opt(folder: Path, texts: list[str], post_norm: bool = False, layers: int = 2) -> Path:
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
    tiny_opt(post_norm, layers, vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
