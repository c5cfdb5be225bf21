"""Windows onto a study folder: experiment trackers that can always be rebuilt from it."""

from darec_search.tracking.base import TRACKERS, Synced, Tracker, redact
from darec_search.tracking.mirror import Mirror

__all__ = ["TRACKERS", "Mirror", "Synced", "Tracker", "redact"]
