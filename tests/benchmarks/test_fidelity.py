"""Simulated fidelities: what they take from the measured curves."""

from __future__ import annotations

import json

import fidelity
import numpy as np
import pytest
from fidelity import LANDSCAPES, Curves


def test_early_epochs_are_compared_with_the_end():
    curves = Curves.read(LANDSCAPES / "synthetic.parquet", "mrr")
    relations = curves.relations()
    assert curves.costs == [1 / 3, 2 / 3, 1]
    assert all(len(by_epoch) == 3 for by_epoch in relations.values())
    assert relations["signal's correlation with the end"][-1] == pytest.approx(1)
    own, others = (by_epoch for name, by_epoch in relations.items() if "end" in name and "signal" not in name)
    assert own[-1] == pytest.approx(1)
    assert np.all(np.diff(own) > 0)
    assert others[-1] < 1


def test_the_quick_run_compares_policies(capsys):
    fidelity.main(["--quick"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    (scores,) = line["scores"].values()
    assert scores["none"]["trials"] == 12
    assert scores["none"]["gain"] == 0
    assert set(scores) == {"none", "curve", "fidelities"}
