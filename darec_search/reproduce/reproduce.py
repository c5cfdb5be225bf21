"""A reproduction in order: plan, references, searches and trainings, documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from darec_search.reproduce import documents
from darec_search.reproduce.chains import Chain, Final, Job
from darec_search.reproduce.executors import Done, Executor
from darec_search.reproduce.experiments import EXPERIMENTS, Experiment, Variant
from darec_search.reproduce.methods import Changes, Method, all_methods
from darec_search.reproduce.references import measure_reference
from darec_search.reproduce.results import comparison, figure
from darec_search.reproduce.scales import Scale
from darec_search.reproduce.setup import Setup
from trainer.architecture import FIXED_ARMS
from trainer.errors import BadInput
from trainer.training.result import write_atomic
from trainer.training.warm import Warm, check_run, da_layer_count


class Observer(Protocol):
    """Is told how a reproduction gets on."""

    def begins(self, setup: Setup, job: Job) -> None:
        """A training begins."""
        ...

    def ended(self, setup: Setup, job: Job, done: Done) -> None:
        """A training has ended."""
        ...


@dataclass(frozen=True)
class DatasetPlan:
    """What is done on one dataset.

    Args:
        setup: dataset and scale.
        folder: in the results folder.
        references: counted for Table 2.
        chains: by method.
        figures: by experiment its trainings, by the label of the variant.
        left_out: variants that the model has too few layers for.
    """

    setup: Setup
    folder: Path
    references: tuple[str, ...]
    chains: Mapping[str, Chain]
    figures: Mapping[str, Mapping[str, Final]]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A whole reproduction."""

    experiments: tuple[Experiment, ...]
    scale: Scale
    out: Path
    methods: Mapping[str, Method]
    datasets: tuple[DatasetPlan, ...]

    @property
    def trainings(self) -> int:
        """How many there are, searches included."""
        return sum(chain.size for dataset in self.datasets for chain in dataset.chains.values())


def plan(
    experiments: Sequence[Experiment],
    data: Sequence[str],
    scale: Scale,
    out: Path,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Plan:
    """What a reproduction would do; trains nothing.

    Args:
        experiments: tables and figures.
        data: dataset folders or URLs.
        scale: how large.
        out: results folder.
        only: methods of Table 2; when empty, all but those that are too slow for the scale.
        overrides: `--set`, as written; what is searched, and what a figure varies, stays.

    Raises:
        BadInput: if a dataset, a method or a field is unknown or wrong.
    """
    methods = all_methods()
    unknown = [name for name in only if name not in methods]
    if unknown:
        raise BadInput(f"--only: there is no method {unknown[0]!r}; choose of {', '.join(methods)}")
    setups = [Setup.open(folder, scale, tuple(overrides)) for folder in data]
    names = [setup.name for setup in setups]
    if len(set(names)) < len(names):
        raise BadInput("--data: two folders have the same name, which is the dataset's; rename one")
    chosen = {name: method for name, method in methods.items() if name in (only or methods.keys() - scale.too_slow)}
    datasets = tuple(_of_dataset(experiments, setup, out / setup.name, methods, chosen) for setup in setups)
    return Plan(tuple(experiments), scale, out, chosen, datasets)


def _of_dataset(
    experiments: Sequence[Experiment],
    setup: Setup,
    folder: Path,
    methods: Mapping[str, Method],
    chosen: Mapping[str, Method],
) -> DatasetPlan:
    finals: dict[str, list[Final]] = {}
    figures: dict[str, dict[str, Final]] = {}
    references: list[str] = []
    left_out: list[str] = []
    shared = _finals(setup, methods)
    for experiment in experiments:
        if experiment.shown == "comparison":
            references += [name for name, method in chosen.items() if method.kind == "reference"]
            for name in chosen.keys() - set(references):
                finals.setdefault(name, []).append(Final(name))
            continue
        for variant in experiment.variants:
            if variant.method not in methods:
                continue
            final = shared[experiment.name, variant.label]
            if not _fits(setup, methods[variant.method], final):
                left_out.append(f"{experiment.name} {variant.label}")
                continue
            figures.setdefault(experiment.name, {})[variant.label] = final
            finals.setdefault(variant.method, []).append(final)
    # The longest first, so that nobody waits for them at the end.
    order = sorted(finals, key=lambda name: (methods[name].kind != "darec", -list(methods).index(name)))
    chains = {name: Chain(setup, methods[name], folder, finals[name]) for name in order}
    return DatasetPlan(setup, folder, tuple(references), chains, figures, tuple(left_out))


def _finals(setup: Setup, methods: Mapping[str, Method]) -> dict[tuple[str, str], Final]:
    """The trainings of every variant, by experiment and label; those that are the same have one folder.

    They are the same if they are so whatever the search finds, which two findings tell that differ in every field. All
    experiments count, so what one is asked for does not change where its trainings lie.
    """
    found: dict[tuple[str, str], Final] = {}
    known: dict[tuple[str, ...], Final] = {}
    for experiment in EXPERIMENTS.values():
        for variant in experiment.variants:
            if variant.method not in methods:
                continue
            method = methods[variant.method]
            # The method as it is goes first, so that whatever equals it has its folder.
            for final in (_final(experiment, Variant("", method=method.name), setup.scale),
                          _final(experiment, variant, setup.scale)):  # fmt: skip
                configs = [setup.config(method, chosen, *final.changes) for chosen in _two_findings(method)]
                same = (method.name, *(config.model_dump_json() for config in configs))
                found[experiment.name, variant.label] = known.setdefault(same, final)
    return found


def _two_findings(method: Method) -> list[Changes]:
    """What the search of a method might find, twice, with other values in all fields."""
    return [
        {name: levels[end] for name, levels in method.levels.items()}
        | ({"model.architecture": kind} if method.bits else {})
        for end, kind in zip((0, -1), FIXED_ARMS, strict=True)
    ]


def _final(experiment: Experiment, variant: Variant, scale: Scale) -> Final:
    """The trainings of a variant; DARec as it is has one folder for all figures, at full size that of Table 2."""
    if experiment.shown == "times" or not (variant.changes or scale.figures):
        return Final(variant.method)
    name = f"{experiment.name}-{variant.label}" if variant.changes else variant.method
    return Final(name, (scale.figures, variant.changes), "figures")


def _fits(setup: Setup, method: Method, final: Final) -> bool:
    config = setup.config(method, *final.changes)
    if config.baseline is not None:
        return True
    try:
        return da_layer_count(config) > 0
    except BadInput:
        if config.model.adapters.replacement_frequency == 1:
            raise
        return False


def check(planned: Plan) -> None:
    """Load what the trainings need and check that it fits; builds what they share.

    Raises:
        BadInput: before anything is trained, if something cannot be used.
    """
    warm = Warm()
    for dataset in planned.datasets:
        for chain in dataset.chains.values():
            check_run(chain.setup.config(chain.method), warm)


def verify(planned: Plan) -> int:
    """Check that what the results folder holds are the trainings of this plan.

    Returns:
        How many of them are done.

    Raises:
        BadInput: if some are others, such as those of other `--set`.
    """
    return sum(chain.verify() for dataset in planned.datasets for chain in dataset.chains.values())


def run(planned: Plan, executor: Executor, observer: Observer) -> dict[str, Any]:
    """Do what is not done yet; documents are written at the end, and when it is stopped.

    Returns:
        `results.json`, if Table 2 is among the experiments; else nothing.

    Raises:
        BadInput: if a folder of the results holds something else.
    """
    before = verify(planned)
    try:
        for dataset in planned.datasets:
            for name in dataset.references:
                data = dataset.setup.config(all_methods()[name]).data
                measure_reference(name, data, dataset.folder / "references" / name)
        drive([chain for dataset in planned.datasets for chain in dataset.chains.values()], executor, observer)
    finally:
        found = write(planned, measured_here=verify(planned) > before)
    return found


def drive(chains: Sequence[Chain], executor: Executor, observer: Observer) -> None:
    """Keep the executor's slots filled, methods side by side, until no chain has anything left."""
    running: dict[str, tuple[Chain, Job]] = {}
    while True:
        while len(running) < executor.slots and (found := _next(chains, running)) is not None:
            chain, job = running[found[1].key] = found
            observer.begins(chain.setup, job)
            executor.start(job)
        if not running:
            return
        done = executor.wait()
        chain, job = running.pop(done.key)
        observer.ended(chain.setup, job, done)


def _next(chains: Sequence[Chain], running: Mapping[str, tuple[Chain, Job]]) -> tuple[Chain, Job] | None:
    """A training of the chain that has the fewest under way."""

    def under_way(chain: Chain) -> int:
        return sum(chain is other for other, _ in running.values())

    for chain in sorted(chains, key=under_way):
        job = chain.ready(running)
        if job is not None:
            return chain, job
    return None


def complete(planned: Plan) -> bool:
    """Whether every final training has finished and was measured."""
    return all(chain.complete() for dataset in planned.datasets for chain in dataset.chains.values())


def write(planned: Plan, *, measured_here: bool) -> dict[str, Any]:
    """Write the documents of what is done: JSON, Markdown and pictures. Other datasets' results stay in them.

    Args:
        planned: the reproduction.
        measured_here: something was trained just now, so the documents are of this machine and day.

    Returns:
        `results.json`, if Table 2 is among the experiments; else nothing.
    """
    out, found = planned.out, dict[str, Any]()
    about = documents.read(out / "reproduction.json")
    about["datasets"] = about.get("datasets", {}) | {
        dataset.setup.name: documents.dataset_facts(dataset.setup) for dataset in planned.datasets
    }
    if measured_here or "scale" not in about:
        about |= documents.machine_facts(planned.scale)
    write_atomic(out / "reproduction.json", json.dumps(about, indent=2))
    for experiment in planned.experiments:
        file = out / ("results.json" if experiment.shown == "comparison" else f"{experiment.name}.json")
        kept = documents.read(file)
        for dataset in planned.datasets:
            kept[dataset.setup.name] = _found(planned, experiment, dataset)
        write_atomic(file, json.dumps(kept, indent=2))
        found = kept if experiment.shown == "comparison" else found
    documents.render(out)
    return found


def _found(planned: Plan, experiment: Experiment, dataset: DatasetPlan) -> Any:
    if experiment.shown == "comparison":
        # All methods, also those that an earlier call trained.
        return comparison(dataset.setup, list(all_methods().values()), dataset.folder)
    return figure(dataset.setup, experiment, dataset.figures.get(experiment.name, {}), dataset.folder)
