"""How far predictions of one slice differ, over draws of dropout, models or views of the input.

It is a standard deviation on the image's own scale. It is no probability and no error bar: what all
predictions have wrong alike, it does not show.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadFolder, BadInput, BadStudy
from grandrounds.core.run_folder import RunFolder, comparison_of
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import RoundStore, load_state, read_sealed, saved_rounds
from grandrounds.core.weights import Weights
from grandrounds.inference.slices import SlicePredictor
from grandrounds.inference.trained_model import TrainedModel, load_trained_model
from grandrounds.site.model_state import model_tensors, personal_tensors
from grandrounds.site.training import isolated_rng

SpreadKind: TypeAlias = Literal["views", "dropout", "rounds", "seeds"]
SPREAD_KINDS: tuple[SpreadKind, ...] = get_args(SpreadKind)
DRAWS = 16  # of dropout
FEWEST_MODELS = 3
SPREAD_MEANING = (
    "standard deviation between predictions, on the image's scale; not a probability, and not the "
    "size of the error: what all predictions have wrong alike does not show"
)
SliceStack: TypeAlias = NDArray[np.float32]
SlicePrediction: TypeAlias = Callable[[SliceStack], SliceStack]


@dataclass(frozen=True)
class InputView:
    """The same slices seen otherwise: mirrored, moved by pixels, brighter or darker by a power."""

    mirrored: bool = False
    moved: tuple[int, int] = (0, 0)
    power: float = 1.0

    def there(self, images: SliceStack) -> SliceStack:
        """Return the slices (slice, row, column) so seen."""
        seen = images[:, :, ::-1] if self.mirrored else images
        return np.ascontiguousarray(_moved(seen, self.moved) ** np.float32(self.power))

    def back(self, made: SliceStack) -> SliceStack:
        """Return predictions where the slices themselves lie."""
        placed = _moved(made, (-self.moved[0], -self.moved[1]))
        return placed[:, :, ::-1] if self.mirrored else placed


VIEWS = tuple(
    InputView(mirrored, moved, power)
    for mirrored, (moved, power) in product(
        (False, True), (((0, 0), 1.0), ((1, 2), 0.9), ((-2, 1), 1.1), ((2, -1), 1.0))
    )
)


def _moved(images: SliceStack, by: tuple[int, int]) -> SliceStack:
    """Move slices by whole pixels; what comes in is 0."""
    rows, columns = by
    height, width = images.shape[1:]
    moved = np.zeros_like(images)
    moved[
        :,
        max(rows, 0) : height + min(rows, 0),
        max(columns, 0) : width + min(columns, 0),
    ] = images[
        :,
        max(-rows, 0) : height + min(-rows, 0),
        max(-columns, 0) : width + min(-columns, 0),
    ]
    return moved


@dataclass(frozen=True)
class PredictionSpread:
    """Several predictors of one thing, of one kind."""

    kind: SpreadKind
    predictors: tuple[SlicePrediction, ...]

    def of(self, images: SliceStack) -> SliceStack:
        """Return the standard deviation of the predictions of slices (slice, row, column).

        Only two images are kept, whatever the number of predictors (Welford 1962).
        """
        mean = np.zeros(images.shape, np.float64)
        squares = np.zeros(images.shape, np.float64)
        for count, predict in enumerate(self.predictors, start=1):
            made = predict(images)
            away = made - mean
            mean += away / count
            squares += away * (made - mean)
        return np.sqrt(squares / (len(self.predictors) - 1)).astype(np.float32)


def spread_for(predictor: SlicePredictor, kind: SpreadKind) -> PredictionSpread:
    """Return the predictors that a kind compares. Raises `BadInput` where there are too few."""
    match kind:
        case "views":
            made = tuple(_seen_as(predictor, view) for view in VIEWS)
        case "dropout":
            _check_dropout(predictor)
            made = tuple(_drawn(predictor, number) for number in range(DRAWS))
        case "rounds":
            made = tuple(_of_models(predictor, _rounds(predictor.trained)))
        case "seeds":
            made = tuple(_of_models(predictor, _seeds(predictor.trained)))
    return PredictionSpread(kind, made)


def _seen_as(predictor: SlicePredictor, view: InputView) -> SlicePrediction:
    return lambda images: view.back(predictor(view.there(images)))


def _check_dropout(predictor: SlicePredictor) -> None:
    if not predictor.dropout:
        raise BadStudy(
            f"study '{predictor.trained.study.name}': its network has no dropout (task.dropout is "
            "0), so every pass gives the same image; choose --uncertainty-by views, rounds or seeds"
        )


def _drawn(predictor: SlicePredictor, number: int) -> SlicePrediction:
    drawing = replace(predictor, drops=True)

    def draw(images: SliceStack) -> SliceStack:
        with isolated_rng(seed_for(number, "uncertainty")):
            return drawing(images)

    return draw


def _of_models(predictor: SlicePredictor, models: list[TrainedModel]) -> Iterator[SlicePrediction]:
    for model in models:
        yield replace(predictor, trained=model)


def _rounds(trained: TrainedModel) -> list[TrainedModel]:
    """Return the models of the rounds that the run folder still has, oldest first."""
    own = {trained.round: trained, **_last(trained)}
    held = RoundStore(trained.site_folder.state).rounds()
    shared = saved_rounds(trained.folder).rounds()
    for round in sorted({*held, *shared} - own.keys()):
        if weights := _saved(trained, round):
            own[round] = trained.with_weights(weights, round)
    if len(own) < FEWEST_MODELS:
        raise BadFolder(
            f"{trained.folder}: holds the models of {len(own)} rounds, and {FEWEST_MODELS} or more "
            "are compared; choose --uncertainty-by views"
        )
    return [own[round] for round in sorted(own)]


def _last(trained: TrainedModel) -> dict[int, TrainedModel]:
    """Return the model of the last round, which a run writes beside the tested one."""
    path, files = RunFolder(trained.folder).last, trained.site_folder
    private = files.private("-last")
    if not private.exists() or not (path.exists() or files.shared("-last").exists()):
        return {}
    own, notes = read_sealed(private)
    shared = read_sealed(path if path.exists() else files.shared("-last"))[0]
    round = int(notes.get("round", 0))
    return {round: trained.with_weights(_of_site(trained, shared) | own, round)}


def _saved(trained: TrainedModel, round: int) -> Weights:
    """Return a round's model from what a run resumes from; empty where a part is gone."""
    private = RoundStore(trained.site_folder.state)
    merged = saved_rounds(trained.site_folder.merged)
    if round not in private.rounds():
        return {}
    if round in merged.rounds():
        shared = load_state(trained.site_folder.merged, round).weights
    elif round in saved_rounds(trained.folder).rounds():
        shared = load_state(trained.folder, round).weights
    else:
        return {}
    own = private.load(round)[0]
    personal = model_tensors(personal_tensors(own))
    return model_tensors(own) | _of_site(trained, shared) | personal


def _of_site(trained: TrainedModel, shared: Weights) -> Weights:
    return trained.study.build_method().averaging.of_site(shared, trained.site)


def _seeds(trained: TrainedModel) -> list[TrainedModel]:
    """Return the models of the same arm of a comparison with other seeds."""
    found = comparison_of(trained.folder)
    if not found or found[1]:
        raise BadInput(
            f"{trained.folder}: is no run of a comparison with several seeds; make one (compare "
            "--seeds 3), or choose --uncertainty-by views"
        )
    arm = trained.folder.resolve().parent
    runs = [run.path for run in found[0].runs() if run.path.parent == arm]
    models = [load_trained_model(run, trained.site) for run in runs]
    if len(models) < FEWEST_MODELS:
        raise BadInput(
            f"{trained.folder}: its arm was trained with {len(models)} seeds, and {FEWEST_MODELS} "
            "or more are compared; make more (compare --seeds 3), or choose --uncertainty-by views"
        )
    return models


def spread_kind(word: str) -> SpreadKind:
    """Return the kind that a word names. Raises `BadInput`."""
    for kind in SPREAD_KINDS:
        if word == kind:
            return kind
    raise BadInput(f"--uncertainty-by {word}: is unknown; known: {', '.join(SPREAD_KINDS)}")
