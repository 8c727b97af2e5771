"""What a site reveals under differential privacy has a name, a price and its own noise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

import torch
from torch import Tensor

from grandrounds.core.weights import Weights
from grandrounds.privacy.accounting import GaussianSteps, spending
from grandrounds.privacy.budget import Charge, PrivacyBudget
from grandrounds.privacy.noise import NoiseSource

SPENT = "privacy/"  # before the names of what a run revealed so far, in private state


@dataclass(frozen=True, kw_only=True)
class SitePrivacy:
    """How a site's data is protected in a run.

    `kind` says whose contribution is clipped to `clip` (L2) and gets noise of `noise` times that:
    the site's update of a round ("client"), or each patient's gradient in a step ("record").
    `study` is its SHA-256. `budget` is that of a real site's data; a simulated site has none.
    """

    kind: Literal["client", "record"]
    clip: float
    noise: float
    delta: float
    study: str
    source: NoiseSource
    budget: PrivacyBudget | None = None


@dataclass
class RoundReleases:
    """The releases of one round of training; each is charged before anything is computed.

    `data` is the digest of the site's data, `before` what the run revealed so far. `start` is the
    digest of all that training starts from and that came with the request: a round that is
    repeated from the same start repeats its noise, and counts once.
    """

    privacy: SitePrivacy
    data: str
    round: int
    start: str
    before: tuple[GaussianSteps, ...] = ()
    made: list[GaussianSteps] = field(default_factory=list[GaussianSteps], init=False)

    def begin(self, steps: int, *, sampling: float, model: str) -> str:
        """Charge some steps on a model of this digest; return the name of their release.

        Raises `BudgetUsedUp`.
        """
        privacy, cost = self.privacy, GaussianSteps(self.privacy.noise, sampling, steps)
        facts = (privacy.kind, privacy.study, self.data, self.start, model)
        amounts = (privacy.clip, privacy.noise, sampling, steps)
        release = privacy.source.release(*facts, *amounts, self.round, len(self.made))
        if privacy.budget and steps:
            charge = Charge(
                release, privacy.study, self.round, self.data, cost.noise, sampling, steps
            )
            privacy.budget.charge(charge)
        self.made.append(cost)
        return release

    @property
    def epsilon(self) -> float | None:
        """Return what the run revealed so far, with this round; None where nothing bounds it."""
        epsilon = spending([*self.before, *self.made], self.privacy.delta).epsilon
        return epsilon if epsilon < inf else None

    @property
    def kept(self) -> Weights:
        """Return what the run revealed so far as a tensor, (releases, 3), for the next round."""
        rows = [[each.noise, each.sampling, each.steps] for each in self._merged()]
        return {SPENT + "steps": torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)}

    def _merged(self) -> list[GaussianSteps]:
        counts = dict[tuple[float, float], int]()
        for each in (*self.before, *self.made):
            key = each.noise, each.sampling
            counts[key] = counts.get(key, 0) + each.steps
        return [GaussianSteps(noise, q, steps) for (noise, q), steps in sorted(counts.items())]

    @property
    def is_last(self) -> bool:
        """Tell whether the budget of the data allows no further round like this one.

        A later round that is charged already, as a run that was lost is repeated, is paid for.
        """
        budget, study = self.privacy.budget, self.privacy.study
        if not budget:
            return False
        if any(each.study == study and each.round > self.round for each in budget.charges()):
            return False
        return not budget.allows(*self.made)


def spent_before(private: Mapping[str, Tensor]) -> tuple[GaussianSteps, ...]:
    """Return what a run revealed up to the round of this private state."""
    rows = private.get(SPENT + "steps")
    if rows is None:
        return ()
    found = [[float(number) for number in row] for row in rows]
    return tuple(GaussianSteps(noise, q, int(steps)) for noise, q, steps in found)
