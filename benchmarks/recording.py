"""How every benchmark ends: one line of JSON, and on request a dated one in its own file under `results/`."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def finish(line: dict[str, Any], record: bool) -> None:
    """Print the line; append it to `results/<benchmark>.jsonl` if it is to be recorded."""
    if record:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{line['benchmark']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"date": datetime.date.today().isoformat(), **line}) + "\n")
    print(json.dumps(line))
