"""How the page speaks of each kind of task; a kind that has no words of its own gets plain ones."""

from dataclasses import dataclass

from grandrounds.report.metrics import METRICS, Metric

PLAIN = Metric("", "validation score", "", True, 0.005, "higher is better")
LOG_SCORE = Metric("log_score", "log loss below 0", "", True, 0.01, "0 is perfect")


@dataclass(frozen=True)
class Wording:
    """The words for one kind of task: the score that validation watches, and what pictures show.

    `graded` tells whether a pixel can be more or less wrong, or only right or wrong.
    """

    watched: Metric = PLAIN
    pictures: bool = True
    target: str = "What is right"
    target_note: str = "what the model should find"
    made: str = "Found by"
    error: str = "Error"
    error_note: str = "Error: the difference between what was found and what is right."
    graded: bool = True


WORDINGS = {
    "synthesis": Wording(
        watched=METRICS["psnr"],
        target="Real image",
        target_note="what it should look like",
        made="Image synthesised by",
        error_note="Error: the difference between synthesised and real image, as a share of the "
        "brightness range. One scale for the whole report.",
    ),
    "segmentation": Wording(
        watched=METRICS["dice"],
        target="Reference outline",
        target_note="what should be outlined; each structure has its own grey",
        made="Outline drawn by",
        error="Differences",
        error_note="Differences: the pixels that were given to another structure, or to none.",
        graded=False,
    ),
    "classification": Wording(watched=LOG_SCORE, pictures=False),
    "tabular": Wording(watched=LOG_SCORE, pictures=False),
}


def wording(task: str) -> Wording:
    """Give the words for a kind of task."""
    return WORDINGS.get(task, Wording())
