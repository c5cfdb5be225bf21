"""RecFormer: items and histories as text of keys and values, read by a Longformer (Li et al., KDD 2023).

    E = LN(token + position + type + item position)    types: [CLS], key, value (Section 2.2)
    p(i | h) = softmax_i cos(h_[CLS](history), h_[CLS](item)) / τ

Fine-tuning has two stages (Section 2.3): at first the vectors of all items are encoded anew after every epoch, then
they stay as they are and the model alone goes on. No gradient reaches them in either.
Differs from the authors' code: all items are rivals, not 1,000 drawn ones; the first stage has a given number of
epochs, and the second goes on from its last weights, not from its best ones; an epoch is evaluated with the vectors
that its own weights give; every history has one item at least before the one that is predicted; empty attributes are
left out. Their pre-training is not here: name a folder with their weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from trainer.baselines.catalogue import Catalogue
from trainer.baselines.key_value_texts import TYPES, ItemTexts
from trainer.baselines.sequence import Examples, ScoredBaseline, one_cut, padded
from trainer.baselines.transformer import Count, Share, TransformerOptions
from trainer.data.ragged import Ragged
from trainer.errors import BadInput
from trainer.models.item_head import computed_head
from trainer.softmax import item_cross_entropy

PUBLISHED = "recformer_seqrec_ckpt.bin"
"""The authors' file of pre-trained weights."""
_PREFIX, _PLACES = "longformer.", "embeddings.item_position_embeddings.weight"
_TEXTS_AT_A_TIME = 64
"""Without gradients, so that a whole split's histories need no more memory than a training step."""


class RecFormerOptions(TransformerOptions):
    """Options of `recformer`; sizes are the built-in model's."""

    model: str = Field(
        "builtin",
        description="`builtin`, a fresh Longformer of the sizes below over the words of the catalogue; else a folder "
        f"with a Longformer, or the id of one. A folder may hold the authors' weights as `{PUBLISHED}`.",
    )
    dropout: Share = Field(0.1, description="Of the built-in model.")
    window: Annotated[int, Field(ge=2, multiple_of=2)] = Field(64, description="Tokens that a token sees around it.")
    attributes: Count = Field(3, description="Attributes of an item that are read, the first ones.")
    attribute_tokens: Count = Field(32, description="Tokens of an attribute at most, its name included.")
    tokens: Annotated[int, Field(ge=2)] = Field(1024, description="Tokens of a history at most, its latest items.")
    temperature: Annotated[float, Field(gt=0)] = Field(0.05, description="τ; scores are cosines over it.")
    first_stage: Count = Field(10, description="Epochs after which the items are no longer encoded anew.")


class RecFormer(ScoredBaseline):
    """See the module.

    Args:
        longformer: a Hugging Face `LongformerModel` with four types of tokens.
        texts: tokens of the items and their types.
        max_items: longest history.
        options: its own.
    """

    Options = RecFormerOptions

    def __init__(self, longformer: Any, texts: ItemTexts, max_items: int, options: RecFormerOptions) -> None:
        super().__init__()
        longformer.pooler = None
        self._texts, self._options = texts, options
        size = int(longformer.config.hidden_size)
        self.longformer, self.places = longformer, nn.Embedding(max_items + 1, size)
        nn.init.normal_(self.places.weight, std=0.02)
        self.items_id: Tensor
        self.epochs: Tensor
        self.register_buffer("items_id", torch.zeros(len(texts.tokens), size))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    @classmethod
    def build(cls, catalogue: Catalogue, max_items: int, options: RecFormerOptions) -> Self:
        if options.model == "builtin":
            texts = _word_texts(catalogue, options)
            return cls(_fresh(options, texts), texts, max_items, options)
        field, published = f"baseline.options.model {options.model!r}", Path(options.model) / PUBLISHED
        model = cls(*_loaded(catalogue, options, field, with_weights=not published.is_file()), max_items, options)
        if published.is_file():
            _take_published(model, published, f"{field}: {PUBLISHED}")
        return model

    def begin(self) -> None:
        self._encode_items()

    def epoch_ended(self) -> None:
        self.epochs += 1
        if self.epochs <= self._options.first_stage:
            self._encode_items()

    def examples(self, histories: Ragged, rng: np.random.Generator) -> Examples:
        return one_cut(histories, rng)

    def item_head(self) -> nn.Linear:
        return computed_head(normalize(self.items_id, dim=-1))

    def loss(
        self, inputs_bt: Tensor, lengths_b: Tensor, places_r: Tensor, targets_r: Tensor, weights_r: Tensor
    ) -> Tensor:
        states_bd = self.last_states(inputs_bt, lengths_b)
        return item_cross_entropy(states_bd, self.item_head(), targets_r, weights_r)[0]

    def last_states(self, inputs_bt: Tensor, lengths_b: Tensor) -> Tensor:
        ids, lengths = inputs_bt.cpu().numpy(), lengths_b.cpu().numpy()
        newest_first = Ragged.from_rows(row[:length][::-1] for row, length in zip(ids, lengths, strict=True))
        return normalize(self._read(newest_first).float(), dim=-1) / self._options.temperature

    @torch.no_grad()
    def _encode_items(self) -> None:
        was_training = self.training
        self.eval()
        items = np.arange(len(self._texts.tokens))
        self.items_id.copy_(self._read(Ragged.from_lengths(items, np.ones(len(items), np.int64))))
        self.train(was_training)

    def _read(self, histories: Ragged) -> Tensor:
        """[B, d] states of [CLS] before the texts of items, the newest first."""
        inputs = self._texts.of(histories, self._options.tokens)
        if torch.is_grad_enabled():
            return self._read_texts(*inputs)
        order = np.argsort(inputs[0].lengths, kind="stable")  # so that little is padded
        parts = np.split(order, np.arange(_TEXTS_AT_A_TIME, len(order), _TEXTS_AT_A_TIME))
        found = torch.cat([self._read_texts(*(each.take(part) for each in inputs)) for part in parts])
        return found[torch.from_numpy(np.argsort(order)).to(found.device)]

    def _read_texts(self, tokens: Ragged, types: Ragged, places: Ragged) -> Tensor:
        texts, device = self._texts, self.items_id.device
        (matrix, lengths), (type_matrix, _), (place_matrix, _) = map(padded, (tokens, types, places))
        beyond = -matrix.shape[1] % self._options.window  # it attends by whole windows
        tokens_bs, types_bs, places_bs = (
            torch.from_numpy(np.pad(each, [(0, 0), (0, beyond)])).to(device)
            for each in (matrix, type_matrix, place_matrix)
        )
        mask_bs = torch.arange(tokens_bs.shape[1], device=device) < torch.from_numpy(lengths).to(device)[:, None]
        tokens_bs = tokens_bs.where(mask_bs, texts.padding)
        everywhere = torch.zeros_like(tokens_bs)
        everywhere[:, 0] = 1  # [CLS] sees all, and all see it
        found = self.longformer(
            inputs_embeds=self.longformer.get_input_embeddings()(tokens_bs) + self.places(places_bs),
            attention_mask=mask_bs.long(),
            token_type_ids=types_bs,
            global_attention_mask=everywhere,
        )
        return torch.as_tensor(found.last_hidden_state[:, 0])


def _word_texts(catalogue: Catalogue, options: RecFormerOptions) -> ItemTexts:
    """Texts in the catalogue's own words."""
    texts = [*catalogue.attributes, *(text for texts in catalogue.attributes.values() for text in texts)]
    known = sorted({word for text in texts for word in _words(text)})
    number = {word: place for place, word in enumerate(known, 2)}

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [[number[word] for word in _words(text)] for text in texts]

    return _texts(catalogue, options, tokenize, first=1, padding=0)


def _texts(
    catalogue: Catalogue, options: RecFormerOptions, tokenize: Callable[[list[str]], list[list[int]]], **tokens: int
) -> ItemTexts:
    return ItemTexts(
        catalogue.attributes, tokenize, **tokens, most=options.attributes, longest=options.attribute_tokens
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _fresh(options: RecFormerOptions, texts: ItemTexts) -> Any:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(
        "longformer",
        vocab_size=int(texts.tokens.values.max(initial=1)) + 1,
        hidden_size=options.hidden,
        intermediate_size=options.inner,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        attention_window=[options.window] * options.layers,
        max_position_embeddings=options.tokens + options.window + 1,
        type_vocab_size=TYPES,
        pad_token_id=0,
        initializer_range=options.hidden**-0.5,  # by the usual 0.02 all items of a fresh model look the same
    )
    return AutoModel.from_config(config)


def _loaded(
    catalogue: Catalogue, options: RecFormerOptions, field: str, *, with_weights: bool
) -> tuple[Any, ItemTexts]:
    """A Longformer and the items' texts in its tokens."""
    try:
        model, tokenizer = _longformer(options.model, options.window, with_weights=with_weights)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        advice = "name `builtin`, or a folder or id of a Longformer"
        raise BadInput(f"{field}: cannot be loaded ({reason}); {advice}") from error
    known, start = model.config.max_position_embeddings, model.config.pad_token_id + 1
    if -(-options.tokens // options.window) * options.window + start > known:
        raise BadInput(
            f"baseline.options.tokens: {options.tokens} are more than the {known} positions of {options.model!r} hold"
        )

    def tokenize(texts: list[str]) -> list[list[int]]:
        return list(tokenizer(texts, add_special_tokens=False)["input_ids"])

    texts = _texts(catalogue, options, tokenize, first=tokenizer.bos_token_id, padding=tokenizer.pad_token_id)
    return model, texts


def _longformer(name: str, window: int, *, with_weights: bool) -> tuple[Any, Any]:
    """A Longformer with fresh types of tokens, and its tokenizer.

    Raises:
        TypeError: if it is another model; and what Hugging Face's loaders raise.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(name)
    if config.model_type != "longformer":
        raise TypeError(f"is a {config.model_type!r} model")
    config.attention_window = [window] * config.num_hidden_layers
    tokenizer = AutoTokenizer.from_pretrained(name)
    safe = True if Path(name).is_dir() else None  # a folder could have been handed to the user
    model = (
        AutoModel.from_pretrained(name, config=config, dtype="float32", use_safetensors=safe)
        if with_weights
        else AutoModel.from_config(config)
    )
    model.embeddings.token_type_embeddings = nn.Embedding(TYPES, config.hidden_size)
    nn.init.normal_(model.embeddings.token_type_embeddings.weight, std=0.02)
    return model, tokenizer


def _take_published(model: RecFormer, file: Path, field: str) -> None:
    """Set the authors' weights; what else their file holds is left aside."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no kind of its own for files that are damaged or hold other objects
        raise BadInput(f"{field} is no file of tensors ({type(error).__name__})") from error
    named = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
    places = named.pop(_PLACES, torch.empty(0, 0))
    wanted = model.places.weight
    if len(places) < len(wanted):
        raise BadInput(f"{field} knows {max(len(places) - 1, 0)} items of a history; lower data.max_items to that")
    own = model.longformer.state_dict()
    wrong = [name for name in own if name not in named or named[name].shape != own[name].shape]
    if wrong:
        raise BadInput(f"{field} does not fit the folder's config.json ({wrong[0]})")
    model.longformer.load_state_dict({name: named[name] for name in own})
    wanted.data.copy_(places[: len(wanted)])
