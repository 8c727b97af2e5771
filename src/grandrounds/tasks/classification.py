"""A small residual network classifies an image as positive or negative."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import isnan
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from grandrounds.core.errors import BadSite
from grandrounds.core.messages import CaseScore
from grandrounds.core.seeds import seed_for
from grandrounds.core.sentence import Name, phrase
from grandrounds.core.weights import Filter, name_in, name_starts
from grandrounds.data.availability import serves
from grandrounds.data.cohort import Cohort, Session, SplitName
from grandrounds.data.elements import Elements
from grandrounds.models.classifiers import (
    CLASSIFIER,
    FEATURES,
    STEM,
    ClassifierShape,
    build_classifier,
)
from grandrounds.models.imported import Imported
from grandrounds.models.norms import batch_norm_names
from grandrounds.tasks.binary import METRIC, BinaryTask, binary_summary
from grandrounds.tasks.outside import (
    Known,
    Outside,
    build_loss,
    build_outside,
    groups_from_outside,
    loss_from_outside,
)
from grandrounds.tasks.task import (
    NO_SITES,
    PART,
    Batch,
    Case,
    Labels,
    Picture,
    Slice,
    Visit,
    check_contrasts,
    check_shares,
    draw_index,
    list_slices,
    list_visits,
    require,
    require_counts,
)

EXAMPLE = 'write it as "SOURCE+SOURCE->TARGET", for example "FLAIR->lesion"'


@dataclass(frozen=True)
class ClassificationLabel:
    """One classification task: the contrasts that the network reads and the target it predicts."""

    sources: tuple[str, ...]
    target: str

    @staticmethod
    def parse(label: str) -> "ClassificationLabel":
        """Read a label such as "T1w+FLAIR->lesion". Raises `ValueError`."""
        sources, target = label.split("->")
        return ClassificationLabel(
            tuple(word.strip() for word in sources.split("+")), target.strip()
        )

    @property
    def label(self) -> str:
        return f"{'+'.join(self.sources)}->{self.target}"


def check_labels(sites: Mapping[str, Sequence[str]], elements: Elements) -> None:
    """Refuse labels that are not of classification, or differ in target. Raises `BadStudy`."""
    for site, labels in sites.items():
        for label in labels:
            _check_label(f"site '{site}', task '{label}'", label, elements)
    targets = {
        ClassificationLabel.parse(label).target for labels in sites.values() for label in labels
    }
    require(
        len(targets) <= 1,
        f"the sites' tasks have the targets {', '.join(sorted(targets))}; "
        "a classifier has one, the same for all",
    )


def _check_label(where: str, label: str, elements: Elements) -> None:
    require(label.count("->") == 1, f"{where}: {EXAMPLE}")
    finding = ClassificationLabel.parse(label)
    check_contrasts(where, finding.sources, elements)
    require(
        len(set(finding.sources)) == len(finding.sources), f"{where}: a name stands there twice"
    )
    named = finding.target and finding.target not in elements.contrasts
    require(bool(named) and "+" not in finding.target, f"{where}: it has no one target; {EXAMPLE}")


@dataclass(frozen=True)
class LabelReader:
    """How a slice becomes an example: the network's contrasts, and when its label is 1.

    A mask counts as 1 where it has `least_pixels` in the slice, a variable where its value is 1.
    """

    contrasts: tuple[str, ...]
    least_pixels: int

    def source(self, session: Session, index: int, finding: ClassificationLabel) -> Tensor:
        """Return a slice, (C, H, W) in [0, 1]; a contrast that the label does not name is 0."""
        _, _, height, width = session.images.shape
        source = np.zeros((len(self.contrasts), height, width), np.float32)
        for name in finding.sources:
            source[self.contrasts.index(name)] = session.image(index, name)
        return torch.from_numpy(source)  # pyright: ignore[reportUnknownMemberType]

    def label(self, session: Session, index: int, finding: ClassificationLabel) -> float:
        """Return 1 where the slice is positive, else 0."""
        if finding.target in session.values:
            return session.values[finding.target]
        pixels = np.count_nonzero(session.masks[finding.target][index])
        return float(pixels >= self.least_pixels)


@dataclass(frozen=True)
class LabelledImages:
    """Examples of classification, flipped left to right with probability `flip` in training.

    A generator draws one of an image's findings where there are several.
    """

    images: tuple[Slice[ClassificationLabel], ...]
    reading: LabelReader
    flip: float

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Collate images: source (B, C, H, W) in [0, 1] and target (B, 1), 0 or 1."""
        chosen = [self.images[index] for index in indices]
        choices = [image.visit.labels for image in chosen]
        findings = [labels[draw_index(len(labels), generator)] for labels in choices]
        pairs = list(zip(chosen, findings, strict=True))
        sources = [self.reading.source(i.visit.session, i.index, f) for i, f in pairs]
        labels = [self.reading.label(i.visit.session, i.index, f) for i, f in pairs]
        return {
            "source": torch.stack([self._flip(source, generator) for source in sources]),
            "target": torch.tensor(labels)[:, None],
        }

    def _flip(self, source_CHW: Tensor, generator: Generator | None) -> Tensor:
        if generator is None or float(torch.rand((), generator=generator)) >= self.flip:
            return source_CHW
        return source_CHW.flip(-1)

    def case(self, index: int) -> Case:
        return self.images[index].case()


def _is_known(site: str, session: Session, finding: ClassificationLabel) -> bool:
    """Tell whether a session has a finding's data. Raises `BadSite` for a variable not 0 or 1."""
    value = session.values.get(finding.target, 0.0)
    known = serves(session, finding.label) and not isnan(value)
    if known and value not in (0.0, 1.0):
        raise BadSite(
            f"site '{site}': a patient's {finding.target} is {value:g}; "
            "classification needs 0 or 1.",
            safe=phrase(
                "a patient's {target} is neither 0 nor 1, which classification needs",
                target=Name(finding.target),
            ),
        )
    return known


@dataclass(frozen=True)
class Classification(Outside):
    """Options of the classification task.

    `width` are the channels of the stem, which each of the `blocks` doubles. A slice shows a mask
    from `least_pixels` on. `positive_weight` makes positive cases count more in the loss;
    `specificity` is where the sensitivity is reported. `network` and `loss` take the place of the
    task's own.
    """

    metric: ClassVar[str] = METRIC
    sizes: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    replaced: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "network": ("width", "blocks", "norm", "dropout"),
        "loss": ("positive_weight",),
    }

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
        return self.norm == "batch"

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        """Refuse options that no classifier can be built or trained with. Raises `BadStudy`."""
        require_counts(self, {"width": 1, "blocks": 1, "least_pixels": 1})
        check_shares(self, ("dropout", "flip", "specificity"))
        require(
            self.positive_weight > 0,
            f"task.positive_weight is {self.positive_weight:g}; it must be above 0",
        )
        self.check_outside()
        least = 2 ** (self.blocks + 1) + 1  # the last maps have two rows and columns or more
        require(
            bool(self.network) or min(elements.size) >= least,
            f"elements.size is {list(elements.size)}; with task.blocks = {self.blocks} "
            f"both numbers must be {least} or more",
        )
        check_labels(sites, elements)

    def bind(
        self, elements: Elements, sites: Labels, new_sites: Labels = NO_SITES
    ) -> "ClassificationTask":
        """Make a consortium's task; `sites` maps each site, in roster order, to its task labels."""
        labels = {**sites, **new_sites}
        parsed = {
            site: tuple(map(ClassificationLabel.parse, names)) for site, names in labels.items()
        }
        findings = sum((parsed[site] for site in sites), ())
        used = {contrast for finding in findings for contrast in finding.sources}
        contrasts = tuple(name for name in elements.contrasts if name in used)
        whole = {finding.target for finding in findings} <= set(elements.variables)
        reader = LabelReader(contrasts, self.least_pixels)
        return ClassificationTask(self, reader, parsed, whole, tuple(elements.size))


@dataclass(frozen=True)
class ClassificationTask(BinaryTask):
    """A task that classifies slices; with `whole` the target is a variable of the patient."""

    options: Classification
    reading: LabelReader
    findings: Mapping[str, tuple[ClassificationLabel, ...]]
    whole: bool
    size: tuple[int, ...] = ()  # of a slice

    @property
    def cases_at_once(self) -> int:
        return 64

    @property
    def shape(self) -> ClassifierShape:
        o = self.options
        return ClassifierShape(len(self.reading.contrasts), o.width, o.blocks, o.norm, o.dropout)

    @property
    def known(self) -> Known:
        return Known(2, len(self.reading.contrasts), 1, self.size)

    @property
    def outside(self) -> Outside:
        return self.options

    def build(self, seed: int) -> nn.Module:
        if self.options.network:
            return build_outside(self.options, self.known, seed=seed_for(seed, "network"))
        return build_classifier(self.shape, seed=seed_for(seed, "classifier"))

    def uses(self, site: str) -> Filter:
        """Return the filter of all of the network that is not fixed."""
        uses, changes = super().uses(site), self.options.changes
        return lambda name: uses(name) and changes(name)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of logits, or the study's loss, of all cases together."""
        return self.distance(output, batch) if self._from_outside else super().loss(output, batch)

    @cached_property
    def _from_outside(self) -> nn.Module | None:
        return build_loss(self.options)

    def distance(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the study's loss from outside."""
        assert self._from_outside is not None, "only a study with a loss from outside asks for it"
        return loss_from_outside(self.options, self._from_outside, output, batch["target"])

    def blank(self, size: tuple[int, int]) -> Batch:
        """Return a batch of one slice without content."""
        source = torch.zeros(1, len(self.reading.contrasts), *size)
        return {"source": source, "target": torch.zeros(1, 1)}

    def summary(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        """Summarise a site: means of the scores, AUC, balanced accuracy and a sensitivity.

        The slices of a patient are averaged to one case where the target is a variable; where it is
        a mask, each slice is a case.
        """
        return binary_summary(scores, whole=self.whole, specificity=self.options.specificity)

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Return the slice, (H, W) in [0, 1], in the first contrast that the label names."""
        del prediction
        source_CHW = batch["source"][0].float()
        used_C = source_CHW.flatten(1).any(1)
        return {"source": source_CHW[used_C.int().argmax()].cpu().numpy()}

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        """Return the parameter groups; "classifier" turns the last block's maps into the logit."""
        if isinstance(model, Imported):
            return groups_from_outside(self.options, model)
        prefixes = {"stem": f"{STEM}.", "features": FEATURES, "classifier": f"{CLASSIFIER}."}
        groups = {name: name_starts(f"{PART}.{prefix}") for name, prefix in prefixes.items()}
        last = f"{PART}.{FEATURES}{self.options.blocks - 1}."
        return groups | {
            "norm": name_in(batch_norm_names(model)),
            "head": groups["classifier"],
            "upper": name_starts(last, f"{PART}.{CLASSIFIER}."),
            "all": name_starts(f"{PART}."),
        }

    def training_examples(self, cohorts: Sequence[Cohort]) -> LabelledImages:
        """Return each training slice once; its task is drawn when it is used."""
        return self._images(cohorts, "train", each=False)

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: SplitName) -> LabelledImages:
        """Return each slice of a split, once for each of its site's tasks that it can serve."""
        return self._images(cohorts, split, each=True)

    def _images(self, cohorts: Sequence[Cohort], split: SplitName, *, each: bool) -> LabelledImages:
        visits = sum((self._visits(cohort, split, each=each) for cohort in cohorts), ())
        return LabelledImages(list_slices(visits), self.reading, self.options.flip)

    def _visits(
        self, cohort: Cohort, split: SplitName, *, each: bool
    ) -> tuple[Visit[ClassificationLabel], ...]:
        known = partial(_is_known, cohort.site)
        return list_visits(cohort, split, self.findings[cohort.site], each=each, served=known)
