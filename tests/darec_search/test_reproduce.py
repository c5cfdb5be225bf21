"""`reproduce` on a small shop: what it trains, writes and repeats not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from darec_search import cli
from darec_search.config import read_yaml
from darec_search.reproduce import documents, published
from darec_search.reproduce.executors import LocalExecutor
from darec_search.reproduce.experiments import EXPERIMENTS
from darec_search.reproduce.methods import all_methods
from darec_search.reproduce.reproduce import complete, plan, run, verify
from darec_search.reproduce.scales import SCALES
from darec_search.reproduce.setup import Setup, changes_of
from darec_search.samplers import create
from trainer.baselines import BASELINES, REFERENCES
from trainer.data.dataset import read_manifest
from trainer.data.prepare import prepare
from trainer.errors import BadInput

PAPER = Path(__file__).resolve().parents[2] / "examples" / "paper"
ONLY = ["neighbours", "sasrec", "darec"]
BUILTIN = ["model.backbone.name=builtin", "negatives.encoder=tfidf"]
TRAININGS = 8
"""Two methods, each two trials and two seeds."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    prepare("synthetic", None, folder / "shop", users=60, items=80)
    return folder


class Listening:
    def __init__(self):
        self.trained = []

    def begins(self, setup, job):
        pass

    def ended(self, setup, job, done):
        assert done.result.status == "finished"
        self.trained.append(job.training.name)


class Killed(LocalExecutor):
    """Dies after some trainings, with the next one begun."""

    def __init__(self, after):
        super().__init__(1)
        self._left = after

    def wait(self):
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return super().wait()


def planned(shop, out, what="table2", **changes):
    overrides = [f"cache={shop / 'cache'}", *changes.pop("overrides", [])]
    only = changes.pop("only", ONLY)
    return plan([EXPERIMENTS[what]], [str(shop / "shop")], SCALES["tiny"], out, only, overrides, **changes)


@pytest.fixture(scope="module")
def done(shop):
    """A run that was killed after three trainings and went on: its folder, and what each start trained."""
    out, starts = shop / "out", []
    for executor in (Killed(3), LocalExecutor(1)):
        listening, now = Listening(), planned(shop, out)
        verify(now)
        try:
            run(now, executor, listening)
        except KeyboardInterrupt:
            assert not complete(now)
        starts.append(listening.trained)
    assert complete(now)
    return out, starts


def test_killed_in_the_middle_it_repeats_nothing_finished(shop, done):
    out, (before, after) = done
    assert (len(before), len(after)) == (3, TRAININGS - 3)
    assert not set(before) & set(after)
    again = planned(shop, out)
    assert verify(again) == TRAININGS == again.trainings
    listening = Listening()
    run(again, Killed(0), listening)
    assert listening.trained == []


def test_results_are_those_of_the_trainings(done):
    out, _ = done
    results = json.loads((out / "results.json").read_text())["shop"]
    assert list(results) == ["neighbours", "sasrec", "darec"]
    ranks = {
        name: [
            pq.read_table(file).column("rank").to_numpy() for file in sorted(out.glob(f"shop/*/{name}*/ranks.parquet"))
        ]
        for name in results
    }
    for name, entry in results.items():
        assert entry["mrr"] == pytest.approx(np.mean([np.mean(1 / one) for one in ranks[name]]))
        assert entry["recall@10"] == pytest.approx(np.mean([np.mean(one <= 10) for one in ranks[name]]))
        assert entry["users"] == 60
        assert entry["inference_ms_per_user"] > 0
        assert entry["published"] is None
    assert (results["neighbours"]["seeds"], results["sasrec"]["seeds"]) == ([], [0, 1])
    assert results["sasrec"]["sd"]["mrr"] == pytest.approx(np.std(results["sasrec"]["values"]["mrr"], ddof=1))
    darec = results["darec"]
    best = max(("neighbours", "sasrec"), key=lambda name: results[name]["mrr"])
    assert darec["best_baseline"] == best
    means = [np.mean([1 / one for one in ranks[name]], axis=0) for name in ("darec", best)]
    assert darec["best_baseline_p_value"] == pytest.approx(stats.ttest_rel(*means).pvalue)
    highest = max(results[name]["mrr"] for name in ("neighbours", "sasrec"))
    assert darec["improvement"]["mrr"] == pytest.approx(darec["mrr"] / highest - 1)


def test_every_search_has_the_same_budget_and_its_best_is_trained(done):
    out, _ = done
    results = json.loads((out / "results.json").read_text())["shop"]
    assert {results[name]["search"]["trials"] for name in ("sasrec", "darec")} == {2}
    for name in ("sasrec", "darec"):
        designs = [json.loads(file.read_text()) for file in sorted((out / "shop" / "search" / name).glob("*.json"))]
        scores = [
            json.loads((out / f"shop/search/{name}/{number:03}/result.json").read_text())["metrics"]["mrr"]
            for number in range(2)
        ]
        chosen = designs[int(np.argmax(scores))]
        assert chosen.items() >= results[name]["search"]["chosen"].items()
        config = json.loads((out / f"shop/trainings/{name}-0/run.json").read_text())
        assert config["optimization"]["learning_rate"] == chosen["optimization.learning_rate"]
        assert config["data"]["users_fraction"] == 1
    assert config["model"]["architecture"] == chosen["model.architecture"]


def test_the_page_is_made_of_the_documents(done, tmp_path):
    out, _ = done
    for name in ("results.json", "reproduction.json"):
        (tmp_path / name).write_text((out / name).read_text())
    documents.render(tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert page == (out / "results.md").read_text()
    results = json.loads((out / "results.json").read_text())["shop"]
    assert "not compared with published figures: the paper has no such dataset" in page
    assert f"{results['sasrec']['mrr']:.4f} ± {results['sasrec']['sd']['mrr']:.4f}" in page
    assert "published 0" not in page


def test_other_settings_are_refused_in_the_same_folder(shop, done):
    out, _ = done
    with pytest.raises(BadInput, match="another config"):
        verify(planned(shop, out, overrides=["optimization.batch_size=7"]))


def test_figures_share_darec_and_leave_out_what_does_not_fit(shop, tmp_path):
    small = planned(shop, tmp_path, "fig10")
    (dataset,) = small.datasets
    assert dataset.left_out == ("fig10 r3", "fig10 r4", "fig10 r6")
    every = plan(list(EXPERIMENTS.values()), [str(shop / "shop")], SCALES["tiny"], tmp_path)
    chain = every.datasets[0].chains["darec_paper"]
    assert len({final.name for final in chain.finals}) == len(chain.finals)
    figures = every.datasets[0].figures
    assert figures["fig5"]["DARec"] == figures["fig6"]["DARec"]


def test_what_is_the_same_training_is_trained_once(shop, tmp_path):
    """Whatever the search finds: r = 1 is Variation 2 of Fig. 5, but no more DARec than all serial is."""
    found = {}
    for names in (("fig10",), tuple(EXPERIMENTS)):
        experiments = [EXPERIMENTS[name] for name in names]
        (dataset,) = plan(experiments, [str(shop / "shop")], SCALES["full"], tmp_path, overrides=BUILTIN).datasets
        found[names] = dataset.figures
    alone, all_of_them = found.values()
    assert alone["fig10"] == all_of_them["fig10"]
    darec = all_of_them["fig5"]["DARec"]
    for name, label in (("fig13", "NCF"), ("fig14", "joint"), ("fig8", "bottleneck64"), ("fig9", "ns1-ncl5")):
        assert all_of_them[name][label] == darec
    assert all_of_them["fig10"]["r1"] == all_of_them["fig5"]["Variation-2"] != darec


@pytest.mark.cluster
def test_a_figure_on_ray(shop, tmp_path, capsys):
    arguments = ["fig5", "--data", shop / "shop", "--scale", "tiny", "--out", tmp_path / "out", "--lanes", "2"]
    assert cli.main(["reproduce", *map(str, arguments), "--set", f"cache={shop / 'cache'}"]) == 0
    assert "results.md" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "fig5.json").read_text())["shop"]
    assert [entry["label"] for entry in found] == ["Variation-1", "Variation-2", "DARec"]
    assert (tmp_path / "out" / "figures" / "fig5.png").stat().st_size > 5000


def test_dry_run_prices_every_method_and_trains_nothing(shop, tmp_path, capsys):
    arguments = ["table2", "--data", shop / "shop", "--scale", "tiny", "--only", "sasrec,darec", "--dry-run", "--json"]
    options = ["--out", tmp_path / "out", "--lanes", "2", "--price-per-hour", "3", "--set", f"cache={shop / 'cache'}"]
    assert cli.main(["reproduce", *map(str, arguments + options)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(part["method"], part["trials"], part["trainings"]) for part in found["parts"]} == {
        ("sasrec", 2, 2),
        ("darec", 2, 2),
    }
    hours = found["hours"]
    assert 0 < hours["low"] <= hours["middle"] <= hours["high"]
    assert found["cost"]["middle"] == pytest.approx(3 * hours["middle"])
    assert found["wall_hours"]["middle"] == pytest.approx(hours["middle"] / 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table3", "--data", "{shop}"], "choose one of all, table2"),
        (["table2", "--data", "{shop}", "--only", "sasrecs"], "no method 'sasrecs'"),
        (["table2", "--data", "{shop}", "{shop}"], "same name"),
        (["table2", "--data", "{shop}/no"], "no"),
        (["table2", "--data", "{shop}", "--set", "optimization.epoch=1"], "optimization.epoch: unknown field"),
        (["table2", "--data", "{shop}", "--lanes", "0"], "--lanes 0"),
    ],
)
def test_bad_input(shop, tmp_path, capsys, arguments, words):
    given = [argument.format(shop=shop / "shop") for argument in arguments]
    options = ["--scale", "tiny", "--runner", "local", "--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.main(["reproduce", *given, *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_what_is_too_slow_for_a_scale_takes_part_if_named(shop, tmp_path):
    scale = replace(SCALES["tiny"], too_slow=("sasrec",))
    for only, there in (([], False), (["sasrec"], True)):
        planned = plan([EXPERIMENTS["table2"]], [str(shop / "shop")], scale, tmp_path, only)
        assert ("sasrec" in planned.datasets[0].chains) == there


def test_every_method_is_there_and_has_a_search():
    methods = all_methods()
    assert methods.keys() >= {*BASELINES, *REFERENCES, "llmrec", "darec", "darec_paper"}
    for name in BASELINES:
        assert {level.rpartition(".")[2] for level in methods[name].levels} >= {"learning_rate", "hidden", "dropout"}


def test_published_figures_give_the_improvements_of_table_2():
    improvements = {
        "arts": (8.86, 9.15, 8.57), "scientific": (11.66, 4.15, 13.08), "instruments": (8.61, 6.00, 8.20),
        "pantry": (11.41, 16.70, 6.84), "games": (4.05, 2.73, 3.55),
    }  # fmt: skip
    for dataset, expected in improvements.items():
        rows = published.PaperDataset(dataset, None).published
        for metric, percent in zip(published.METRICS, expected, strict=True):
            best = max(values[metric] for name, values in rows.items() if name != "darec_paper")
            assert 100 * (rows["darec_paper"][metric] / best - 1) == pytest.approx(percent, abs=0.3), (dataset, metric)


def test_published_figures_stand_beside_the_papers_own_cut_alone(shop):
    manifest = read_manifest(str(shop / "shop"))
    own = manifest.model_copy(update={"users": 10_973, "items": 5_193, "train_interactions": 54_183})
    assert published.paper_dataset("my-scientific", own).published["darec_paper"]["mrr"] == 0.1105
    other = published.paper_dataset("my-scientific", manifest)
    assert (other.name, other.published) == ("scientific", {})
    assert "its Table 1 has 10,973" in other.why_not


@pytest.mark.parametrize("figure", ["fig5", "fig6", "fig7", "fig8", "fig9", "fig10", "fig13", "fig14"])
def test_figures_vary_what_the_examples_vary(figure, shop, tmp_path):
    """The same runs as examples/paper, written down once more for people who want single run files."""
    setup = Setup.open(str(shop / "shop"), SCALES["full"])
    method = all_methods()["darec_paper"]
    file = read_yaml(PAPER / f"{figure}_pantry.yaml")
    variants = {variant.label.lower(): variant for variant in EXPERIMENTS[figure].variants}
    for label, changes in file["runs"].items():
        if figure == "fig5" and label == "LLMRec":  # it stands in Table 2
            continue
        ours = setup.config(method, *([changes] if figure != "fig7" else [{"losses": file["losses"]}, changes]))
        name = label.lower().replace("bottleneck-", "bottleneck").replace("e-", "e-0" if figure == "fig7" else "e-")
        theirs = setup.config(method, variants[name].changes)
        assert theirs.model == ours.model
        if figure == "fig7":
            names = ("align", "contrastive", "collaborative")
            assert [getattr(theirs.losses, n) for n in names] == pytest.approx([getattr(ours.losses, n) for n in names])
        else:
            assert theirs.losses == ours.losses


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", all_methods())
def test_every_scale_describes_valid_trainings(shop, scale, method):
    found = all_methods()[method]
    if found.kind == "reference":
        return
    setup = Setup.open(str(shop / "shop"), SCALES[scale])
    config = setup.config(found, *setup.search_changes(found), SCALES[scale].figures)
    assert (config.baseline is not None) == (found.kind == "baseline")
    assert config.data.users_fraction <= 1
    if scale == "small":  # `full` needs a hub to count its layers
        point = create(SCALES[scale].sampler, setup.space(found), 0, **SCALES[scale].sampler_options).ask()
        assert setup.config(found, changes_of(found, point)).seed == 0
