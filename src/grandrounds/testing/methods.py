"""The relations of a method: what every method keeps to, whatever its mathematics."""

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from grandrounds.algorithms.method import Method
from grandrounds.algorithms.methods.comparisons import Local
from grandrounds.algorithms.sharing import Sharing
from grandrounds.algorithms.topology import EVERYONE, names_of, train_side_by_side
from grandrounds.api.run import Data, site_files
from grandrounds.api.study import Source, load, save
from grandrounds.core.device import deterministic
from grandrounds.core.errors import BadStudy, BadUpdate, SiteFailed
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.runs.listeners import SilentListener
from grandrounds.runs.remote import check_remote
from grandrounds.site.model_state import SiteStore
from grandrounds.study.checks import complete
from grandrounds.study.file import FILLED_METHOD, changed_keys, to_table
from grandrounds.study.study import Choice
from grandrounds.testing.listening import Overheard, listening
from grandrounds.testing.relations import (
    FINITE,
    RESUMED,
    DoesNotApply,
    Relation,
    Theorem,
    first_run,
    in_two_processes,
    try_all,
)
from grandrounds.testing.trial import (
    Record,
    Trial,
    copied,
    difference,
    difference_of_states,
    study_in_star,
    with_method,
)


@dataclass(frozen=True)
class MethodTrial:
    """A method in a trial; `overheard` was said in its first run, whose record is `reference`."""

    trial: Trial
    given: Method | type[Method] | str
    reference: Record
    overheard: Overheard
    alone: bool

    @property
    def method(self) -> Method:
        """Return the method as a run makes it."""
        return self.trial.study.build_method()


def check_method(
    method: Method | type[Method] | str,
    study: Source | None = None,
    *,
    data: Data | None = None,
    alone: bool = True,
) -> tuple[Relation, ...]:
    """Try every relation of a method, to the bit, and return those that hold.

    `method` is an instance, a class or a word of the study file. It is tried in a star of two tiny
    simulated sites for two rounds, or on a study of one's own, as `grandrounds.load` takes it, with
    `data` that maps its real sites to what they have. `alone` = False leaves out that the method is
    local training where nothing is shared. Some relations do not apply to some methods; they are
    returned with the reason. Raises `Broken`, an `AssertionError`, with all that do not hold, and
    `BadStudy` where the study cannot have the method.
    """
    whole = study_in_star(study, method=method)
    title = type(whole.build_method()).__name__
    with TemporaryDirectory() as folder:
        trial = Trial(title, whole, tuple(site_files(data or ())), Path(folder))
        overheard = Overheard()
        between = partial(listening, trial, overheard=overheard)
        reference = first_run(trial, between, breaks=_broken_policy)
        return try_all(METHOD_RELATIONS, MethodTrial(trial, method, reference, overheard, alone))


def _broken_policy(failure: SiteFailed) -> str:
    return _POLICY.name if failure.card.error == BadUpdate.__name__ else ""


def _options(method: Method) -> dict[str, Any]:
    names = [each.name for each in fields(method) if each.init and each.name not in FILLED_METHOD]
    return {name: getattr(method, name) for name in names}


def lost_on_the_wire(subject: MethodTrial) -> str:
    """Return what was said whose bytes are not its tensors."""
    return next(iter(subject.overheard.wire), "")


def beside_the_policy(subject: MethodTrial) -> str:
    """Return what left or came and is not the policy's, or what the policy says and never came."""
    try:
        check_remote(subject.trial.study)
    except BadStudy as refusal:
        raise DoesNotApply(str(refusal)) from None
    overheard, sharing = subject.overheard, subject.method.sharing()
    if overheard.policy:
        return overheard.policy[0]
    for name in sharing.sends:
        if name not in overheard.up:
            return f"its sharing names '{name}' in sends, and no site ever sent it"
    for name in sharing.receives:
        if name not in overheard.down:
            return f"its sharing names '{name}' in receives, and no site ever got it"
    return ""


def changed_by_order(subject: MethodTrial) -> str:
    """Let the sites train in the reverse order, and return whose update differs."""
    trial, whole = subject.trial, subject.reference
    federation = trial.build("reversed", trial.plan())
    back = InProcessEngine(federation.sites.sites[::-1], SilentListener().on_reply)
    if len(back.names) < 2:
        raise DoesNotApply("a single site trains")
    state = federation.start
    for number, result in whole.rounds.items():
        names, method = [n for n in back.names if n in names_of(result.replies)], federation.method
        with deterministic(trial.study.machine()):
            replies = train_side_by_side(state, names, back, method, quorum=EVERYONE)
        by_site = {reply.site: reply for reply in replies}
        for reply in result.replies:
            where = f"of site '{reply.site}' differs in round {number}"
            again = by_site[reply.site]
            found = difference(reply.weights, again.weights, where)
            if found or reply.digest != again.digest:
                return f"where the sites train in another order, {found or f'what is kept {where}'}"
        state = copied(result).state
    return ""


def changed_by_swarm(subject: MethodTrial) -> str:
    """Play the rounds over a swarm, and return what differs from the star."""
    whole = subject.reference
    try:
        study = complete(replace(subject.trial.study, topology=Choice("swarm")))
    except BadStudy as refusal:
        raise DoesNotApply(str(refusal)) from None
    trial = subject.trial.of(study)
    federation = trial.build("swarm", trial.plan())
    store = SiteStore(federation.sites.sites[0].folder)
    state = federation.start
    for number, expected in whole.rounds.items():
        with deterministic(study.machine()):
            result = federation.topology.round(state, federation.sites, federation.method)
        state = result.state
        where = f"differs in round {number}"
        found = difference_of_states(expected.state, store.merged(number), where)
        odd = [
            one.site
            for one, other in zip(expected.replies, result.replies, strict=True)
            if one.digest != other.digest
        ]
        if found or odd:
            found = found or f"what site '{odd[0]}' keeps {where}"
            return f"over a swarm it ends with other weights than in a star: {found}"
    return ""


def not_local(subject: MethodTrial) -> str:
    """Share nothing, and return what differs from training alone."""
    if subject.method.sharing().pooled:
        raise DoesNotApply("all data are in one place, and no site trains")
    if not subject.alone:
        raise DoesNotApply("alone = False: with nothing shared it is another method")
    trial = subject.trial
    plan = trial.plan()
    local = trial.play("alone", with_method(trial.plan(), Local(averaging=plan.method.averaging)))
    other = trial.play("unshared", with_method(plan, unshared(plan.method)))
    for number in local.rounds:
        for site in local.first:
            where = f"of site '{site}' differs in round {number}"
            if found := difference(local.model(site, number), other.model(site, number), where):
                return (
                    f"with nothing shared it is not local training: {found}. Where it is not meant "
                    "to be, say alone = False"
                )
    return ""


def unshared(method: Method) -> Method:
    """Return a method that shares nothing, and else is as this one."""
    kind = type(method)

    def sharing(self: Method) -> Sharing:
        return replace(kind.sharing(self), shared=(), private=())

    made = type(kind.__name__, (kind,), {"sharing": sharing})
    return made(**_options(method), averaging=method.averaging)


def misread(subject: MethodTrial) -> str:
    """Save the study, load it, and return what of the method differs."""
    study, given, path = subject.trial.study, subject.given, subject.trial.folder / "saved.toml"
    try:
        save(study, path)
    except BadStudy as refusal:
        raise DoesNotApply(str(refusal).removeprefix(f"{path}: ")) from None
    again = load(path)
    changed = changed_keys(to_table(study), to_table(again))
    if changed or again != study:
        return f"a study file gives back another {', '.join(changed) or 'study'}"
    made = again.build_method()
    if isinstance(given, type) and type(made) is not given:
        return f'a study file names it "{study.method.kind}", which is another class'
    for name, value in _options(given).items() if isinstance(given, Method) else ():
        if getattr(made, name) != value:
            return f"a study file gives back {name} = {getattr(made, name)!r}, not {value!r}"
    return ""


_POLICY = Theorem(
    "what leaves and comes is what the policy says",
    "No tensor leaves a site or comes to it but those of the shared groups and the named sets.",
    beside_the_policy,
)
METHOD_RELATIONS: tuple[Theorem[MethodTrial], ...] = (
    FINITE,
    RESUMED,
    in_two_processes(lambda trial: trial.play("processes", processes=2)),
    Theorem(
        "the order of sites changes no update",
        "Whichever site trains first in a round, each sends and keeps the same bits.",
        changed_by_order,
    ),
    Theorem(
        "a swarm = the star",
        "Whoever leads, sites without a server end with the bits of a star.",
        changed_by_swarm,
    ),
    Theorem(
        "bytes on the wire are the tensors, bit for bit, and no pickle",
        "Every byte of a message belongs to JSON or to a tensor, and comes back as it was.",
        lost_on_the_wire,
    ),
    _POLICY,
    Theorem(
        "with nothing shared it is local training",
        "Where nothing is shared, each site ends with the bits of training alone.",
        not_local,
    ),
    Theorem(
        "a study file names it and reads it back",
        "A study with the method, written to a file and read, is the same study.",
        misread,
    ),
)
