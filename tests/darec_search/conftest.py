from __future__ import annotations

import pytest
from tiny_studies import study_config

from darec_search import pipeline


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The result of a tiny study that ran to its end; tests copy its folder before they change anything."""
    folder = tmp_path_factory.mktemp("finished")
    return pipeline.run(study_config(folder, tracking={"enabled": False}))
