"""A run's plan is made here before anything trains, and its memory and traffic are estimated."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from grandrounds.algorithms import TOPOLOGIES
from grandrounds.algorithms.aggregation import MEASURED
from grandrounds.algorithms.cyclic import Cyclic
from grandrounds.algorithms.method import Method
from grandrounds.algorithms.sharing import (
    describe_sharing,
    group_names,
    sharing_filter,
    trained_groups,
)
from grandrounds.algorithms.split import Split
from grandrounds.algorithms.topology import CutTraffic, RoundLoad
from grandrounds.core.device import choose_device, choose_precision, physical_memory, weights_dtype
from grandrounds.core.errors import BadStudy
from grandrounds.core.events import PolicySet, TopologySet, WorkSet
from grandrounds.core.names import POOLED
from grandrounds.core.weights import Filter, Weights, num_bytes, select
from grandrounds.models.layer_groups import NamedNetwork
from grandrounds.privacy.guard import bytes_of, layout_of
from grandrounds.runs.site_privacy import lots_per_round, privacy_words, simulated_patients
from grandrounds.site.cut import case_bytes, cut_model
from grandrounds.site.training import Training, isolated_rng
from grandrounds.study.checks import complete, guard_words, how_often
from grandrounds.study.study import Choice, SiteSpec, Study
from grandrounds.tasks import Segmentation, SupervisedTask, Tabular
from grandrounds.tasks.outside import Outside, without_loss, without_weights
from grandrounds.tasks.supervised import PROBED, BoundTask
from grandrounds.tasks.task import Batch, Task

_STEP = 4  # bytes of Adam's step counter, one a parameter
PROBE = 64  # side in pixels of the example on which activations are counted
PROCESS = 720 * 2**20  # the libraries and their buffers; measured 0.65 GiB for the smallest study
_LETTER = 2**24  # bytes of a letter beside its tensors: names, and the score of every test case
_CROSSING = 2**31  # bytes of a batch at a cut
META = torch.device("meta")


@dataclass(frozen=True)
class RunPlan:
    """What a study trains: its task, its method, its model, and which of its tensors leave a site.

    The model is as the task builds it, until a run puts it on its device and trains it.
    """

    study: Study
    task: Task
    method: Method
    model: nn.Module
    travels: Filter

    @property
    def policy(self) -> PolicySet:
        """Return which parameter groups are shared, private or reset."""
        policy = describe_sharing(
            self.model,
            self.task.groups(self.model),
            self.travels,
            norm_buffers=self.study.training.norm_buffers,
            validate_every=self.study.stop.validate_every,
        )
        return replace(policy, bytes_per_round=policy.bytes_per_round - saved_bytes(self))

    @property
    def compared(self) -> Mapping[str, frozenset[str]]:
        """Return the tensors by parameter group in which the sites' updates can be compared."""
        return trained_groups(self.model, self.task.groups(self.model), self.travels)


def update_bytes(plan: RunPlan) -> list[tuple[int, int]]:
    """Return the bytes of each site's update in a round, without guards and with the study's."""
    method = plan.method
    shared = select(plan.model.state_dict(), plan.travels)
    full = [layout_of(method.averaging.of_site(shared, name)) for name in plan.study.trainers]
    return [(bytes_of(each), bytes_of(method.guards.layout(each))) for each in full]


def saved_bytes(plan: RunPlan) -> int:
    """Return how many bytes of a site's update guards save, on average over the sites."""
    by_site = update_bytes(plan)
    return sum(full - guarded for full, guarded in by_site) // len(by_site)


def plan_run(study: Study, **new_sites: tuple[str, ...]) -> RunPlan:
    """Build what a study trains, and check that its parts fit.

    `new_sites` maps sites that the study does not have to their tasks. Raises `BadStudy`.
    """
    task, method = study.make_task(**new_sites), study.build_method()
    model = task.build(study.seed)
    if isinstance(task, BoundTask) and isinstance(model, NamedNetwork):
        task.check_works(model, study.elements.size)
    travels = sharing_filter(
        model, task.groups(model), method.sharing(), norm_buffers=study.training.norm_buffers
    )
    averaging = method.averaging
    if any(_leaves_out(task.uses(name), model, travels) for name in study.trainers):
        averaging = replace(averaging, uses=task.uses)
        _check_all_sent(method)
    if study.server_rate == MEASURED:
        averaging = replace(averaging, groups=group_names(model, task.groups(model)))
    method = replace(method, averaging=averaging)
    return RunPlan(study, task, method, model, travels)


def _check_all_sent(method: Method) -> None:
    """Refuse guards for which every site must send every tensor. Raises `BadStudy`."""
    for guard in method.guards.steps:
        if reason := guard.needs().get("all tensors"):
            raise BadStudy(
                f"{guard.word} makes no sense where some site does not use all of the network that "
                f"is shared: {reason}"
            )


def _leaves_out(uses: Filter, model: nn.Module, travels: Filter) -> bool:
    """Tell whether a site does not use some tensor that is shared."""
    return any(travels(name) and not uses(name) for name in model.state_dict())


@dataclass(frozen=True)
class Estimate:
    """The memory of one process that simulates all sites, in bytes, and the traffic of a run.

    `update` and `update_full` are a site's update of a round with the study's guards and without.
    `weights`: the model, its gradients, Adam's moments, the state of the coordinator and of one
    site; `activations`: what autograd saves for one batch, in fp32; an upper bound.
    """

    policy: PolicySet
    topology: TopologySet
    rounds: int
    weights: int
    activations: int
    update: int
    update_full: int

    @property
    def memory(self) -> int:
        return PROCESS + self.weights + self.activations

    @property
    def bytes_per_round(self) -> int:
        """Return the bytes that are sent in a round over all links."""
        return self.topology.bytes_per_round

    @property
    def bytes_per_run(self) -> int:
        return self.bytes_per_round * self.rounds


def estimate(plan: RunPlan) -> Estimate:
    """Estimate what a study costs from its model, and one batch without data."""
    study = plan.study
    full, guarded = zip(*update_bytes(plan), strict=True)
    return Estimate(
        policy=plan.policy,
        topology=round_cost(plan, study),
        rounds=study.rounds,
        weights=8 * num_bytes(plan.model.state_dict()),
        activations=_activations(plan),
        update=sum(guarded) // len(guarded),
        update_full=sum(full) // len(full),
    )


def check_memory(plan: RunPlan, *, processes: int = 1) -> None:
    """Refuse a study that this machine's memory cannot hold. Raises `BadStudy`."""
    study = plan.study
    need, have = processes * estimate(plan).memory, physical_memory()
    if need > have:
        own = isinstance(study.task, SupervisedTask)
        size = "" if own else f"elements.size = {list(study.elements.size)} with "
        raise BadStudy(
            f"{size}training.batch_size = {study.training.batch_size} needs about "
            f"{need / 2**30:.0f} GiB{_in(processes)}, but this machine has {have / 2**30:.0f} GiB; "
            "choose a smaller size, network or batch"
        )


def _in(processes: int) -> str:
    return f" in {processes} processes" if processes > 1 else ""


def _activations(plan: RunPlan) -> int:
    """Add up what autograd saves for a small batch, scaled to the study's pixels and batch."""
    if _is_from_outside(plan.study):
        return _activations_without_data(plan)
    model = deepcopy(plan.model).train()  # a copy: a forward pass changes the running statistics
    saved = _saved(plan.task, model, _probe(plan))
    (height, width), batch = plan.study.elements.size, plan.study.training.batch_size
    if isinstance(plan.task, BoundTask):
        return saved * batch // PROBED
    return saved * batch * height * width // PROBE**2


def _activations_without_data(plan: RunPlan) -> int:
    """Add up what autograd saves for one example of a network from outside, at its true size.

    Such a network may take no other, and a pass at full size would cost what a step does.
    """
    task, model = _without_data(plan)
    one = {name: _tiled(tensor, 1) for name, tensor in task.blank(_pixels(plan.study)).items()}
    return _saved(task, model, one) * plan.study.training.batch_size


def _saved(task: Task, model: nn.Module, batch: Batch) -> int:
    """Return the bytes of all that autograd saves for a batch, but for the parameters."""
    parameters = {_memory_of(parameter) for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = _memory_of(tensor)
        if place not in parameters:
            saved[place] = max(tensor.nbytes, saved.get(place, 0))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = [loss for _, loss in task.losses(model, batch)]
    assert losses, (
        "the graphs must live until all is counted, or freed memory would be counted twice"
    )
    return sum(saved.values())


def _memory_of(tensor: Tensor) -> int:
    """Return where a tensor's numbers lie; on the meta device there are none, only a storage."""
    return tensor.untyped_storage()._cdata if tensor.is_meta else tensor.data_ptr()  # pyright: ignore[reportPrivateUsage]


def _is_from_outside(study: Study) -> bool:
    return isinstance(study.task, Outside) and bool(study.task.network)


def _without_data(plan: RunPlan) -> tuple[Task, nn.Module]:
    """Return a task and its model without numbers, to count what training costs.

    A loss from outside may read numbers; the task's own costs next to nothing, too.
    """
    study, task = plan.study, plan.task
    if isinstance(study.task, Outside) and study.task.loss:
        task = replace(study, task=without_loss(study.task)).make_task()
    with META:
        return task, task.build(study.seed).train()


def _pixels(study: Study) -> tuple[int, int]:
    """Return the rows and columns of what is counted: of a slice, or of a patch."""
    if isinstance(study.task, Segmentation) and study.task.dims == 3 and study.task.network:
        return study.task.patch[1], study.task.patch[2]
    rows, columns = study.elements.size
    return rows, columns


def _probe(plan: RunPlan) -> Batch:
    """Return an example of few pixels; of a task of one's own two, whose size is its own to say."""
    if isinstance(plan.task, BoundTask):
        return plan.task.probe(plan.study.elements.size)
    return plan.task.blank((PROBE, PROBE))


def leaving_words(study: Study) -> tuple[str, ...]:
    """Say what leaves each site of a study, to whom and how often; a site signs this."""
    plan = plan_run(study)
    cost = estimate(plan)
    shared = [g for g in cost.policy.groups if g.policy not in ("private", "reset", "fixed")]
    groups = ", ".join(f"{g.group} ({g.parameters:,} parameters)" for g in shared) or "none"
    mib = cost.bytes_per_round / len(study.trainers) / 2**20
    return (
        f"in each of {study.rounds} rounds, about {mib:,.1f} MiB both ways: the groups {groups}",
        *beside_words(plan),
        *guard_words(study),
        *privacy_words(study),
        *(f"seen by {who}: {what}" for who, what in cost.topology.sees.items()),
        *_cosine_words(plan),
        *_protocol_words(plan),
        f"the mean of its validation scores {how_often(study.stop.validate_every)}",
        f"in the end the scores of each test case ({study.task.metric} and others), by pseudonyms; "
        "never the score of a training case",
        "counts of patients, sessions and slices; if something fails, its failure card",
        statistics_words(study),
        "no image, no path, no name of a patient",
    )


def statistics_words(study: Study) -> str:
    """Say what statistics leave a site that is asked for them; without these words none do."""
    return (
        "before the training, if asked (federation check), statistics of at least "
        f"{study.elements.least} people each and in multiples of it: how many have each contrast, "
        "mask, variable and task, and how many miss an element; distributions of spacing, size, "
        "acquisition, sessions, variables, volumes of masks and intensities; no person's value"
    )


def _cosine_words(plan: RunPlan) -> tuple[str, ...]:
    every = plan.study.aggregation.cosines_every
    if not every:
        return ()
    return (
        f"computed of its updates by the coordinator {how_often(every)}, stored in the run folder "
        "and shown in the report: the cosine with the update of every other site, a number for "
        f"each of the groups {', '.join(plan.compared)}",
    )


def _protocol_words(plan: RunPlan) -> tuple[str, ...]:
    """Say what others may learn of how a site scans, where its network reads that."""
    if not plan.study.reads_protocols:
        return ()
    mapper = plan.task.groups(plan.model)["mapper"]
    names = [name for name, _ in plan.model.named_parameters() if mapper(name)]
    told = "how its volumes were scanned (times, angles, field) stays there"
    if any(map(plan.travels, names)):
        told += "; the mapper that reads it travels, and from its changes it may be guessed"
    if isinstance(plan.study.build_topology(), Split):
        told += "; what the mapper makes of it crosses the cut with every batch"
    return (told,)


def beside_words(plan: RunPlan) -> tuple[str, ...]:
    """Say what travels beside the model: the method's named sets, and the optimiser's state."""
    sharing = plan.method.sharing()
    beside = [f"beside the model it sends: {name}" for name in sharing.sends]
    beside += [f"beside the model it is sent: {name}" for name in sharing.receives]
    if plan.study.build_topology().moments_travel:
        beside.append("the optimiser's state travels with the model")
    return tuple(beside)


def largest_letter(study: Study) -> int:
    """Return how many bytes a letter between two parties of a study may have, at most.

    A letter holds a model with its optimiser's state and what a method adds: of each site once, at
    most. Over a cut network it holds a batch, whose activations may be larger than the weights.
    """
    if isinstance(study.task, Outside):  # a party that lacks the file says so once it is opened
        study = replace(study, task=without_weights(study.task))
    plan = plan_run(study)
    model, sites = num_bytes(plan.model.state_dict()), len(plan.study.trainers)
    crossing = _CROSSING if isinstance(plan.study.build_topology(), Split) else 0
    return (4 + sites) * model + crossing + _LETTER


def topologies(plan: RunPlan) -> Mapping[str, TopologySet | str]:
    """Map each topology to what a round costs and who sees what, or why the study cannot use it.

    The study's own is counted with its options, the others with their defaults.
    """
    study = plan.study
    choices = {kind: Choice(kind) for kind in TOPOLOGIES} | {study.topology.kind: study.topology}
    by_kind: dict[str, TopologySet | str] = {}
    for kind, choice in choices.items():
        try:
            chosen = complete(replace(study, topology=choice))
        except BadStudy as refusal:
            by_kind[kind] = str(refusal)
        else:
            by_kind[kind] = round_cost(plan, chosen)
    return by_kind


def round_cost(plan: RunPlan, study: Study) -> TopologySet:
    """Return what a round costs and who sees what over the topology of a study.

    That is the plan's own study, or one that differs from it in the topology alone.
    """
    method, topology = plan.method, study.build_topology()
    shared = select(plan.model.state_dict(), plan.travels)
    sharing = method.sharing()
    site_bytes = [num_bytes(method.averaging.of_site(shared, name)) for name in study.trainers]
    sites, one_way = 1 if sharing.pooled else len(site_bytes), sum(site_bytes) // len(site_bytes)
    load = RoundLoad(
        sites,
        one_way,
        validations=1 / study.stop.validate_every,
        crossing=cut_traffic(plan, topology) if isinstance(topology, Split) else None,
        extra_up=len(sharing.sends) * one_way - saved_bytes(plan),
        extra_down=len(sharing.receives) * one_way * (sites if sharing.shows_updates else 1),
        reveals=sharing.shows_updates,
        masked=method.guards.masks,
    )
    account = topology.account(load)
    steps = sorted(planned_steps(study).values(), reverse=True)
    return TopologySet(
        study.topology.kind,
        account.bytes_per_round,
        account.wall_clock,
        account.sees,
        groups=account.groups,
        steps_in_a_row=sum(steps[: account.groups]),
    )


def planned_steps(study: Study) -> dict[str, int]:
    """Map each site that trains to its steps of a round; empty where files are not counted yet.

    Steps that a method takes beside those of all methods are not among them.
    """
    topology, sites = study.build_topology(), study.trainers
    if isinstance(topology, Cyclic) and topology.turn == "steps":
        return {} if topology.proportional else dict.fromkeys(sites, topology.length)
    if study.privacy.kind == "record":
        return {n: lots_per_round(study, count) for n, count in simulated_patients(study).items()}
    examples = _examples(study)
    if study.build_method().sharing().pooled and examples:
        examples = {POOLED: sum(examples.values())}
    length = topology.length if isinstance(topology, Cyclic) else 0
    epochs, batch = length or study.training.epochs, study.training.batch_size
    return {site: epochs * ceil(number / batch) for site, number in examples.items()}


def _examples(study: Study) -> dict[str, int]:
    """Count the examples of each site that trains; none where data are not simulated slices."""
    volumes = isinstance(study.task, Segmentation) and study.task.dims == 3
    sites = [site for site in study.site if site.name in study.trainers]
    if volumes or any(site.data != "simulated" for site in sites):
        return {}
    return {site.name: _counted(study, site, site.patients.train) for site in sites}


def cut_traffic(plan: RunPlan, topology: Split) -> CutTraffic:
    """Compute the bytes that cross the cut, training in the study's precision."""
    training, size = plan.study.training, plan.study.elements.size
    task, model = plan.task, plan.model
    cut = cut_model(topology, task, model)
    precision = choose_precision(training.precision, choose_device(training.device))
    trained = case_bytes(task, cut, size, precision)
    scored = case_bytes(task, cut, size, weights_dtype(precision))
    part = select(model.state_dict(), cut.at_site(plan.travels))
    parameters = {name for name, _ in model.named_parameters()}
    cases, validated = _cases(plan.study)
    return CutTraffic(
        up=trained.up,
        down=trained.down,
        labels=trained.labels,
        scored=sum(scored.up.values()) + scored.down,
        batch_size=training.batch_size,
        part=num_bytes(part),
        moments=_moments(training, {n: t for n, t in part.items() if n in parameters}),
        cases=cases,
        validated=validated,
    )


def _cases(study: Study) -> tuple[int, int]:
    """Count the examples that a round trains and validates on; 0 where data are not simulated."""
    if any(site.data != "simulated" for site in study.site):
        return 0, 0
    sites = [site for site in study.site if site.name in study.trainers]
    trained = sum(_counted(study, site, site.patients.train) for site in sites)
    scored = [_counted(study, s, s.patients.validation) * len(s.tasks) for s in sites]
    return study.training.epochs * trained, sum(scored)


def _counted(study: Study, site: SiteSpec, patients: int) -> int:
    """Count examples: rows of a table, slices of everything else."""
    return patients if isinstance(study.task, Tabular) else patients * site.slices


def _moments(training: Training, parameters: Weights) -> int:
    """Return the bytes of the optimiser's state for these parameters."""
    if training.optimizer == "adam":
        return 2 * num_bytes(parameters) + _STEP * len(parameters)
    return num_bytes(parameters) if training.momentum else 0


def workload(plan: RunPlan) -> WorkSet:
    """Count the parameters, and the floating-point operations of a step on a whole batch."""
    if isinstance(plan.task, BoundTask):
        return _work_of_own(plan, plan.task)
    task, model = _without_data(plan)
    return _counted_work(plan, task, model, _batch(plan.study, task))


def _work_of_own(plan: RunPlan, task: BoundTask) -> WorkSet:
    """Compute a small batch, as the functions of a task of one's own may need real tensors."""
    study = plan.study
    with isolated_rng(study.seed):
        model = task.build(study.seed).train()
        work = _counted_work(plan, task, model, task.probe(study.elements.size))
    return replace(work, flops_per_step=work.flops_per_step * study.training.batch_size // PROBED)


def _counted_work(plan: RunPlan, task: Task, model: nn.Module, batch: Batch) -> WorkSet:
    with FlopCounterMode(display=False) as counter:
        for _, loss in task.losses(model, batch):
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
    return WorkSet(sum(p.numel() for p in plan.model.parameters()), counter.get_total_flops())


def _batch(study: Study, task: Task) -> Batch:
    blank, cases = task.blank(_pixels(study)), study.training.batch_size
    return {name: _tiled(tensor, cases) for name, tensor in blank.items()}


def _tiled(tensor: Tensor, cases: int) -> Tensor:
    """Repeat an example on the meta device; integers stay real tensors, since losses read them."""
    batch = tensor.expand(cases, *tensor.shape[1:])
    return batch.to(META) if batch.is_floating_point() else batch
