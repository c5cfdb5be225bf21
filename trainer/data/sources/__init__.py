"""One file a source format. A new format is one new file and one line here."""

from trainer.data.sources.base import Source
from trainer.data.sources.synthetic import SYNTHETIC
from trainer.data.sources.table import TABLE

SOURCES: dict[str, Source] = {"synthetic": SYNTHETIC, "table": TABLE}
