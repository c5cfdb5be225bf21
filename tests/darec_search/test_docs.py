"""What the documents show is what was measured."""

import json
from pathlib import Path

from darec_search.reproduce.markdown import comparison_tables

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_table_2_is_made_of_the_results():
    """`docs/results.json` and `docs/reproduction.json` are those of `reproduce`, dataset by dataset."""
    results, about = (json.loads((DOCS / name).read_text()) for name in ("results.json", "reproduction.json"))
    assert comparison_tables(results, about) in (DOCS / "results.md").read_text(encoding="utf-8")
    for entries in results.values():
        assert {"mrr", "recall@10", "ndcg@10", "seeds"} <= entries["darec"].keys()
