"""What one training run is. The field descriptions are the reference documentation.

Defaults are those of the paper (Section 3.1.4, Table 3) wherever it states one; see docs/darec.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from trainer.storage import without_credentials

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of a config: immutable, unknown fields refused, non-finite numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class DataConfig(Section):
    """Which users and items a run sees."""

    path: str = Field(description="Dataset folder made by `darec-search data prepare`, or its URL.")
    users_fraction: Fraction = Field(1.0, description="Fraction b of the users (Data_BO); every item stays.")
    subset_seed: int = Field(0, description="Which users a fraction below 1 draws.")
    validation_users: Literal["trained", "all"] = Field(
        "trained",
        description="Whose validation items a run is judged by: the users it trains on, or all, the others known by "
        "their history alone.",
    )
    exclude_seen: bool = Field(
        False,
        description="Whether evaluations leave out the items of a user's history; a held-out item among them stays.",
    )
    max_items: Positive = Field(50, description="Newest items of a history that enter a sequence stream.")
    max_item_tokens: Positive = Field(30, description="Tokens of an item sentence that are kept.")

    _public = field_validator("path")(without_credentials)


class BuiltinBackboneConfig(Section):
    """The small decoder that is trained on the catalogue's own text when no backbone is named."""

    layers: Positive = Field(4, description="Decoder layers.")
    hidden: Positive = Field(64, description="Hidden size d.")
    heads: Positive = Field(4, description="Attention heads; divides `hidden`.")
    vocabulary: Annotated[int, Field(ge=300)] = Field(2048, description="Size of the byte-level BPE vocabulary.")
    steps: Positive = Field(400, description="Optimiser steps of next-token prediction on the catalogue's text.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(3e-3, description="Peak learning rate.")
    seed: int = Field(0, description="Seed of its initial weights and batches.")

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> BuiltinBackboneConfig:
        if self.hidden % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide hidden ({self.hidden})")
        return self


class BackboneConfig(Section):
    """The frozen language model."""

    name: str = Field("builtin", description="`builtin`, a local model folder, or a Hugging Face id.")
    revision: str | None = Field(None, description="Commit of a Hugging Face id; the newest when absent.")
    builtin: BuiltinBackboneConfig = Field(
        default_factory=lambda: BuiltinBackboneConfig(),
        description="The built-in decoder's size and training.",
    )


class AdapterConfig(Section):
    """Relation and recommendation adapters (Sections 2.2.5 and 2.3.3)."""

    enabled: bool = Field(True, description="Without adapters and with one mask the model is the paper's LLMRec.")
    bottleneck: Positive = Field(64, description="Width of W1's output.")
    activation: Literal["identity", "relu", "gelu"] = Field(
        "identity", description="Between W1 and W2; the paper's formula has none."
    )
    replacement_frequency: Positive = Field(1, description="r: every r-th backbone layer becomes a DALayer (Fig. 10).")


class CollaborativeConfig(Section):
    """The collaborative filtering model whose vectors enter the context mask (Section 2.3.2)."""

    model: Literal["ncf", "mf", "lightgcn", "none"] = Field("ncf", description="`none` leaves the extra column out.")
    dimension: Positive = Field(64, description="Embedding size of the CF model (per tower for NCF).")
    propagation_layers: Positive = Field(3, description="Graph convolutions of LightGCN; the others have none.")
    training: Literal["joint", "frozen", "pretrained"] = Field(
        "joint",
        description="Trained with DARec; pretrained on the training part and frozen (Fig. 14); or pretrained, and then "
        "trained with DARec.",
    )
    pretrain_epochs: Positive = Field(20, description="Passes over the interactions when `frozen` or `pretrained`.")
    pretrain_learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="Adam's, when `frozen` or `pretrained`."
    )
    projection: Literal["shared", "per_layer"] = Field(
        "shared", description="One projection to the hidden size for all layers, or one each."
    )
    negatives: Positive | None = Field(
        None, description="Uniform negatives per positive: 4 for NCF, 1 for MF and LightGCN (BPR) when absent."
    )


RELATIONS = ("together", "next", "text")
"""What a prior may know of two items: `trainer.data.relations` says what each is."""


class PriorConfig(Section):
    """Logits that are counted in the training part, added to those of [SEQ]; the paper has none (docs/darec.md)."""

    sources: tuple[Literal["together", "next", "text", "popularity", "seen"], ...] = Field(
        ("together", "next", "text", "popularity", "seen"),
        min_length=1,
        description="What is counted: items bought together, items that follow each other, items that read alike, how "
        "often an item was bought, whether it is in the history; each with a learned weight.",
    )
    leave_one_out: bool = Field(
        True,
        description="Train on counts without the user in hand, whose own pairs would tell each next item.",
    )
    decay: Fraction = Field(0.7, description="Weight of an item of the history against the one after it.")
    gap: Positive = Field(3, description="Places apart at most of items that follow each other; each weighs 1/gap.")
    partners: Positive = Field(200, description="Strongest partners of each item that a relation keeps.")
    fit_steps: Annotated[int, Field(ge=0)] = Field(
        150, description="Steps on the prior alone before the first epoch, so that the model learns what it lacks."
    )

    @field_validator("sources")
    @classmethod
    def _each_once(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(sources)) < len(sources):
            raise ValueError("name each source once")
        return sources


class ItemTextConfig(Section):
    """Item vectors of the item projection in a text encoder's space: W_item = W + E P."""

    encoder: str = Field("tfidf", description="`tfidf`, or a Hugging Face encoder by folder or id: makes E, frozen.")
    dimension: Positive = Field(64, description="Leading directions of the encoder's vectors that are kept.")
    free: bool = Field(True, description="Whether each item has a free vector beside, W; without them W is 0.")


class ModelConfig(Section):
    """The DARec model."""

    backbone: BackboneConfig = Field(default_factory=lambda: BackboneConfig(), description="The frozen language model.")
    architecture: str = Field(
        "serial", description="`serial`, `parallel`, or one group of S/P letters per DALayer: `SPS-PPS`."
    )
    masks: tuple[Literal["causal", "context"], ...] = Field(
        ("causal", "context"),
        description="Masks of the two relation adapters; one alone leaves the router out (Variation 1, Fig. 6).",
    )
    adapters: AdapterConfig = Field(default_factory=lambda: AdapterConfig(), description="The adapters.")
    collaborative: CollaborativeConfig = Field(
        default_factory=lambda: CollaborativeConfig(), description="The CF model."
    )
    prior: PriorConfig | None = Field(None, description="Counts added to the logits; none when absent.")
    item_text: ItemTextConfig | None = Field(
        None,
        description="Ties the item projection to the items' texts; free vectors alone, as in the paper, when absent.",
    )
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of a state's numbers that is dropped in front of the item projection, in training."
    )

    @field_validator("masks")
    @classmethod
    def _one_or_two_masks(cls, masks: tuple[str, ...]) -> tuple[str, ...]:
        if len(masks) not in (1, 2):
            raise ValueError("name one or two masks, such as ['causal', 'context'] or ['causal', 'causal'] (Fig. 6)")
        return masks


class LossConfig(Section):
    """L = L_seq + λ1 L_align + λ2 L_cl + λ3 L_cf (Section 2.4); every term is a mean."""

    align: NonNegative = Field(0.1, description="λ1, weight of the semantic alignment loss.")
    contrastive: NonNegative = Field(1e-3, description="λ2, weight of the InfoNCE loss on hard negatives.")
    collaborative: NonNegative = Field(0.1, description="λ3, weight of the CF model's own loss.")
    contrastive_positions: Positive = Field(1, description="n_s, positions drawn per sequence.")
    contrastive_negatives: Positive = Field(5, description="n_cl, hard negatives per position.")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="τ of InfoNCE.")
    sampled_items: Positive | None = Field(
        None,
        description="Items drawn per step as the softmax's rivals of L_seq and L_align (sampled softmax), for "
        "catalogues whose logits do not fit; all items, as in the paper, when absent. Evaluation ranks all items.",
    )


def fits_prior(losses: LossConfig, info: ValidationInfo) -> LossConfig:
    """For a field `losses` behind a field `model`: a prior is over all items, so a sample of them is refused.

    Raises:
        ValueError: in one sentence.
    """
    model: ModelConfig | None = info.data.get("model")
    if model is not None and model.prior is not None and losses.sampled_items is not None:
        raise ValueError("model.prior counts over all items; leave sampled_items or the prior out")
    return losses


class NegativesConfig(Section):
    """Hard negatives (Appendix A)."""

    encoder: str = Field(
        "tfidf",
        description="`tfidf` (TF-IDF and truncated SVD), a local encoder folder, or a Hugging Face id.",
    )
    fraction: Fraction = Field(0.005, description="Nearest items by each of the two distances.")
    most: Positive = Field(
        200, description="Nearest items by each distance at most; only catalogues of over 40,000 items reach it."
    )
    mf_dimension: Positive = Field(
        1000,
        description="Rank of the matrix factorisation, or the most data allows; at most 128 for an index.",
    )
    search: Literal["exact", "approximate"] = Field(
        "exact", description="`approximate` looks in an index (extra `ann`), for catalogues of 100,000 items and more."
    )


Part = Literal["head", "prior", "adapters", "collaborative"]
"""Parts of DARec that may be trained in their own way: the item projection; the weights of the prior; adapters,
routers, [SEQ] and [ALIGN]; the CF model with its projections."""


class OptimizationConfig(Section):
    """AdamW with linear warm-up, then cosine decay to zero or a constant rate."""

    epochs: Positive = Field(40, description="Passes over the users.")
    batch_size: Positive = Field(6, description="Users per optimiser step, over all workers.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-5, description="Peak learning rate.")
    weight_decay: NonNegative = Field(0.01, description="AdamW's decoupled weight decay.")
    rates: dict[Part, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Learning rate of a part of DARec over `learning_rate`; 1 where absent."
    )
    decays: dict[Part, NonNegative] = Field(
        default_factory=dict, description="Weight decay of a part of DARec in place of `weight_decay`."
    )
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.06, description="Share of the steps with rising rate."
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Learning rate after the warm-up.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradients are clipped to this norm.")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Evaluate and keep the exponential moving average of the trained weights, with this decay a step; "
        "the weights of the last step when absent.",
    )
    patience: Positive | None = Field(
        None, description="Stop after so many evaluations without a better validation MRR; never when absent."
    )


class ExecutionConfig(Section):
    """How the machine computes; what is computed stays the same."""

    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Type of the frozen matrices and of matrix products; adapters and optimiser keep float32.",
    )
    compile: bool = Field(False, description="`torch.compile` the layers; without a compiler they run as they are.")
    checkpoint_activations: bool = Field(
        False, description="Keep the inputs of layers only and compute the rest again in the backward pass."
    )
    accumulation: Positive = Field(
        1, description="Parts of a batch that go through the model one after the other, to save memory."
    )
    checkpoint_steps: Positive | None = Field(
        None, description="A checkpoint every so many steps within an epoch; at the end of each epoch when absent."
    )
    deterministic: bool = Field(False, description="Refuse operations whose result may differ from run to run.")
    shard_backbone: bool = Field(
        False,
        description="Spread the frozen layers over the workers (FSDP2), for a backbone too large for one GPU; "
        "no effect with one worker.",
    )


class BaselineConfig(Section):
    """A model that DARec is compared with, trained in its place."""

    name: str = Field(
        description="`gru4rec`, `sasrec`, `bert4rec`, `fdsa`, `unisrec`, `p5` or `recformer`; `popularity`, "
        "`neighbours` or `itemknn`, which are counted and not trained."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the baseline.")


class RunConfig(Section):
    """One training run."""

    data: DataConfig = Field(description="Which users and items.")
    model: ModelConfig = Field(default_factory=lambda: ModelConfig(), description="The model.")
    losses: LossConfig = Field(default_factory=lambda: LossConfig(), description="Loss weights and sampling.")
    negatives: NegativesConfig = Field(
        default_factory=lambda: NegativesConfig(), description="How hard negatives are mined."
    )
    optimization: OptimizationConfig = Field(
        default_factory=lambda: OptimizationConfig(), description="Optimiser and schedule."
    )
    baseline: BaselineConfig | None = Field(
        None, description="Train this model in DARec's place; `model`, `losses` and `negatives` count for nothing then."
    )
    seed: int = Field(0, description="Seed of initial weights, batches and negatives.")
    execution: ExecutionConfig = Field(default_factory=lambda: ExecutionConfig(), description="How it is computed.")
    cache: str = Field(
        "runs/cache", description="Folder or URL of tokens, negatives and built-in backbones, by content."
    )
    system_metrics: bool = Field(
        False, description="Record the use of CPU, memory and GPU in `usage.jsonl`; a study says so by `tracking`."
    )

    _public = field_validator("cache")(without_credentials)
    _fits = field_validator("losses")(fits_prior)
