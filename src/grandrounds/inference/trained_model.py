"""The model of a finished run is loaded here as one site uses it."""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import nn

from grandrounds.core.errors import BadFolder, BadSite, BadStudy
from grandrounds.core.names import POOLED
from grandrounds.core.run_folder import ComparisonFolder, RunFolder, SiteFolder
from grandrounds.core.weights import Filter, Weights, digest
from grandrounds.data.acquisition import ScanProtocol
from grandrounds.data.profile import DataProfile, read_profile
from grandrounds.data.protocol import NO_PROTOCOLS, Protocols
from grandrounds.runs.folder import TrainedRun
from grandrounds.study.study import Study
from grandrounds.tasks import Synthesis
from grandrounds.tasks.task import Task


@dataclass(frozen=True)
class TrainedModel:
    """The tested model of a run as one site uses it: float32, on the CPU, in evaluation mode.

    `protocols` say how the site usually scans each contrast, where its network reads that.
    `folder` is the run's, and `holder` whose model it is there: the site's, or that of pooled data.
    """

    study: Study
    task: Task
    site: str
    round: int
    model: nn.Module
    protocols: Protocols = field(default_factory=dict[str, ScanProtocol])
    folder: Path = Path()
    holder: str = ""

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the model's weights."""
        return digest(self.model.state_dict())

    @cached_property
    def profile(self) -> DataProfile | None:
        """Return what the training images looked like; None where the run does not have it.

        Raises `BadFolder` where it is damaged.
        """
        return read_profile(self.site_folder.profile)

    @property
    def site_folder(self) -> SiteFolder:
        return RunFolder(self.folder).site(self.holder)

    def with_weights(self, weights: Weights, round: int) -> "TrainedModel":
        """Return the model with other weights of the same network."""
        model = deepcopy(self.model)
        model.load_state_dict(weights, strict=False)
        return replace(self, model=model, round=round)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels of the site's tasks."""
        return self.study.roster[self.site]

    def asked(self, label: str) -> str:
        """Return the site's label that equals this one but for spaces. Raises `BadSite`."""
        found = [own for own in self.labels if own.replace(" ", "") == label.replace(" ", "")]
        if not found:
            raise BadSite(
                f"site '{self.site}' never trained the task '{label}'; it trained "
                f"{', '.join(self.labels)}"
            )
        return found[0]


def load_trained_model(folder: Path, site: str) -> TrainedModel:
    """Load the model that a site uses: the shared part with its private, personal or tuned part.

    Raises `BadFolder` where no finished run lies there or a part of the model is missing, `BadSite`
    for a site that did not train, `BadStudy` where each prediction is a random draw.
    """
    run = _run_in(folder)
    study = run.study
    _check_trained(study, site)
    _check_repeatable(study)
    task = study.make_task()
    model = task.build(study.seed).eval()
    holder = POOLED if POOLED in run.models else site
    weights = run.model_weights(holder)
    _check_whole(folder, site, model, weights, task.uses(site))
    model.load_state_dict(weights, strict=False)  # the critics of other sites' tasks are missing
    protocols = run.protocols(site) if study.reads_protocols else NO_PROTOCOLS
    round = run.score_label.round
    return TrainedModel(study, task, site, round, model, protocols, folder, holder)


def _run_in(folder: Path) -> TrainedRun:
    comparison = ComparisonFolder(folder)
    if comparison.exists:
        first = comparison.trained()[0].path
        raise BadFolder(f"{folder}: holds a comparison; give one of its runs, such as {first}")
    return TrainedRun(folder)


def _check_trained(study: Study, site: str) -> None:
    if site not in study.trainers:
        raise BadSite(
            f"study '{study.name}': no site '{site}' trained; those that did are "
            f"{', '.join(study.trainers)}"
        )


def _check_repeatable(study: Study) -> None:
    options = study.task
    if not isinstance(options, Synthesis):
        return
    if options.dropout_at_evaluation or options.crop != "none":
        raise BadStudy(
            f"study '{study.name}': task.dropout_at_evaluation and a task.crop other than \"none\" "
            "make each prediction a random draw; only a model trained without them can be used "
            "outside"
        )
    if options.statistics_at_evaluation == "image" and options.has_statistics:
        raise BadStudy(
            f"study '{study.name}': the model was tested with "
            'task.statistics_at_evaluation = "image", and an exported model has no such mode; '
            "only a model trained without it can be used outside"
        )


def _check_whole(folder: Path, site: str, model: nn.Module, weights: Weights, uses: Filter) -> None:
    missing = [name for name in model.state_dict() if uses(name) and name not in weights]
    if missing:
        raise BadFolder(
            f"{folder}: {len(missing)} tensors of the model of site '{site}' are missing, first "
            f"'{missing[0]}'; model/shared.safetensors and sites/{site}/private.safetensors must "
            "lie there"
        )
