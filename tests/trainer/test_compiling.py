from __future__ import annotations

import logging

import torch
from torch._inductor import config as inductor

from trainer.models.compiling import compiled


def test_without_a_compiler_it_runs_as_it_is(caplog):
    def combine(h):
        return h.sin() + h.exp()

    h = torch.randn(7)
    with inductor.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        with caplog.at_level(logging.WARNING):
            torch.testing.assert_close(compiled(combine)(h), combine(h))
        assert "runs uncompiled" in caplog.text
        caplog.clear()
        torch.testing.assert_close(compiled(combine)(h), combine(h))
        assert not caplog.text
