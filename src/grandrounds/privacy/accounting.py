"""How much noisy releases may reveal together: epsilon at a delta, by dp-accounting.

Imported where it is used: a run without differential privacy needs no dp-accounting.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from math import inf, sqrt
from typing import Any, Literal, TypeAlias, cast

from grandrounds.core.errors import BadStudy
from grandrounds.core.extras import install_command

Accountant: TypeAlias = Literal["none", "exact", "RDP", "PLD"]
_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
_FINE, _COARSE = 1e-4, 1e-3  # intervals of the discretised privacy loss, which is rounded up
_MANY = 1000  # steps, over which what is rounded up adds up
_FINE_UP_TO, _PLD_UP_TO = 5.0, 50.0  # epsilon by RDP; finer numbers beyond it cost many seconds


@dataclass(frozen=True)
class GaussianSteps:
    """Equal steps of a Gaussian mechanism: each adds noise to a sum of clipped contributions.

    `noise` is the noise multiplier: the standard deviation divided by the clip. `sampling` is the
    probability with which each contribution is in a step, independently of all others (Poisson
    sampling); 1 where all are in every step.
    """

    noise: float
    sampling: float = 1.0
    steps: int = 1


@dataclass(frozen=True)
class Spending:
    """The epsilon of releases at a delta, and the accountant that found it.

    "exact" is the analytic Gaussian mechanism; "RDP" and "PLD" are upper bounds, of which the
    smaller one stands here. "none": there is nothing to count, or no noise.
    """

    epsilon: float
    delta: float
    accountant: Accountant


def spending(releases: Iterable[GaussianSteps], delta: float) -> Spending:
    """Return what releases reveal together of one contribution, present or absent.

    Without sampling their composition is one Gaussian mechanism, whose epsilon is known exactly
    (Balle and Wang 2018). With sampling it is the smaller of two upper bounds: Renyi differential
    privacy (Mironov et al. 2019), and the distribution of the privacy loss, computed numerically
    and rounded up (PLD; Gopi et al. 2021 call it PRV). Raises `BadStudy` without dp-accounting.
    """
    counts: Counter[tuple[float, float]] = Counter()
    for each in releases:
        if each.sampling > 0:
            counts[each.noise, min(each.sampling, 1.0)] += each.steps
    merged = sorted((noise, sampling, steps) for (noise, sampling), steps in counts.items())
    return _spending(tuple(each for each in merged if each[2] > 0), delta)


@lru_cache(maxsize=4096)
def _spending(merged: tuple[tuple[float, float, int], ...], delta: float) -> Spending:
    if not merged:
        return Spending(0.0, delta, "none")
    if any(noise <= 0 for noise, _, _ in merged):
        return Spending(inf, delta, "none")
    if all(sampling == 1.0 for _, sampling, _ in merged):
        precision = sum(steps / noise**2 for noise, _, steps in merged)
        epsilon = _package().get_epsilon_gaussian(1 / sqrt(precision), delta)
        return Spending(float(epsilon), delta, "exact")
    return _bound(merged, delta)


def _bound(merged: tuple[tuple[float, float, int], ...], delta: float) -> Spending:
    package = _package()
    events = [_event(package, *each) for each in merged]
    by_rdp = _compose(package.rdp.RdpAccountant(_ORDERS), events, delta)
    if by_rdp > _PLD_UP_TO:
        return Spending(by_rdp, delta, "RDP")
    many = sum(steps for _, _, steps in merged) > _MANY and by_rdp <= _FINE_UP_TO
    interval = _FINE if many else _COARSE
    pld = package.pld.PLDAccountant(value_discretization_interval=interval)
    by_pld = _compose(pld, events, delta)
    return Spending(by_pld, delta, "PLD") if by_pld < by_rdp else Spending(by_rdp, delta, "RDP")


def _event(package: Any, noise: float, sampling: float, steps: int) -> Any:
    event = package.GaussianDpEvent(noise)
    if sampling < 1:
        event = package.PoissonSampledDpEvent(sampling, event)
    return package.SelfComposedDpEvent(event, steps)


def _compose(accountant: Any, events: Iterable[Any], delta: float) -> float:
    for event in events:
        accountant.compose(event)
    return float(cast(float, accountant.get_epsilon(delta)))


def _package() -> Any:
    """Return dp-accounting, which has no type stubs. Raises `BadStudy` where it is not there."""
    try:
        for part in ("pld", "rdp"):
            import_module(f"dp_accounting.{part}")
        return import_module("dp_accounting")
    except ModuleNotFoundError:
        raise BadStudy(
            "differential privacy needs dp-accounting, which counts epsilon; install it: "
            f"{install_command('privacy')}"
        ) from None
