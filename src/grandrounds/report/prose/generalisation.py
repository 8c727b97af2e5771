"""Sentences on cross-site scores are written here: whose model travels well, and what it loses."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from grandrounds.report.analysis.cross_site import (
    CrossSiteMatrix,
    LeftOut,
    flat,
    keeps_private,
    over_sites,
)
from grandrounds.report.analysis.metrics import Metric
from grandrounds.report.prose.vocabulary import (
    amount,
    display_name,
    few,
    format_difference,
    join_words,
    level,
)


def alike(found: Iterable[CrossSiteMatrix]) -> str:
    """Name the arms with which it makes no difference whose model a hospital uses."""
    titles = [crossing.arm.title for crossing in found if crossing.alike]
    if not titles:
        return ""
    return (
        f"With {join_words(titles)} all hospitals have the same model, so whose model a hospital "
        "uses makes no difference."
    )


def travels(crossing: CrossSiteMatrix) -> str:
    """Say whose model travels best and worst, and what another's model costs on average."""
    worth = {m: better for m in crossing.models if (better := crossing.better(m)) is not None}
    best, worst = (choose(worth, key=lambda model: worth[model]) for choose in (max, min))
    metric = crossing.metric
    return (
        f"Of the models of {crossing.arm.title}, {display_name(best)}'s travels best and "
        f"{display_name(worst)}'s worst ({metric.label}): at the other hospitals "
        f"{display_name(best)}'s is on average {_beside(worth[best], metric)} these hospitals' "
        f"own, and {display_name(worst)}'s {_beside(worth[worst], metric)} them. "
        f"{_instead(fmean(worth.values()), metric)}"
    )


def _beside(better: float, metric: Metric) -> str:
    if abs(better) < metric.negligible:
        return "practically as good as"
    return f"{amount(better, metric)} {'better' if better > 0 else 'worse'} than"


def _instead(better: float, metric: Metric) -> str:
    verb = "gains" if better > 0 else "loses"
    much = amount(better, metric) if abs(better) >= metric.negligible else "practically nothing"
    return f"A hospital that uses another's model instead of its own {verb} {much} on average."


def sentence(found: Mapping[str, Sequence[LeftOut]], metric: Metric) -> str:
    """Say what the first arm reaches at a hospital when trained without it and with it."""
    everything = flat(found)
    own = [one for one in everything if one.arm is everything[0].arm]
    once = [one for one in own if one.gains]
    never = [one for one in own if not one.gains]
    said = [_once(once, metric)] if once else []
    return " ".join([*said, _never(never, metric)] if never else said)


def _once(found: Sequence[LeftOut], metric: Metric) -> str:
    means, single = over_sites(found), len(found) == 1
    where = (
        f"at {display_name(found[0].site)} when it was trained without this hospital"
        if single
        else "on average at hospitals that it was trained without, one at a time"
    )
    return (
        f"{means.arm.title} reached {level(means.without, metric)} ({metric.label}) {where}, and "
        f"{level(means.took_part, metric)} on the same patients when "
        f"{'it' if single else 'they'} took part: taking part brings "
        f"{format_difference(means.gain, metric)}."
    )


def _never(found: Sequence[LeftOut], metric: Metric) -> str:
    reached = few([f"{level(one.without, metric)} at {display_name(one.site)}" for one in found])
    return f"{found[0].arm.title} reached {reached} ({metric.label}), which never took part."


def personal(found: Mapping[str, Sequence[LeftOut]]) -> str:
    """Say that what stays at the hospitals is untrained at one that did not take part."""
    arms = {one.arm.name: one.arm for one in flat(found)}
    titles = [arm.title for arm in arms.values() if keeps_private(arm)]
    if not titles:
        return ""
    return (
        f"{few(titles)} {'keeps' if len(titles) == 1 else 'keep'} a part of the model at each "
        "hospital. At a hospital that did not take part this part has its first, untrained "
        "weights: the method is not at its best there until the hospital trains that part "
        "(grandrounds adapt)."
    )
