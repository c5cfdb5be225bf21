"""What a study is, as read from YAML. The field descriptions are the reference documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from darec_search.card import architecture_text
from darec_search.credentials import holds_secret, redact
from trainer.config import (
    DataConfig,
    ExecutionConfig,
    Fraction,
    LossConfig,
    ModelConfig,
    NegativesConfig,
    OptimizationConfig,
    Positive,
    RunConfig,
    Section,
    fits_prior,
)
from trainer.errors import BadInput
from trainer.storage import absolute, copy_of, is_url, local_path, without_credentials
from trainer.training.attempts import Held


class PrepareConfig(Section):
    """How the dataset folder is made when it is not there yet (`darec-search data prepare`)."""

    format: str = Field(description="Source format, as in `data prepare --format`.")
    source: str | None = Field(None, description="Folder or file to read; not needed for `synthetic`.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the format, as on the command line.")

    @field_validator("options")
    @classmethod
    def _no_names_of_ours(cls, options: dict[str, Any]) -> dict[str, Any]:
        return _without(options, ("format", "source", "out"), "`data.path` and `data.prepare` say it")


class StudyDataConfig(Section):
    """The dataset and how much of it a trial sees."""

    path: str = Field(description="Dataset folder, or its URL.")
    prepare: PrepareConfig | None = Field(
        None,
        description="Makes the folder when it is absent, so that one file goes from raw data to an export.",
    )
    search_fraction: Fraction = Field(1.0, description="b: fraction of the users that a trial trains on (Data_BO).")
    validation_users: Literal["trained", "all"] = Field(
        "trained",
        description="Whose validation items a trial is judged by: the users it trains on, or all.",
    )
    exclude_seen: bool = Field(
        False,
        description="Whether evaluations leave out the items of a user's history; a held-out item among them stays.",
    )
    max_items: Positive = Field(50, description="Newest items of a history that enter a stream.")
    max_item_tokens: Positive = Field(30, description="Tokens of an item sentence that are kept.")

    _public = field_validator("path")(without_credentials)


class WeightLevels(Section):
    """Levels of the loss weights that are searched; one level fixes a weight, none leaves `losses` to say it."""

    align: tuple[float, ...] = Field((), description="Levels of λ1, rising.")
    contrastive: tuple[float, ...] = Field((), description="Levels of λ2, rising.")
    collaborative: tuple[float, ...] = Field((), description="Levels of λ3, rising.")

    @field_validator("align", "contrastive", "collaborative")
    @classmethod
    def _rising(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if any(level < 0 for level in levels) or list(levels) != sorted(set(levels)):
            raise ValueError("levels must be non-negative, each once, in rising order")
        return levels

    def searched(self) -> dict[str, tuple[float, ...]]:
        """The weights that have levels."""
        return {name: levels for name, levels in self.model_dump().items() if levels}


class CheaperTrial(Section):
    """A fidelity below that of the search's other trials."""

    epochs: Positive | None = Field(None, description="Epochs; as other trials' when absent.")
    users_fraction: Fraction | None = Field(
        None, description="Fraction of all users; `data.search_fraction` when absent."
    )


class SearchConfig(Section):
    """The search itself."""

    strategy: Literal["staged", "joint"] = Field(
        "staged",
        description="`staged`: λ at `fixed_architecture`, then bits at the best λ (the paper). "
        "`joint`: bits and λ together.",
    )
    sampler: str = Field(
        "ax_bayes",
        description="`ax_bayes`, `prob_reparam` (the paper's Algorithm 1), `random`, `optuna_tpe`, `optuna_gp`, "
        "`optuna_cmaes` or `grid` (small spaces).",
    )
    sampler_options: dict[str, Any] = Field(default_factory=dict, description="Keyword options of the sampler.")
    objective: Literal["mrr", "log_likelihood"] = Field(
        "mrr",
        description="What the search maximises: validation MRR, or log-likelihood, which orders architectures as MRR "
        "does and is calmer on some data (docs/landscape.md). Re-tests and reports are in MRR either way.",
    )
    trials: Positive = Field(
        30,
        description="Trials that the sampler proposes; those for λ come on top, and what early stopping saves pays for "
        "more.",
    )
    epochs: Positive | None = Field(None, description="Epochs of a trial; those of `optimization` when absent.")
    weights: WeightLevels = Field(default_factory=lambda: WeightLevels(), description="The λ that are searched.")
    fixed_architecture: str = Field(
        "serial",
        description="Architecture at which a `staged` search looks for λ; as text, or the path of a card or export.",
    )
    weight_search: Literal["grid", "one_at_a_time"] = Field(
        "grid",
        description="λ in a `staged` search. `grid`: every combination of levels. `one_at_a_time`: for each weight in "
        "turn its levels, the others at their best so far, at first as in `losses` (or at their middle level).",
    )
    weight_repeats: Positive = Field(
        1,
        description="Seeds of each λ setting of a `staged` search; their mean decides. With 1, the best of many noisy "
        "trials is partly luck.",
    )
    weights_again: bool = Field(
        False,
        description="A `staged` search ends with another search for λ at the best architecture. All its trials count "
        "in the choice of candidates.",
    )
    early_stopping: Literal["none", "curve", "median", "foretold"] = Field(
        "none",
        description="Which trials end before their last epoch: `curve`: those whose curve has made it unlikely that "
        "they become the best; `median`: those below the median of the finished ones at the same epoch; `foretold`: "
        "those of `curve`, and those whose curve tells how they would end. The sampler is told the value that the "
        "curve foretells, with its standard error.",
    )
    fidelities: tuple[CheaperTrial, ...] = Field(
        (),
        description="Cheaper trials that the sampler may choose, of fewer epochs or users; it learns how far they "
        "foretell whole ones (`ax_bayes`). A cheaper trial counts among `trials` by its epochs times users.",
    )
    warm_start: tuple[str, ...] = Field(
        (),
        description="Folders of old studies, cards and exports to start from. Their trials of the same task count as "
        "results, the others as prior knowledge, believed in as far as it predicts the new results (`ax_bayes`).",
    )
    ahead: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Trials proposed ahead of a free lane, so that it never waits for the sampler; every proposal then "
        "knows so many results less.",
    )

    @field_validator("fixed_architecture")
    @classmethod
    def _of_a_card(cls, text: str) -> str:
        return architecture_text(text)

    @field_validator("sampler_options")
    @classmethod
    def _no_names_of_ours(cls, options: dict[str, Any]) -> dict[str, Any]:
        return _without(options, ("name", "space", "seed"), "the study says it")

    @field_validator("weight_search", "weight_repeats", "weights_again")
    @classmethod
    def _of_a_staged_search(cls, value: str | int | bool, info: ValidationInfo) -> str | int | bool:
        name = info.field_name or ""
        if info.data.get("strategy") == "joint" and value != cls.model_fields[name].default:
            raise ValueError(f"{name} is for `strategy: staged`; a joint search has no trials for λ alone")
        return value


class ResourcesConfig(Section):
    """Where trials run."""

    runner: Literal["ray", "local"] = Field("ray", description="`local` trains in this process, one at a time.")
    address: str | None = Field(
        None,
        description="Ray cluster to join (`auto` or host:port); RAY_ADDRESS when absent, else a Ray of its own.",
    )
    lanes: Positive = Field(2, description="Trials at a time, each on a lane: warm Ray Train workers.")
    cpus_per_lane: Annotated[float, Field(gt=0)] = Field(1, description="CPUs of a lane; also its torch threads.")
    gpus_per_lane: Annotated[float, Field(ge=0)] = Field(0, description="GPUs, or a share of one, of a lane.")
    workers_per_lane: Positive = Field(
        1,
        description="Workers that train each trial together, on even parts of the lane's CPUs and GPUs: for larger "
        "batches, or with `execution.shard_backbone` for a backbone too large for one GPU.",
    )
    idle_s: Annotated[float, Field(ge=0)] = Field(
        30,
        description="Seconds without a trial after which a lane gives its CPUs and GPUs back; it comes again when a "
        "trial waits for it.",
    )
    autoscaling: bool = Field(
        False,
        description="The cluster gets more nodes when work waits for them: lanes and final run wait instead of being "
        "refused, or fewer, where there is no room yet.",
    )
    trial_time_limit_s: Annotated[float, Field(gt=0)] = Field(
        24 * 3600, description="A trial that runs longer is ended and recorded as timed_out."
    )
    attempts: Positive = Field(3, description="Workers that a trial may lose before it is recorded as failed.")

    @field_validator("workers_per_lane")
    @classmethod
    def _with_enough_for_each(cls, workers: int, info: ValidationInfo) -> int:
        if workers > 1 and info.data.get("runner") == "local":
            raise ValueError("the local runner trains in one process; choose `runner: ray`, or leave this out")
        gpus = info.data.get("gpus_per_lane", 0)
        if workers > 1 and gpus % workers:
            raise ValueError(
                f"the workers of a trial need whole GPUs of their own, and {gpus:g} cannot be dealt out so; set "
                "gpus_per_lane to a multiple of workers_per_lane"
            )
        return workers

    @property
    def held(self) -> Held:
        """What a trial holds over all its workers."""
        return Held(self.cpus_per_lane, self.gpus_per_lane)

    @property
    def each(self) -> Held:
        """What each worker of a lane holds."""
        return Held(self.cpus_per_lane / self.workers_per_lane, self.gpus_per_lane / self.workers_per_lane)

    @property
    def slots(self) -> int:
        """Trials at a time, as asked for."""
        return self.lanes if self.runner == "ray" else 1


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = Field(True, description="Log to MLflow.")
    uri: str | None = Field(
        None,
        description="Tracking URI; `mlflow.db` (SQLite) inside the output folder when absent. `${NAME}` in it is an "
        "environment variable, read when it is used: the way to give a password, which cannot stand here itself.",
    )
    experiment: str | None = Field(None, description="MLflow experiment; the study's name when absent.")
    registered_model: str | None = Field(None, description="Registered model; the study's name when absent.")
    system_metrics: bool = Field(
        False, description="Sample the CPU, memory and GPU of every training and show them in MLflow."
    )

    @field_validator("uri")
    @classmethod
    def _without_secrets(cls, uri: str | None) -> str | None:
        if uri is not None and holds_secret(uri):
            raise ValueError(
                "a password would stand in the study folder; write ${NAME} in its place and export it as the "
                "environment variable NAME"
            )
        return uri


class PromotionConfig(Section):
    """From the search's best points to a model."""

    candidates: Positive = Field(
        3,
        description="Designs of the search that are tested again: in turn what the sampler recommends and what scored "
        "best.",
    )
    arms: tuple[str, ...] = Field(
        (),
        description="Further architectures that are tested again, such as `SPS-PPS`, or paths of cards or exports, at "
        "the best candidate's λ.",
    )
    repeats: Positive = Field(2, description="Fresh seeds per arm on average, where `budget` does not say it.")
    budget: Positive | None = Field(
        None,
        description="Re-test trainings at most; each arm gets one in any case. `repeats` for each arm when absent. Bad "
        "arms get few, good ones many.",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        0.9, description="The re-tests end early once an arm is the best with this probability."
    )
    epochs: Positive | None = Field(None, description="Epochs of the final run; those of `optimization` if absent.")
    prior: bool = Field(
        True,
        description="The final model also has the prior from counts (`model.prior`), without which the search tells "
        "architectures apart. Of no effect where the searched model has one, or `losses.sampled_items`.",
    )
    num_workers: Positive = Field(1, description="Ray Train workers of the final run.")
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(1, description="CPUs of each.")
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(0, description="GPUs of each.")

    @field_validator("arms")
    @classmethod
    def _of_cards(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(architecture_text(text) for text in arms)

    @property
    def most_arms(self) -> int:
        """Designs that are tested again at most, with three fixed arms and none that a caller brings."""
        return self.candidates + len(self.arms) + 3

    @property
    def most_retests(self) -> int:
        """Re-test trainings at most."""
        return max(self.most_arms, self.budget or self.repeats * self.most_arms)


class BudgetConfig(Section):
    """What a study may spend: hours that its trainings hold GPUs, or CPUs where lanes have no GPU."""

    hours: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="GPU-hours of all trainings, lost attempts included; CPU-hours where `resources.gpus_per_lane` is "
        "0. The search and then the re-tests end in time for what has to follow. No limit when absent.",
    )
    promotion_share: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Part of `hours` that the search leaves to re-tests and trainings on all users; what they make of "
        "the whole plan when absent. Never less than the least they are expected to need.",
    )
    price_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Price of one such hour; all figures are then in money too."
    )
    currency: str = Field("", max_length=8, description="Label of the price, such as EUR.")


class StudyConfig(Section):
    """A study: search, promotion and export."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(description="Name of the study.")
    output: str | None = Field(
        None, description="Study folder, or its URL (`s3://…`, `gs://…`); `runs/<name>` when absent."
    )
    seed: int = Field(0, description="Seed of the search and of its trials.")
    data: StudyDataConfig = Field(description="The dataset.")
    model: ModelConfig = Field(default_factory=lambda: ModelConfig(), description="The model under search.")
    losses: LossConfig = Field(default_factory=lambda: LossConfig(), description="Losses that are not searched.")
    negatives: NegativesConfig = Field(default_factory=lambda: NegativesConfig(), description="Hard negatives.")
    optimization: OptimizationConfig = Field(
        default_factory=lambda: OptimizationConfig(), description="Optimiser and schedule."
    )
    execution: ExecutionConfig = Field(
        default_factory=lambda: ExecutionConfig(), description="How every training is computed."
    )
    cache: str = Field(
        "runs/cache", description="Folder shared by all trials, or its URL: tokens, negatives, backbones."
    )
    search: SearchConfig = Field(default_factory=lambda: SearchConfig(), description="The search.")
    resources: ResourcesConfig = Field(default_factory=lambda: ResourcesConfig(), description="Where trials run.")
    tracking: TrackingConfig = Field(default_factory=lambda: TrackingConfig(), description="MLflow.")
    promotion: PromotionConfig = Field(default_factory=lambda: PromotionConfig(), description="The final run.")
    budget: BudgetConfig = Field(default_factory=lambda: BudgetConfig(), description="What it may spend.")

    _fits = field_validator("losses")(fits_prior)

    @field_validator("output", "cache")
    @classmethod
    def _without_credentials(cls, location: str | None) -> str | None:
        return None if location is None else without_credentials(location)

    @property
    def location(self) -> str:
        """The study folder or its URL."""
        return (self.output or f"runs/{self.name}").rstrip("/")

    @property
    def url(self) -> str | None:
        """URL of the study folder, if it is on shared storage."""
        return self.location if is_url(self.location) else None

    @property
    def folder(self) -> Path:
        """The study folder, or this machine's copy of the one at the URL."""
        return copy_of(self.url, "studies") if self.url else local_path(self.location)

    @property
    def adds_prior(self) -> bool:
        """Whether the final model has a prior from counts that the searched one has not (`promotion.prior`)."""
        return self.promotion.prior and self.model.prior is None and self.losses.sampled_items is None

    def run_config(
        self,
        architecture: str,
        weights: Mapping[str, float],
        seed: int,
        *,
        users_fraction: float,
        epochs: int,
    ) -> RunConfig:
        """The training run of one design. Weights that are not named keep the value in `losses`."""
        return RunConfig(
            data=DataConfig(
                path=absolute(self.data.path),
                users_fraction=users_fraction,
                subset_seed=self.seed,
                validation_users=self.data.validation_users,
                exclude_seen=self.data.exclude_seen,
                max_items=self.data.max_items,
                max_item_tokens=self.data.max_item_tokens,
            ),
            model=self.model.model_copy(update={"architecture": architecture}),
            losses=self.losses.model_copy(update=dict(weights)),
            negatives=self.negatives,
            optimization=self.optimization.model_copy(update={"epochs": epochs}),
            seed=seed,
            execution=self.execution,
            cache=absolute(self.cache),
            system_metrics=self.tracking.system_metrics,
        )


def _without(options: dict[str, Any], names: Sequence[str], why: str) -> dict[str, Any]:
    taken = [name for name in names if name in options]
    if taken:
        raise ValueError(f"{', '.join(taken)} cannot be given here: {why}")
    return options


def explain(error: ValidationError, where: str) -> str:
    """All problems of a config in one text, each with its field's path."""
    return in_one_text(problem_lines(error), where)


def in_one_text(lines: Sequence[str], where: str) -> str:
    """Problems of a file, one a line."""
    return f"{where}: {len(lines)} problem{'s' * (len(lines) != 1)}\n  " + "\n  ".join(lines)


def problem_lines(error: ValidationError, section: str = "") -> list[str]:
    """The problems of a config, each with its field's path, which starts with `section`."""
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in (section, *problem["loc"]) if part != "") or "(top level)"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown field; check its spelling and its section"
        elif problem["type"] != "missing":
            message += f", got {redact(repr(problem['input']))}"
        lines.append(f"{path}: {message}")
    return lines


def apply_overrides(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b=c` overrides (values are YAML) to a document in place and return it.

    Raises:
        BadInput: if an override has no `=` or goes through a value that is no section.
    """
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise BadInput(f"--set {override!r}: write it as section.field=value")
        *sections, name = path.split(".")
        target = document
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise BadInput(f"--set {override!r}: {section!r} is a value, not a section")
        try:
            target[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise BadInput(f"--set {override!r}: the value is not readable as YAML") from error
    return document


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping.

    Raises:
        BadInput: if it cannot be read or is none.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(document, dict):
        raise BadInput(f"{path}: must hold `field: value` lines at its top level")
    return document


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read, override and validate a study file.

    Raises:
        BadInput: with every problem of the file at once.
    """
    document = apply_overrides(read_yaml(path), overrides)
    try:
        return StudyConfig.model_validate(document)
    except ValidationError as error:
        raise BadInput(explain(error, str(path))) from error
