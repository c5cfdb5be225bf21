"""`python -m darec_search`."""

import sys

from darec_search.cli import main

sys.exit(main())
