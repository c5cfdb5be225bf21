"""P5: the next item's number is written by a T5, after a prompt with those of the history (Geng et al., RecSys 2022).

Of P5's five tasks this is the sequential one. Names of items are written by a beam search in a tree of all names, so
that every beam ends in an item. Ranks are as far as the beams see: an item outside them ties with all other such items
behind the beams, and metrics at a cutoff beyond `beams` would say nothing. Items that a ranking leaves out still take
beams, and log p(target) is over all items.
Differs from the authors' code: one task and one prompt without the user's number, in place of 13 that name the user;
items are numbered by their order in the dataset and not by their appearance in the histories, test items included
(which tells neighbours); one next item a user and epoch as there; the loss is the sum over the tokens of a name, so
that it is −log p(item), not their mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.baselines.catalogue import Catalogue
from trainer.baselines.sequence import Asked, Baseline, Examples, one_cut
from trainer.baselines.transformer import Count, Share, TransformerOptions
from trainer.baselines.trie import Trie
from trainer.data.ragged import Ragged
from trainer.errors import BadInput
from trainer.ranking import Ranked, leave_out

_BEFORE, _AFTER = "The customer bought, in this order:", "Next item:"
_PAD, _END, _FIRST_PAIR = 0, 1, 4
"""The built-in vocabulary: padding, end, a token for what stands before and after the items each, pairs of digits."""
_VOCABULARY = _FIRST_PAIR + 100
_NO_TARGET = -100
_USERS_AT_A_TIME = 256


class P5Options(TransformerOptions):
    """Options of `p5`; sizes are the built-in model's."""

    model: str = Field(
        "builtin", description="`builtin`, a fresh T5 of the sizes below; else a folder with a T5, or the id of one."
    )
    heads: Count = Field(4, description="Attention heads; divides `hidden`.")
    dropout: Share = Field(0.1, description="Of the built-in model.")
    beams: Annotated[int, Field(ge=10)] = Field(20, description="Items that are found for each user; the rest tie.")


class P5(Baseline):
    """See the module.

    Args:
        t5: a Hugging Face `T5ForConditionalGeneration`.
        names: tokens of each item's name; the last one ends it.
        before: tokens before the items of a prompt.
        after: tokens behind them.
        max_items: longest history.
        beams: items that are found for each user.
    """

    Options = P5Options

    def __init__(self, t5: Any, names: Ragged, before: list[int], after: list[int], max_items: int, beams: int) -> None:
        super().__init__()
        self.t5, self._names, self._before, self._after = t5, names, before, after
        self._beams = min(beams, len(names))
        self.trie = Trie([name.tolist() for name in names])
        self.words = nn.Embedding(max_items + 1, t5.config.d_model)
        nn.init.normal_(self.words.weight, std=0.02)

    @classmethod
    def build(cls, catalogue: Catalogue, max_items: int, options: P5Options) -> Self:
        if options.model == "builtin":
            return cls(_fresh(options), _digit_names(catalogue.n_items), [2], [3, _END], max_items, options.beams)
        t5, tokenizer = _load(options.model)
        field = f"baseline.options.model {options.model!r}"
        try:
            return cls(t5, *_written(tokenizer, catalogue.n_items), max_items, options.beams)
        except ValueError as error:
            raise BadInput(f"{field}: its tokenizer cannot write the items' numbers ({error})") from error

    def trained_state(self) -> dict[str, Tensor]:
        # A T5's embeddings have several names, of which a model file takes one.
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def examples(self, histories: Ragged, rng: np.random.Generator) -> Examples:
        return one_cut(histories, rng)

    def loss(
        self, inputs_bt: Tensor, lengths_b: Tensor, places_r: Tensor, targets_r: Tensor, weights_r: Tensor
    ) -> Tensor:
        states_bsd, mask_bs = self._read(inputs_bt, lengths_b)
        return -(self._log_likelihoods(states_bsd, mask_bs, targets_r) * weights_r).sum()

    @torch.no_grad()
    def rank(self, asked: Iterable[Asked], *, likelihood: bool) -> Ranked:
        parts = [self._rank(*part) for part in _few(asked)]
        ranks, likelihoods = (torch.cat(part) for part in zip(*parts, strict=True))
        return Ranked(ranks, torch.empty(len(ranks), 0, dtype=torch.int64), likelihoods if likelihood else None)

    def best(self, inputs_bt: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """The best items and log p of each, both [B, beams], best first; item -1 where a beam came to nothing."""
        return self._search(*self._read(inputs_bt, lengths_b))

    def _rank(self, inputs_bt: Tensor, lengths_b: Tensor, targets_b: Tensor, seen: Ragged) -> tuple[Tensor, Tensor]:
        """Ranks, 1 + #higher + ½ #ties where all items that no beam found tie at the end, and log p(target)."""
        states_bsd, mask_bs = self._read(inputs_bt, lengths_b)
        items_bk, scores_bk = self._search(states_bsd, mask_bs)
        left_bi = leave_out(torch.zeros(len(targets_b), len(self._names), device=items_bk.device), seen)
        found_bk = (items_bk >= 0) & (left_bi.gather(1, items_bk.clamp(min=0)) == 0)
        items_bk = items_bk.masked_fill(~found_bk, -1)
        scores_bk = scores_bk.masked_fill(~found_bk, -torch.inf)
        hit_bk = items_bk == targets_b[:, None]
        own_b1 = scores_bk.masked_fill(~hit_bk, -torch.inf).amax(1, keepdim=True)
        higher, ties = (scores_bk > own_b1).sum(1), ((scores_bk == own_b1) & found_bk).sum(1) - 1
        found, ranked = found_bk.sum(1), (left_bi == 0).sum(1)
        outside = found + 1 + (ranked - found - 1).double() / 2
        ranks = torch.where(hit_bk.any(1), 1 + higher + ties.double() / 2, outside)
        return ranks, self._log_likelihoods(states_bsd, mask_bs, targets_b).double()

    def _search(self, states_bsd: Tensor, mask_bs: Tensor) -> tuple[Tensor, Tensor]:
        def likelihoods(prefixes: Tensor) -> Tensor:
            beams = len(prefixes) // len(states_bsd)
            started = nn.functional.pad(prefixes, (1, 0), value=self.t5.config.decoder_start_token_id)
            logits = self._decode(states_bsd.repeat_interleave(beams, 0), mask_bs.repeat_interleave(beams, 0), started)
            return logits[:, -1].float().log_softmax(-1)

        return self.trie.search(likelihoods, len(states_bsd), self._beams)

    def _log_likelihoods(self, states_bsd: Tensor, mask_bs: Tensor, items_b: Tensor) -> Tensor:
        """[B] log p of the items' names."""
        names = self._names.take(items_b.cpu().numpy())
        written = np.full((len(names), int(names.lengths.max())), _NO_TARGET, np.int64)
        written[np.arange(written.shape[1]) < names.lengths[:, None]] = names.values
        labels_bl = torch.from_numpy(written).to(states_bsd.device)
        start = self.t5.config.decoder_start_token_id
        before = nn.functional.pad(labels_bl[:, :-1].clamp(min=_PAD), (1, 0), value=start)
        logits = self._decode(states_bsd, mask_bs, before).float()
        losses = cross_entropy(logits.transpose(1, 2), labels_bl, reduction="none", ignore_index=_NO_TARGET)
        return -losses.sum(1)

    def _decode(self, states_bsd: Tensor, mask_bs: Tensor, tokens_bl: Tensor) -> Tensor:
        """[B, L, V] logits after each token."""
        found = self.t5(
            encoder_outputs=(states_bsd,), attention_mask=mask_bs, decoder_input_ids=tokens_bl, use_cache=False
        )
        return torch.as_tensor(found.logits)

    def _read(self, inputs_bt: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """States of the prompts, [B, S, d], and which of them are no padding, [B, S]."""
        device = inputs_bt.device
        ids, lengths = inputs_bt.cpu().numpy(), lengths_b.cpu().numpy()
        prompts, words = zip(
            *(self._prompt(row[:length]) for row, length in zip(ids, lengths, strict=True)), strict=True
        )
        sizes = np.array([len(prompt) for prompt in prompts])
        inside = np.arange(sizes.max()) < sizes[:, None]
        tokens_bs, words_bs = np.full(inside.shape, _PAD, np.int64), np.zeros(inside.shape, np.int64)
        tokens_bs[inside], words_bs[inside] = np.concatenate(prompts), np.concatenate(words)
        tokens, numbers, mask_bs = (torch.from_numpy(array).to(device) for array in (tokens_bs, words_bs, inside))
        embedded = self.t5.get_input_embeddings()(tokens) + self.words(numbers)
        read = self.t5.get_encoder()(inputs_embeds=embedded, attention_mask=mask_bs.long())
        return read.last_hidden_state, mask_bs.long()

    def _prompt(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of a prompt, and the number of the item that each is of, from 1; 0 for none (whole-word ids)."""
        names = self._names.take(items)
        last = np.zeros(len(names.values), bool)
        last[names.offsets[1:] - 1] = True  # what ends a name is not read
        tokens = np.concatenate([self._before, names.values[~last], self._after])
        words = np.zeros(len(tokens), np.int64)
        words[len(self._before) : len(tokens) - len(self._after)] = names.row_of_value[~last] + 1
        return tokens.astype(np.int64), words


def _few(asked: Iterable[Asked]) -> Iterator[tuple[Tensor, Tensor, Tensor, Ragged]]:
    """Ids, lengths, targets and items that are left out of as few users at a time as their beams allow."""
    for part in asked:
        users = np.arange(len(part.targets_b))
        targets = torch.from_numpy(part.targets_b.astype(np.int64)).to(part.lengths_b.device)
        seen = Ragged.from_rows([[]] * len(users)) if part.seen is None else part.seen
        split = (each.split(_USERS_AT_A_TIME) for each in (part.inputs_bt, part.lengths_b, targets))
        rows = (seen.take(users[first : first + _USERS_AT_A_TIME]) for first in range(0, len(users), _USERS_AT_A_TIME))
        yield from zip(*split, rows, strict=True)


def _digit_names(n_items: int) -> Ragged:
    """Each item's number as pairs of digits, as many for all."""
    pairs = max(-(-len(str(max(n_items - 1, 0))) // 2), 1)
    numbers = np.arange(n_items)[:, None] // 100 ** np.arange(pairs - 1, -1, -1) % 100 + _FIRST_PAIR
    ended = np.hstack([numbers, np.full((n_items, 1), _END)])
    return Ragged.from_lengths(ended.ravel(), np.full(n_items, pairs + 1))


def _fresh(options: P5Options) -> Any:
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(
        "t5",
        vocab_size=_VOCABULARY,
        d_model=options.hidden,
        d_kv=options.hidden // options.heads,
        d_ff=options.inner,
        num_layers=options.layers,
        num_heads=options.heads,
        dropout_rate=options.dropout,
        pad_token_id=_PAD,
        eos_token_id=_END,
        decoder_start_token_id=_PAD,
    )
    return AutoModelForSeq2SeqLM.from_config(config)


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

    field = f"baseline.options.model {name!r}"
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "t5":
            raise TypeError(f"is a {kind!r} model")
        tokenizer = AutoTokenizer.from_pretrained(name)
        safe = True if Path(name).is_dir() else None  # a folder could have been handed to the user
        t5, report = AutoModelForSeq2SeqLM.from_pretrained(
            name, dtype="float32", use_safetensors=safe, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(f"{field}: cannot be loaded ({reason}); name `builtin`, or a folder or id of a T5") from error
    if report["missing_keys"]:
        raise BadInput(f"{field}: lacks weights ({sorted(report['missing_keys'])[0]}); save the whole model again")
    return t5, tokenizer


def _written(tokenizer: Any, n_items: int) -> tuple[Ragged, list[int], list[int]]:
    """Items' numbers and the prompt in a tokenizer's tokens."""

    def tokens(texts: list[str]) -> list[list[int]]:
        return list(tokenizer(texts, add_special_tokens=False)["input_ids"])

    end = tokenizer.eos_token_id
    names = Ragged.from_rows([*row, end] for row in tokens([str(item) for item in range(n_items)]))
    before, after = tokens([_BEFORE, _AFTER])
    return names, before, [*after, end]
