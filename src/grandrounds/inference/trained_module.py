"""A trained model is a module of PyTorch, for whoever goes on with it in Python."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from grandrounds.inference.missing import Filled, fill_missing
from grandrounds.inference.predictor import only_label, predictor_for, predicts_slices
from grandrounds.inference.synthesize import SynthesisOptions, Synthetic, synthesize_volume
from grandrounds.inference.trained_model import TrainedModel, load_trained_model
from grandrounds.inference.uncertainty import SpreadKind
from grandrounds.models.layers import StagedNetwork
from grandrounds.tasks.synthesis.examples import ContrastPair
from grandrounds.tasks.synthesis.networks import Translator
from grandrounds.tasks.task import Batch


class TrainedModule(nn.Module):
    """The tested model of a run as one site uses it: float32, on the CPU, in evaluation mode.

    `network` is the network itself, without what the task adds to it.
    """

    network: nn.Module

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.trained = trained
        self.network = _network_of(trained.model)
        self.eval()

    @staticmethod
    def load(folder: Path, site: str) -> "TrainedModule":
        """Load a site's model from a run's folder. Raises as `load_trained_model` does."""
        return TrainedModule(load_trained_model(folder, site))

    def forward(self, images: Tensor) -> Tensor:
        """Return the prediction of a tensor, as `predict` does."""
        return self.predict(images)

    @torch.no_grad()
    def predict(self, batch: Tensor | Mapping[str, Tensor], task: str = "") -> Tensor:
        """Return the task's prediction, without gradients.

        A tensor is the input: images (B, C, H, W) in [0, 1] of the contrasts of the site's task, or
        of `task`, one of several that the site has. A mapping is a batch as the task makes it.
        Raises `BadInput` where the task must be named.
        """
        trained = self.trained
        if not isinstance(batch, Tensor):
            return trained.task.predict(trained.model, dict(batch))
        if predicts_slices(trained.task):
            return predictor_for(trained, task).network(batch)
        return trained.task.predict(trained.model, self._batch_of(batch))

    def synthesize(
        self,
        source: str | Path,
        out: str | Path,
        task: str = "",
        *,
        brain: str | Path | None = None,
        uncertainty: str | Path | None = None,
        uncertainty_by: SpreadKind = "views",
        anyway: bool = False,
        dicom: bool = False,
    ) -> Synthetic:
        """Make a contrast that was not measured, as the command `synthesize` does.

        `task`, such as "T1w->T2w", may be left out for a site with one task. Raises `BadInput`.
        """
        options = SynthesisOptions(
            Path(brain) if brain else None,
            Path(uncertainty) if uncertainty else None,
            uncertainty_by,
            anyway,
            dicom,
        )
        pair = ContrastPair.parse(self.trained.asked(task) if task else only_label(self.trained))
        return synthesize_volume(self.trained, pair, Path(source), Path(out), options)

    def synthesize_missing(
        self, cohort: str | Path, out: str | Path, *, anyway: bool = False
    ) -> Filled:
        """Make all that a cohort's sessions lack, as `synthesize --missing` does.

        Raises `BadInput`; a volume that is refused costs itself alone.
        """
        return fill_missing(self.trained, Path(cohort), Path(out), anyway=anyway)

    def _batch_of(self, images: Tensor) -> Batch:
        """Return a batch with these images where the task's network looks for them."""
        names = self.trained.task.blank(self.trained.study.elements.size)
        return {"image" if "image" in names else "source": images}


def _network_of(model: nn.Module) -> nn.Module:
    match model:
        case Translator():
            return model.generator
        case StagedNetwork():
            return model
        case _:
            found = getattr(model, "network", model)
            assert isinstance(found, nn.Module)
            return found
