"""The RoBERTa family: BERT whose positions begin after the padding token's id."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainer.models.backbones.bert import BertBackbone


class RobertaBackbone(BertBackbone):
    """A RoBERTa encoder."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.position_offset: int = model.config.pad_token_id + 1

    @classmethod
    def positions(cls, config: Any) -> int:
        return super().positions(config) - config.pad_token_id - 1

    def enter(self, embeddings_te: Tensor, positions_t: Tensor) -> Tensor:
        return super().enter(embeddings_te, positions_t + self.position_offset)
