"""These checks find which method, topology, task and cut fit together, and why others do not."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TypeAlias

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from grandrounds.algorithms.aggregation import MEASURED, Aggregation
from grandrounds.algorithms.cyclic import Cyclic
from grandrounds.algorithms.method import Method, Need
from grandrounds.algorithms.relay import Relay
from grandrounds.algorithms.robustness import fewest_updates
from grandrounds.algorithms.sharing import UNIONS, sharing_filter
from grandrounds.algorithms.split import Split
from grandrounds.algorithms.star import Star
from grandrounds.algorithms.topology import Topology
from grandrounds.core.device import DTYPES
from grandrounds.core.errors import BadStudy
from grandrounds.core.weights import Filter
from grandrounds.site.cut import Cut, case_bytes, cut_at
from grandrounds.site.training import Training
from grandrounds.study.study import SiteSpec, Study
from grandrounds.tasks import AnyTask, Segmentation, SupervisedTask, Synthesis
from grandrounds.tasks.outside import Outside
from grandrounds.tasks.synthesis.networks import CONTRASTS
from grandrounds.tasks.task import Task

Problems: TypeAlias = Iterator[str]
UNMET: Mapping[Need, str] = {  # what is said where a study does not offer what a method needs
    "side by side": 'method "{method}" makes no sense over topology "{topology}": {reason}',
    "whole network": 'method "{method}" makes no sense over topology "{topology}": {reason}',
    "every site": 'method "{method}" needs topology.require = "all": {reason}',
    "mean": 'method "{method}" needs aggregation.kind = "mean", not "{aggregation}": {reason}',
    "rate of 1": 'method "{method}" makes no sense with aggregation.rate = "measured": {reason}',
    "no aggregation": "aggregation would do nothing: {reason}",
    "common start": 'method "{method}" needs training.first_broadcast = true: {reason}',
}


def need_problems(study: Study, topology: Topology) -> Problems:
    """Yield why a study does not offer what its method needs."""
    aggregation = study.aggregation
    lacking = {
        *topology.lacks,
        *(["mean"] if aggregation.kind != "mean" else []),
        *(["rate of 1"] if aggregation.rate == MEASURED else []),
        *(["no aggregation"] if not aggregation.is_plain else []),
        *(["common start"] if not study.training.first_broadcast else []),
    }
    for need, reason in study.build_method().needs().items():
        if need in lacking:
            yield UNMET[need].format(
                method=study.method.kind,
                topology=study.topology.kind,
                aggregation=aggregation.kind,
                reason=reason,
            )


def aggregation_problems(method: Method, aggregation: Aggregation, sites: int) -> Problems:
    """Yield why an aggregation fails or has no effect."""
    kind, trim, shares = aggregation.kind, aggregation.trim, aggregation.shares
    if not aggregation.is_plain and not method.sharing().federates:
        yield (
            f"aggregation would do nothing: method '{method.title}' averages nothing. "
            "Remove [aggregation], or choose a method that shares."
        )
    if kind != "mean" and shares != "cases":
        yield (
            f'aggregation.shares = "{shares}" would do nothing: with kind = "{kind}" '
            "every site counts alike"
        )
    yield from _rate_problems(aggregation)
    yield from _krum_problems(aggregation, sites)
    if kind == "trimmed" and not 0 < aggregation.dropped(sites) * 2 < sites:
        yield (
            f"aggregation.trim is {trim:g}, which drops {aggregation.dropped(sites)} of {sites} "
            "sites at each end; it must drop one or more and leave one or more"
        )


def _krum_problems(aggregation: Aggregation, sites: int) -> Problems:
    kind, faulty = aggregation.kind, aggregation.num_faulty
    if kind != "krum" and aggregation.faulty is not None:
        yield f'aggregation.faulty would do nothing: with kind = "{kind}" no update is left out'
    if kind == "krum" and faulty < 1:
        yield f'aggregation.faulty is {faulty}; with kind = "krum" it must be 1 or more'
    if kind == "krum" and sites < fewest_updates(faulty):
        yield (
            f"multi-Krum needs 2 f + 3 = {fewest_updates(faulty)} sites where f = {faulty} may be "
            f'faulty, and this study has {sites}: choose kind = "median", or more sites'
        )


def krum_problems(study: Study, topology: Topology) -> Problems:
    """Yield why multi-Krum cannot choose among updates as the study says."""
    if study.aggregation.kind == "krum" and not isinstance(topology, Star):
        yield (
            'aggregation.kind = "krum" needs topology.kind = "star": over '
            f'"{study.topology.kind}" the coordinator, which tells who was left out, has no updates'
        )


def _rate_problems(aggregation: Aggregation) -> Problems:
    kind, rate = aggregation.kind, aggregation.rate
    if rate not in (None, 1.0, MEASURED):
        yield (
            f'aggregation.rate is {rate:g}; it must be 1.0 (the mean itself) or "measured". A rate '
            'of your own is method "fedopt" with server = "momentum", beta1 = 0.0 and rate'
        )
    if rate == MEASURED and kind != "mean":
        yield (
            f'aggregation.rate = "measured" makes no sense with kind = "{kind}": it gives back '
            "what a mean takes from moves that point apart"
        )


def rate_problems(study: Study, topology: Topology, sites: int) -> Problems:
    """Yield why a server's rate cannot be measured, or would do nothing, over a topology."""
    if study.aggregation.rate != MEASURED:
        return
    if isinstance(topology, Split):
        yield (
            'aggregation.rate = "measured" makes no sense over topology "split": the part of the '
            "network at the server steps with every batch"
        )
    if isinstance(topology, Relay) and topology.groups == sites:
        yield (
            'aggregation.rate = "measured" would do nothing: with topology.groups = '
            f"{topology.groups} every group is one site, and nothing is averaged"
        )
    if not study.training.first_broadcast:
        yield (
            'aggregation.rate = "measured" needs training.first_broadcast = true: it is measured '
            "from where all sites started"
        )


def cosine_problems(study: Study, method: Method, topology: Topology) -> Problems:
    """Yield why the sites' updates cannot be compared as the study says."""
    every, kind = study.aggregation.cosines_every, study.topology.kind
    if every is None:
        return
    if every < 1:
        yield f"aggregation.cosines_every is {every}; it must be 1 or more, or left out for never"
    if not method.sharing().federates:
        yield (
            f'aggregation.cosines_every would do nothing: method "{study.method.kind}" sends no '
            "update; in a comparison give it to the arms that do, for example "
            "fedavg:aggregation.cosines_every=5"
        )
    if not isinstance(topology, Star):
        yield (
            f'aggregation.cosines_every needs topology.kind = "star": over "{kind}" the '
            "coordinator does not have the updates of all sites from one start side by side"
        )
    if len(study.trainers) < 2:
        yield "aggregation.cosines_every would do nothing: a single site has none to compare with"


def topology_problems(topology: Topology, sites: int) -> Problems:
    """Yield what is wrong with the options of a topology."""
    if isinstance(topology, Star | Relay):
        yield from _quorum_problems(topology, sites)
    if isinstance(topology, Relay):
        yield from _relay_problems(topology, sites)
    if isinstance(topology, Cyclic):
        yield from _turn_problems(topology)


def joining_problems(topology: Topology, study: Study) -> Problems:
    """Yield why sites cannot join when the study says so."""
    later, founders = [site for site in study.site if site.joins is not None], study.joined(1)
    for site in later:
        for problem in _late_problems(site, topology, study):
            yield f"site '{site.name}': {problem}"
    if later and not founders:
        yield "every site joins later; one or more must begin, with joins = 1 or none"
    least = topology.quorum.least or 0
    if later and least > len(founders):
        yield (
            f"topology.require is {least}, and only {len(founders)} sites begin; the others join "
            "later"
        )


def _late_problems(site: SiteSpec, topology: Topology, study: Study) -> Problems:
    if not 1 <= site.first_round <= study.rounds:
        yield (
            f"joins is {site.joins}; it must be a round from 1 to {study.rounds}, the study's last"
        )
    if not isinstance(topology, Star):
        yield (
            f'joins would do nothing over topology "{study.topology.kind}", in which every site '
            "takes part from round 1; only in a star can a site join later"
        )
    if study.build_method().sharing().pooled:
        yield "joins would do nothing where all data are pooled"
    if site.name in study.holdout_sites:
        yield "joins would do nothing, for a held-out site never trains"


def _quorum_problems(star: Star | Relay, sites: int) -> Problems:
    if star.require != "all" and not 1 <= star.require <= sites:
        yield (
            f'topology.require is {star.require}; it must be "all" or a number from 1 to {sites}, '
            "the sites of the study"
        )
    if star.patience < 0:
        yield f"topology.patience is {star.patience:g} s; it must be 0 (wait for ever) or more"
    if star.patience and star.require == "all":
        yield (
            'topology.patience would do nothing with topology.require = "all": '
            "every site is waited for"
        )


def _relay_problems(relay: Relay, sites: int) -> Problems:
    if not 1 <= relay.groups <= sites:
        yield (
            f"topology.groups is {relay.groups}; it must be from 1 (the star) to {sites}, the "
            "sites of the study (a cycle)"
        )
    if relay.model_at_sites and relay.require != "all":
        yield (
            'topology.require would do nothing with topology.handover = "sites": a leader merges '
            "once all sites of its group have delivered"
        )


def _turn_problems(cyclic: Cyclic) -> Problems:
    for name, value in {"length": cyclic.length, "monitor": cyclic.monitor}.items():
        if value < 0:
            yield f"topology.{name} is {value}; it must be 0 or more"
    if cyclic.turn == "steps" and cyclic.length < 1:
        yield 'topology.turn = "steps" needs topology.length, the steps of a turn, 1 or more'
    if cyclic.proportional and cyclic.turn == "epochs":
        yield (
            'topology.proportional would do nothing with topology.turn = "epochs": '
            "an epoch is in proportion to the site already"
        )


def pair_problems(
    kind: str, method: Method, aggregation: Aggregation, topology: Topology
) -> Problems:
    """Yield what would do nothing over a topology."""
    name = type(topology).__name__.lower()
    federates = method.sharing().federates
    if not federates and not isinstance(topology, Star):
        yield (
            f'method "{kind}" sends nothing, so topology "{name}" would do nothing; '
            'choose topology.kind = "star"'
        )
    if isinstance(topology, Cyclic) and not aggregation.is_plain:
        yield 'aggregation would do nothing over topology "cyclic": nothing is averaged there'
    if isinstance(topology, Star | Relay) and topology.require != "all" and not federates:
        yield f'topology.require would do nothing for method "{kind}": no site waits for another'


def check_split(study: Study) -> None:
    """Refuse a study that a network in two parts cannot run. Raises `BadStudy`."""
    split = study.build_topology()
    if isinstance(split, Split):
        problems = (split_problems(study, split), task_problems(study.task, split))
        for sentence in chain(uncut_problems(study.task), *problems, cut_problems(study, split)):
            raise BadStudy(sentence)


def uncut_problems(options: AnyTask) -> Problems:
    """Yield why a task has no network that can be cut."""
    if isinstance(options, SupervisedTask):
        yield (
            f'topology "split" cannot cut the network of task.kind = "{options.kind}": only the '
            "built-in networks are laid out in stages; choose another topology"
        )
    if isinstance(options, Outside) and options.network:
        yield (
            f'topology "split" cannot cut task.network = "{options.network}": only the built-in '
            "networks are laid out in stages; choose another topology"
        )


def split_problems(study: Study, split: Split) -> Problems:
    """Yield why a network in two parts does not fit the options of training."""
    if split.variant == "sequential" and not study.aggregation.is_plain:
        yield (
            'aggregation would do nothing over topology "split" with variant = "sequential": '
            'nothing is averaged there; choose "splitfed1" or "splitfed2"'
        )
    for option, reason in _training_reasons(study.training):
        yield f'{option} makes no sense over topology "split": {reason}'


def _training_reasons(training: Training) -> Iterator[tuple[str, str]]:
    if training.fine_tune:
        yield "training.fine_tune", "a site alone lacks the server's part of the network"
    if training.compile:
        yield "training.compile", "stages run one by one, not as one network"
    if not training.first_broadcast:
        yield "training.first_broadcast = false", "both parts start from the same first weights"


def task_problems(options: AnyTask, split: Split) -> Problems:
    """Yield why a task cannot be trained or scored through a cut."""
    if split.labels == "server" and split.back:
        yield (
            'topology.labels = "server" and topology.back exclude each other: '
            "with back the output is made at the site, and judged there"
        )
    if isinstance(options, Synthesis):
        if split.labels == "server":
            yield (
                'topology.labels = "server" makes no sense for task "synthesis": its critics '
                "judge source, target and output side by side, and these stay at the site"
            )
        if options.pairing == "unpaired" or options.generator == CONTRASTS:
            yield (
                'task.pairing = "unpaired" and task.generator = "contrasts-unet" make no sense '
                'over topology "split": both need the whole generator in one place'
            )
        if options.dropout_at_evaluation:
            yield (
                'task.dropout_at_evaluation makes no sense over topology "split": '
                "the server's part predicts without dropout"
            )
        if options.statistics_at_evaluation == "image" and options.has_statistics:
            yield (
                'task.statistics_at_evaluation = "image" makes no sense over topology "split": '
                "the server's part predicts with running statistics"
            )
    if isinstance(options, Segmentation) and options.dims == 3:
        yield (
            'task.dims = 3 makes no sense over topology "split": patches slide over a volume '
            "within one site, not through a cut; choose task.dims = 2"
        )


def cut_problems(study: Study, split: Split) -> Problems:
    """Yield what is wrong with the cut of the network. Raises `BadStudy` for unknown stages."""
    task, method = study.make_task(), study.build_method()
    with FakeTensorMode():
        model = task.build(study.seed)
    stages = task.stages(model)
    cut = cut_at(stages, cut=split.cut, back=split.back, labels=split.labels)
    bare = case_bytes(task, cut, study.elements.size, DTYPES["fp32"]).bare
    if bare:
        yield (
            f'topology.cut = "{split.cut}" would send the {bare[0]} itself to the server; '
            "cut after a stage that takes it in"
        )
    shared = sharing_filter(
        model, task.groups(model), method.sharing(), norm_buffers=study.training.norm_buffers
    )
    private = _staying(model, cut, shared)
    if private:
        yield (
            f"{_owner(private, task, model, method)} must stay at the site, and topology.cut = "
            f'"{split.cut}" puts it at the server (for example {private}); move the cut'
        )


def _staying(model: nn.Module, cut: Cut, shared: Filter) -> str:
    """Return the name of a tensor of the server's stages that must stay at a site, if any."""
    tensors = model.state_dict().items()
    names = [name for name, tensor in tensors if tensor.is_floating_point()]
    return next((name for name in names if cut.at_server(name) and not shared(name)), "")


def _owner(tensor: str, task: Task, model: nn.Module, method: Method) -> str:
    """Return a phrase for the group that keeps a tensor at the site, private groups first."""
    groups = [name for name, group in task.groups(model).items() if group(tensor)]
    private = [name for name in method.sharing().private if name in groups]
    return f"the group '{[*private, *(n for n in groups if n not in UNIONS)][0]}'"
