"""Nothing that a user hands over is unpickled, evaluated or unpacked, and no id becomes a path unchecked."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parent / "darec_search"))
from study_folders import ask, new_study

from darec_search.config import StudyConfig
from darec_search.runfile import SweepConfig
from darec_search.trial import TrialSpec
from trainer.errors import BadInput

ROOT = Path(__file__).parents[1]
SOURCES = [file for package in ("darec_search", "trainer") for file in sorted((ROOT / package).rglob("*.py"))]
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ARCHIVES = {"zipfile", "tarfile"}
BUILTINS = {"eval", "exec", "compile"}  # called by their bare names: `model.eval()` is another thing
CALLS = {"unpack_archive", "extractall", "read_pickle", "full_load", "unsafe_load"}
ESCAPES = ["../x", "a/b", "/etc/x", "..", "", ".hidden", "x\n", "a\\b"]


def found(source: str) -> Iterator[str]:
    """What a source does that could run what a user hands over."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.split(".")[0] in UNPICKLING | ARCHIVES)
        if not isinstance(node, ast.Call):
            continue
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        called = ast.unparse(node.func)
        if called in BUILTINS or called.rpartition(".")[2] in CALLS:
            yield called
        if called == "torch.load" and options.get("weights_only") != "True":
            yield "torch.load without weights_only"
        if called == "yaml.load":
            yield "yaml.load"
        if options.get("allow_pickle", "False") != "False" or options.get("trust_remote_code", "False") != "False":
            yield f"{called}: {options}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(file):
    assert list(found(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import tarfile",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
        "shutil.unpack_archive(file)",
    ],
)
def test_the_scan_sees_what_it_looks_for(source):
    assert list(found(source))


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_out_of_their_folder_are_refused(name):
    with pytest.raises(ValidationError):
        StudyConfig.model_validate({"name": name, "data": {"path": "x"}})
    with pytest.raises(ValidationError):
        SweepConfig.model_validate({"runs": {name: {}}})
    spec = {"id": name, "number": 0, "stage": "joint", "bits": [0], "weights": {}, "seed": 0}
    with pytest.raises(ValidationError):
        TrialSpec.model_validate({**spec, "fidelity": {"users_fraction": 1, "epochs": 1}})


@pytest.mark.parametrize("other", ["../../elsewhere", "another"])
def test_a_spec_that_names_another_trial_is_refused(tmp_path, other):
    study = new_study(tmp_path / "study")
    file = ask(study, (0,) * 12, 0.1, "joint").folder / "spec.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "id": other}))
    with pytest.raises(BadInput, match=r"spec\.json"):
        study.trials()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study"]
