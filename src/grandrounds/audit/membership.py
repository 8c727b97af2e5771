"""Whether a model's fit tells who trained it: membership inference with the patient as the unit.

The loss threshold takes whom the model fits well for a member (Yeom et al. 2018). The likelihood
ratio first asks how well models fit the same patient that never saw the site (Carlini et al. 2022,
offline and with one variance for all patients, as few such models are at hand).

Shapes: N patient, K model that never saw them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # pyright: ignore[reportMissingTypeStubs]

from grandrounds.audit.exchangeability import (
    FLAGGED_AT,
    Members,
    Values,
    enough_patients,
    permutation_p,
    roc_points,
    sensitivity_with_interval,
    shuffled,
)
from grandrounds.core.roc import auc
from grandrounds.report.analysis.audit import AuditedAttack, AuditFigure, AuditVerdict

FALSE_POSITIVES = (0.001, 0.01, 0.1)
_TITLE = "Membership: can one tell who trained?"
_REMEDIES = (
    "Fewer rounds or local epochs: the gap between training and test scores is what is exploited.",
    "More patients at the site, or a smaller network.",
    'Record-level differential privacy ([privacy] kind = "record") bounds what any such attack can '
    "tell.",
    "Hand the model out only to whom the study names.",
)


@dataclass(frozen=True)
class Fits:
    """How well a model fits each patient (higher is better), and models that never saw them.

    `values` is (N,), `unseen` (K, N); K may be 0.
    """

    values: Values
    unseen: NDArray[np.float64]

    @staticmethod
    def of(values_N: Values, unseen: Sequence[Values]) -> "Fits":
        """Join the fits of the attacked model and of those that never saw the patients."""
        return Fits(values_N, np.stack(unseen) if unseen else np.empty((0, len(values_N))))

    def scores(self) -> dict[str, Values]:
        """Return each attack's score of each patient; a higher one says "member"."""
        found = {"Loss threshold": self.values}
        if len(self.unseen):
            found["Likelihood ratio"] = likelihood_ratio(self.values, self.unseen)
        return found


def likelihood_ratio(values_N: Values, unseen_KN: NDArray[np.float64]) -> Values:
    """Return the chance that a model which never saw the patient fits worse than this one, (N,).

    Fits are taken as normal, about each patient's mean over K models; their one deviation is that
    of all patients' fits about their means, or, for a single model, of the differences themselves.
    """
    means_N = unseen_KN.mean(0)
    models = len(unseen_KN)
    about = unseen_KN - means_N if models > 1 else values_N - means_N
    freedom = about.size - about.shape[-1] if models > 1 else max(about.size - 1, 1)
    centred = about - about.mean() if models == 1 else about
    deviation = float(np.sqrt(np.square(centred).sum() / max(freedom, 1)))
    return np.asarray(ndtr((values_N - means_N) / max(deviation, 1e-12)), np.float64)


def judge_membership(
    fits: Fits, members_N: Members, controls: Mapping[str, Values], *, seed: int
) -> AuditedAttack:
    """Judge whether training patients can be told from test patients.

    `controls` maps models that cannot know who trained to their fits of the patients, (N,).
    """
    scores = fits.scores()
    inside, outside = int(members_N.sum()), int((~members_N).sum())
    able = enough_patients(inside, outside, tests=len(scores))
    test = partial(_p, members_N=members_N, seed=seed)
    p = {name: test(each) for name, each in scores.items()}
    verdict: AuditVerdict = "too few" if not able else "not found"
    if able and min(p.values()) * len(scores) <= FLAGGED_AT:
        verdict = "found"
    best = max(scores, key=lambda name: _auc(scores[name], members_N))
    mixed = shuffled(members_N, seed)
    controls = {**controls, "The same model, patients' labels shuffled": fits.values}
    labels = dict.fromkeys(controls, members_N) | {list(controls)[-1]: mixed}
    return AuditedAttack(
        _TITLE,
        verdict,
        _sentence(verdict, inside, outside, _auc(scores[best], members_N)),
        tuple(each for n, s in scores.items() for each in _figures(n, s, members_N, p[n])),
        tuple(
            AuditFigure(f"{name}: area under the curve", _auc(each, labels[name]))
            for name, each in controls.items()
        ),
        _REMEDIES,
        roc_points(scores[best], members_N),
    )


def _p(scores_N: Values, *, members_N: Members, seed: int) -> float:
    return permutation_p(partial(_auc, scores_N), members_N, seed=seed)


def _auc(scores_N: Values, members_N: Members) -> float:
    return auc(scores_N, members_N)


def _figures(name: str, scores_N: Values, members_N: Members, p: float) -> Sequence[AuditFigure]:
    found = [
        AuditFigure(f"{name}: area under the curve (0.5 is chance)", _auc(scores_N, members_N)),
        AuditFigure(f"{name}: p", p),
    ]
    for rate in FALSE_POSITIVES:
        what = f"{name}: members told at {rate:.1%} false positives"
        told = sensitivity_with_interval(scores_N, members_N, rate)
        if told is None:
            needed = round(1 / rate)
            note = f"too few patients to say: it takes {needed} or more who did not train"
            found.append(AuditFigure(what, None, note=note))
        else:
            found.append(AuditFigure(what, *told))
    return found


def _sentence(verdict: AuditVerdict, inside: int, outside: int, area: float) -> str:
    match verdict:
        case "found":
            return (
                "Whoever has the model and a patient's images can tell better than by chance "
                f"whether the patient trained it (area under the curve {area:.2f})."
            )
        case "too few":
            return (
                f"{inside} trained and {outside} are for testing: no outcome could be told from "
                "chance."
            )
        case _:
            return "Training patients could not be told from test patients better than by chance."
