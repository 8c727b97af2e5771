"""Classification: a small residual network tells from an image whether something is the case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from grandrounds.data.case import Cohort, Split
from grandrounds.data.elements import Elements
from grandrounds.messages import CaseScore
from grandrounds.models.classifier import (
    CLASSIFIER,
    FEATURES,
    STEM,
    Classifier,
    ClassifierShape,
    build_classifier,
)
from grandrounds.models.norm import batch_norm_names
from grandrounds.seeds import seed_for
from grandrounds.tasks.binary import METRIC, BinaryTask, binary_summary
from grandrounds.tasks.checks import check_counts, check_shares, require
from grandrounds.tasks.findings import Finding, Images, Reading, check_findings, images_of
from grandrounds.tasks.staged import PART
from grandrounds.tasks.task import NO_GUESTS, Batch, Labels, Picture
from grandrounds.weights import Filter, among, starting_with


@dataclass(frozen=True)
class Classification:
    """Options of the classification task.

    `width` are the channels of the stem, which each of the `blocks` doubles. A slice shows a mask
    from `least_pixels` on. `positive_weight` makes positive cases count more in the loss;
    `specificity` is where the sensitivity is reported.
    """

    metric: ClassVar[str] = METRIC
    sizes: ClassVar[Mapping[str, Mapping[str, object]]] = {}

    kind: Literal["classification"] = "classification"
    width: int = 16
    blocks: int = 3
    norm: Literal["instance", "batch"] = "instance"
    dropout: float = 0.0
    flip: float = 0.5
    least_pixels: int = 1
    positive_weight: float = 1.0
    specificity: float = 0.9

    @property
    def has_statistics(self) -> bool:
        """Batch norm keeps running statistics, instance norm does not."""
        return self.norm == "batch"

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        """Refuse what no classifier can be made of or trained on. Raises `BadStudy`."""
        check_counts(self, {"width": 1, "blocks": 1, "least_pixels": 1})
        check_shares(self, ("dropout", "flip", "specificity"))
        require(
            self.positive_weight > 0,
            f"task.positive_weight is {self.positive_weight:g}; it must be above 0",
        )
        least = 2 ** (self.blocks + 1) + 1  # the last maps have two rows and columns or more
        require(
            min(elements.size) >= least,
            f"elements.size is {list(elements.size)}; with task.blocks = {self.blocks} "
            f"both numbers must be {least} or more",
        )
        check_findings(sites, elements)

    def bind(
        self, elements: Elements, sites: Labels, guests: Labels = NO_GUESTS
    ) -> "ClassificationTask":
        """Make a consortium's task; `sites` maps each, in roster order, to its task labels."""
        labels = {**sites, **guests}
        own = {site: tuple(map(Finding.parse, found)) for site, found in labels.items()}
        findings = sum((own[site] for site in sites), ())
        used = {contrast for finding in findings for contrast in finding.sources}
        contrasts = tuple(name for name in elements.contrasts if name in used)
        whole = {finding.target for finding in findings} <= set(elements.variables)
        return ClassificationTask(self, Reading(contrasts, self.least_pixels), own, whole)


@dataclass(frozen=True)
class ClassificationTask(BinaryTask):
    """Classifies slices; `whole` tells that the target is a variable, known of the patient."""

    options: Classification
    reading: Reading
    findings: Mapping[str, tuple[Finding, ...]]
    whole: bool

    @property
    def cases_at_once(self) -> int:
        """Score so many slices at a time."""
        return 64

    @property
    def shape(self) -> ClassifierShape:
        """Give the network's dimensions."""
        o = self.options
        return ClassifierShape(len(self.reading.contrasts), o.width, o.blocks, o.norm, o.dropout)

    def build(self, seed: int) -> Classifier:
        """Build the network; the same seed gives the same bits."""
        return build_classifier(self.shape, seed=seed_for(seed, "classifier"))

    def blank(self, size: tuple[int, int]) -> Batch:
        """Give a batch of one slice without content."""
        source = torch.zeros(1, len(self.reading.contrasts), *size)
        return {"source": source, "target": torch.zeros(1, 1)}

    def summary(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        """Summarise a site: means of the scores, AUC, balanced accuracy and a sensitivity.

        The slices of a patient are averaged to one case where the target is a variable; where it is
        a mask, each slice is a case.
        """
        return binary_summary(scores, whole=self.whole, specificity=self.options.specificity)

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Give the slice, (H, W) in [0, 1], in the first contrast that is looked at."""
        del prediction
        source_CHW = batch["source"][0].float()
        used_C = source_CHW.flatten(1).any(1)
        return {"source": source_CHW[used_C.int().argmax()].cpu().numpy()}

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        """Name the parameter groups; "classifier" makes the logit of the last block's maps."""
        prefixes = {"stem": f"{STEM}.", "features": FEATURES, "classifier": f"{CLASSIFIER}."}
        groups = {name: starting_with(f"{PART}.{prefix}") for name, prefix in prefixes.items()}
        last = f"{PART}.{FEATURES}{self.options.blocks - 1}."
        return groups | {
            "norm": among(batch_norm_names(model)),
            "head": groups["classifier"],
            "upper": starting_with(last, f"{PART}.{CLASSIFIER}."),
            "all": starting_with(f"{PART}."),
        }

    def training_examples(self, cohorts: Sequence[Cohort]) -> Images:
        """Give each training slice once; the task is drawn when one is used."""
        return self._images(cohorts, "train", each=False)

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: Split) -> Images:
        """Give each slice of a split once for each of its site's tasks that it can serve."""
        return self._images(cohorts, split, each=True)

    def _images(self, cohorts: Sequence[Cohort], split: Split, *, each: bool) -> Images:
        found = [images_of(c, split, self.findings[c.site], each=each) for c in cohorts]
        return Images(sum(found, ()), self.reading, self.options.flip)
