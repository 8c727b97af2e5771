"""One round's training at a site, by the plan of its method."""

from grandrounds.bench import Bench
from grandrounds.kept import model_of
from grandrounds.messages import LocalPlan
from grandrounds.methods.combine import CONTROL
from grandrounds.nudges import Control, Nudge, Pull
from grandrounds.training import Lesson, Trained, train
from grandrounds.weights import Filter, Weights, below


def local_round(
    bench: Bench, lesson: Lesson, plan: LocalPlan, shared: Filter, private: Weights, came: Weights
) -> tuple[Trained, Control]:
    """Train the model on the bench from where a round starts, and give what was learned of drift.

    `private` is the site's state of the round before, `came` what was sent to it.
    """
    control = Control(shared, below(CONTROL, private), below(CONTROL, came))
    nudges = list[Nudge]()
    if plan.prox:
        nudges.append(Pull(plan.prox, model_of(came)))
    if plan.controls:
        nudges.append(control)
    batches = lesson.batches(epochs=plan.epochs, steps=plan.steps)
    if not plan.private_epochs:
        return train(bench, lesson, batches, nudges=nudges), control
    with bench.training_only(lambda name: not shared(name)):
        train(bench, lesson, lesson.batches(epochs=plan.private_epochs))
    with bench.training_only(shared):
        return train(bench, lesson, batches, nudges=nudges), control
