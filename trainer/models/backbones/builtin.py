"""The built-in backbone: a small OPT decoder trained on the catalogue's own text, for work without a model hub.

Training data are blocks of shuffled item sentences, each block at a random position offset, so that every position
that a long history reaches has been seen. The result is an ordinary model folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer.config import BuiltinBackboneConfig
from trainer.threads import single_thread

_BLOCK = 128
_BLOCKS_PER_STEP = 8
MAX_POSITIONS = 2048
_SPECIAL = ("<pad>", "</s>")
_TEXTS_AT_A_TIME = 2**14

logger = logging.getLogger(__name__)


def build_builtin(config: BuiltinBackboneConfig, sentences: Sequence[str], prompt: str, folder: Path) -> None:
    """Train tokenizer and decoder on item sentences and save both to `folder`.

    Args:
        config: sizes, steps, learning rate and seed.
        sentences: one item sentence each.
        prompt: the alignment prompt, which the vocabulary should hold in few tokens.
        folder: an existing folder to write to.
    """
    from transformers import OPTConfig, OPTForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

    # Seen as often as a common word, the prompt becomes a few tokens; it stands before every alignment stream.
    prompts = [prompt] * max(len(sentences) // 10, 10)
    tokenizer = _train_tokenizer([*sentences, *prompts], config.vocabulary)
    with single_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = OPTForCausalLM(
            OPTConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden,
                word_embed_proj_dim=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                ffn_dim=4 * config.hidden,
                max_position_embeddings=MAX_POSITIONS,
                dropout=0.0,
                attention_dropout=0.0,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
        _train(model, _token_stream(tokenizer, sentences), config)
    # Not by the model's own `save_pretrained`: among several workers it writes on rank 0 only, and any may build.
    model.model.config.save_pretrained(folder)
    save_file(model.model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def _train_tokenizer(sentences: Sequence[str], vocabulary: int) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_SPECIAL[0], bos_token=_SPECIAL[1], eos_token=_SPECIAL[1]
    )


def _token_stream(tokenizer: Any, sentences: Sequence[str]) -> list[NDArray[np.int64]]:
    """Each sentence's tokens, closed by `</s>`."""
    stream: list[NDArray[np.int64]] = []
    for start in range(0, len(sentences), _TEXTS_AT_A_TIME):
        texts = list(sentences[start : start + _TEXTS_AT_A_TIME])
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        stream += [np.array([*ids, 1], dtype=np.int64) for ids in encoded]
    return stream


def _batches(tokens: list[NDArray[np.int64]], rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Endless [blocks, block length] batches: shuffled sentences end to end, epoch after epoch."""
    size = _BLOCKS_PER_STEP * _BLOCK
    stream = np.empty(0, np.int64)
    while True:
        while len(stream) < size:
            stream = np.concatenate([stream, *(tokens[i] for i in rng.permutation(len(tokens)))])
        yield torch.from_numpy(stream[:size].reshape(_BLOCKS_PER_STEP, _BLOCK))
        stream = stream[size:]


def _train(model: Any, tokens: list[NDArray[np.int64]], config: BuiltinBackboneConfig) -> None:
    rng = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps + 1)
    model.train()
    for step, batch in zip(range(1, config.steps + 1), _batches(tokens, rng), strict=False):
        offset = int(rng.integers(0, MAX_POSITIONS - _BLOCK + 1))
        positions = torch.arange(offset, offset + _BLOCK).expand_as(batch)
        loss = model(input_ids=batch, position_ids=positions, labels=batch, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            logger.info(
                "built-in backbone: step %d of %d, next-token loss %.3f", step, config.steps, float(loss.detach())
            )
    model.eval()
