"""DARec written down literally from the paper: dense masks, explicit softmax, one stream and one term at a time.

Slow on purpose. It shares no code with the fast model: it reads the weights of a Hugging Face model and, by name, the
trained tensors of the model under test. Of `trainer` it knows the config alone.
"""

from reference.collaborative import COLLABORATIVE
from reference.darec import ReferenceDARec

__all__ = ["COLLABORATIVE", "ReferenceDARec"]
