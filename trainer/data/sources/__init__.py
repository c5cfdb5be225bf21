"""One file a source format. A new format is one new file and one line here."""

from trainer.data.sources.amazon import AMAZON
from trainer.data.sources.base import Source
from trainer.data.sources.recbole import RECBOLE
from trainer.data.sources.recformer import RECFORMER
from trainer.data.sources.synthetic import SYNTHETIC
from trainer.data.sources.table import TABLE
from trainer.data.sources.unisrec import UNISREC

SOURCES: dict[str, Source] = {
    "amazon": AMAZON,
    "recbole": RECBOLE,
    "recformer": RECFORMER,
    "synthetic": SYNTHETIC,
    "table": TABLE,
    "unisrec": UNISREC,
}
