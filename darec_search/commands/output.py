"""What commands print, and where."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console

console = Console()
errors = Console(stderr=True)


def say(text: str) -> None:
    """Plain text, as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def say_metrics(found: dict[str, Any]) -> None:
    """MRR, Recall@10 and NDCG@10 in a line."""
    from darec_search.console import COLUMNS, NAMES

    figures = "  ".join(f"{NAMES[name]} {found[name]:.4f}" for name in COLUMNS)
    say(f"{found['split']}, {found['users']:,} users: {figures}")
