"""A network of which a run trains some or all tensors."""

from __future__ import annotations

from torch import Tensor, nn


class Network(nn.Module):
    """Its trained tensors go to checkpoints and model files by name."""

    def trained_state(self) -> dict[str, Tensor]:
        """The trained tensors by name: here all of them."""
        return dict(self.state_dict())

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `trained_state`.

        Raises:
            ValueError: if names or shapes do not fit this model.
        """
        own = self.trained_state()
        wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
        if wrong:
            raise ValueError(f"saved tensors do not fit this model: {', '.join(wrong[:5])}")
        self.load_state_dict(state, strict=False)
