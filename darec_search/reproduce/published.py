"""The paper's own figures, by dataset, with their place in it.

Only figures that stand in its text are here; Figs. 5 to 14 are pictures, of which the text names the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.dataset import Manifest

METRICS = ("ndcg@10", "recall@10", "mrr")
"""Table 2's metrics, in its order."""
TABLE_1 = {
    "arts": (56_083, 22_685, 364_356),
    "scientific": (10_973, 5_193, 54_183),
    "instruments": (27_518, 10_535, 171_108),
    "pantry": (14_178, 4_961, 102_661),
    "games": (55_126, 17_277, 356_954),
}
"""Users, items and interactions of the training part."""
METHODS = ("gru4rec", "sasrec", "bert4rec", "fdsa", "p5", "unisrec", "recformer", "llmrec", "darec_paper")
"""Table 2's columns; the last is the paper's DARec."""
_TABLE_2 = {
    "arts": (
        (0.1118, 0.1236, 0.0950, 0.1254, 0.1286, 0.0694, 0.1251, 0.0792, 0.1400),
        (0.1365, 0.1619, 0.1255, 0.1569, 0.1482, 0.1263, 0.1580, 0.1054, 0.1767),
        (0.1082, 0.1164, 0.0890, 0.1198, 0.1234, 0.0566, 0.1198, 0.0744, 0.1340),
    ),
    "scientific": (
        (0.0799, 0.1001, 0.0704, 0.1018, 0.1031, 0.0656, 0.1040, 0.0520, 0.1162),
        (0.1048, 0.1430, 0.0995, 0.1337, 0.1257, 0.1226, 0.1468, 0.0745, 0.1529),
        (0.0771, 0.0919, 0.0654, 0.0962, 0.0977, 0.0535, 0.0966, 0.0495, 0.1105),
    ),
    "instruments": (
        (0.0797, 0.0866, 0.0703, 0.0889, 0.0847, 0.0700, 0.0821, 0.0486, 0.0966),
        (0.1047, 0.1175, 0.0906, 0.1157, 0.1056, 0.1210, 0.1030, 0.0689, 0.1283),
        (0.0768, 0.0825, 0.0682, 0.0857, 0.0801, 0.0591, 0.0803, 0.0470, 0.0927),
    ),
    "pantry": (
        (0.0453, 0.0570, 0.0373, 0.0618, 0.0409, 0.0345, 0.0566, 0.0251, 0.0689),
        (0.0673, 0.0887, 0.0552, 0.0848, 0.0529, 0.0731, 0.0888, 0.0392, 0.1036),
        (0.0435, 0.0524, 0.0363, 0.0597, 0.0389, 0.0278, 0.0513, 0.0251, 0.0638),
    ),
    "games": (
        (0.0743, 0.0802, 0.0604, 0.0860, 0.0568, 0.0489, 0.0675, 0.0339, 0.0895),
        (0.1142, 0.1322, 0.0914, 0.1273, 0.0729, 0.1020, 0.1027, 0.0534, 0.1358),
        (0.0697, 0.0728, 0.0576, 0.0810, 0.0535, 0.0399, 0.0513, 0.0325, 0.0839),
    ),
}
TABLE_3 = {
    "arts": {"batch": 5, "fraction": 0.04, "align": 0.1, "contrastive": 1e-6, "collaborative": 0.001},
    "scientific": {"batch": 6, "fraction": 0.2, "align": 0.2, "contrastive": 1e-3, "collaborative": 0.1},
    "instruments": {"batch": 7, "fraction": 0.1, "align": 0.1, "contrastive": 1e-3, "collaborative": 0.05},
    "pantry": {"batch": 8, "fraction": 0.2, "align": 0.2, "contrastive": 1e-6, "collaborative": 0.1},
    "games": {"batch": 8, "fraction": 0.06, "align": 0.05, "contrastive": 1e-3, "collaborative": 0.01},
}
"""Batch size, b and λ1 to λ3; the rest of the table is the same for all datasets."""
TABLE_4: dict[str, dict[str, tuple[float, float]]] = {
    "arts": {"recformer": (43.46, 796), "llmrec": (1.56, 86), "darec_paper": (12.08, 575)},
    "pantry": {"recformer": (4.32, 141), "llmrec": (0.34, 20), "darec_paper": (2.25, 142)},
}
"""Hours of training and seconds of inference on four RTX 3090."""


@dataclass(frozen=True)
class PaperDataset:
    """A dataset beside the paper's of the same name.

    Args:
        name: the paper's, in lower case; None if it has none of this name.
        why_not: why its figures cannot be compared; None if they can.
    """

    name: str | None
    why_not: str | None

    @property
    def published(self) -> dict[str, dict[str, float]]:
        """Table 2 by method and metric, where it may be compared; else nothing."""
        if self.name is None or self.why_not is not None:
            return {}
        rows = dict(zip(METRICS, _TABLE_2[self.name], strict=True))
        return {method: {m: rows[m][i] for m in METRICS} for i, method in enumerate(METHODS)}

    @property
    def times(self) -> dict[str, tuple[float, float]]:
        """Table 4 by method, where it may be compared; else nothing."""
        return {} if self.why_not is not None else TABLE_4.get(self.name or "", {})


def paper_dataset(folder_name: str, manifest: Manifest) -> PaperDataset:
    """Which of the paper's datasets a folder is by its name, and whether it is the same cut by Table 1's figures."""
    words = folder_name.lower()
    name = next((known for known in TABLE_1 if known in words), None)
    if name is None:
        return PaperDataset(None, "the paper has no such dataset")
    found = (manifest.users, manifest.items, manifest.train_interactions)
    if found == TABLE_1[name]:
        return PaperDataset(name, None)
    users, items, interactions = TABLE_1[name]
    return PaperDataset(
        name,
        f"another cut than the paper's: {found[0]:,} users, {found[1]:,} items and {found[2]:,} training interactions; "
        f"its Table 1 has {users:,}, {items:,} and {interactions:,}",
    )
