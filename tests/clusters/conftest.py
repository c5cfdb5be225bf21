"""Tiny studies are shared with the tests of the search, the cluster of processes with the benchmarks."""

import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(_ROOT / "tests" / "darec_search"), str(_ROOT / "benchmarks")]
