"""Everything that happens in a run is reported as a frozen event, in order.

Progress bars, tables, the report and trackers read these events, and nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, get_args


@dataclass(frozen=True)
class RunStarted:
    """A run begins with these sites, versions and device."""

    name: str
    arm: str
    seed: int
    rounds: int
    sites: tuple[str, ...]
    study: str  # SHA-256 of the resolved study
    version: str
    torch: str
    device: str
    precision: str
    threads: int
    title: str = ""  # of the method, for people


@dataclass(frozen=True)
class RunResumed:
    """A run continues after this round; earlier events of later rounds are superseded.

    `accepted` says what had changed since, and was accepted by whoever resumed the run.
    """

    round: int
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoundLost:
    """A saved round cannot be used, so the run goes on from an earlier one, to the same bits."""

    site: str  # whose state is lost, or "coordinator"
    round: int
    message: str


@dataclass(frozen=True)
class SiteJoined:
    """A site takes part from this round on, in a run that others began."""

    site: str
    round: int


@dataclass(frozen=True)
class SiteReady:
    """A site delivered the common data elements: counts only.

    `patients`, `sessions` and `slices` map a split to a count, `cases` a task to its slices per
    split.
    """

    site: str
    tasks: tuple[str, ...]
    patients: Mapping[str, int]
    sessions: Mapping[str, int]
    slices: Mapping[str, int]
    cases: Mapping[str, Mapping[str, int]]
    simulated: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroupPolicy:
    """One parameter group, and whether its tensors leave a site."""

    group: str
    policy: str  # "shared", "private", "partly shared" or "reset"
    tensors: int
    parameters: int


@dataclass(frozen=True)
class PolicySet:
    """Which parameter groups leave a site and which stay, decided before training."""

    groups: tuple[GroupPolicy, ...]
    norm_buffers: str
    bytes_per_round: int  # one site, both directions


@dataclass(frozen=True)
class TopologySet:
    """What a round transmits over all links, what determines its duration, and who sees what.

    `groups` counts the groups of sites that follow one another in a round, and `steps_in_a_row` the
    steps that a model takes so, as planned; 0 where files are not counted yet, or were not told.
    """

    kind: str
    bytes_per_round: int
    wall_clock: str
    sees: Mapping[str, str] = field(default_factory=dict[str, str])
    groups: int = 0
    steps_in_a_row: int = 0


@dataclass(frozen=True)
class WorkSet:
    """What one training step computes: forward and backward of a whole batch, on all networks."""

    parameters: int
    flops_per_step: int  # 2 for each multiplication with its addition, in convolutions and products


@dataclass(frozen=True)
class SiteTrained:
    """A site trained in one round.

    `bytes_full` are those of its update before guards touched it, 0 where it has none.
    """

    round: int
    site: str
    seconds: float
    examples: int
    steps: int
    bytes_up: int
    bytes_down: int
    losses: Mapping[str, float] = field(default_factory=dict[str, float])
    score: float | None = None  # validation score of the site's model, where the method asks for it
    bytes_full: int = 0
    epsilon: float | None = None  # of the run so far, where the study has differential privacy


@dataclass(frozen=True)
class SiteValidated:
    """A site computed its validation score of a round's aggregate (higher is better)."""

    round: int
    site: str
    seconds: float
    cases: int
    score: float
    bytes_down: int = 0
    bytes_up: int = 0


@dataclass(frozen=True)
class SiteMonitored:
    """A site scored the travelling model after another site's turn in a cycle."""

    round: int
    after: str
    site: str
    seconds: float
    cases: int
    score: float
    bytes_down: int = 0


@dataclass(frozen=True)
class SiteExchanged:
    """A site sent or received tensors outside training and scoring."""

    round: int
    site: str
    stage: str  # "merge", "adopt" or "split"
    seconds: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class SiteMissed:
    """A site did not answer and the quorum continued without it, or a leader failed."""

    site: str
    round: int
    stage: str
    error: str
    message: str
    hint: str
    trace: tuple[str, ...] = ()


@dataclass(frozen=True)
class SiteTuned:
    """A site fine-tuned the federation's model for itself."""

    round: int
    site: str
    seconds: float
    steps: int
    digest: str
    losses: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class UpdatesCompared:
    """The coordinator compared the sites' updates of a round, as the study asks.

    `cosines` maps a parameter group, a site and a later site of the roster to the cosine between
    their updates; a site that was absent, or moved nothing, has none.
    """

    round: int
    cosines: Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class UpdatesJudged:
    """The coordinator found updates of a round unusual, or left some out of what was averaged.

    `norms` maps each site to the L2 norm of its update; `unusual` those whose norm is far from the
    others' or from its own of earlier rounds to a sentence; `left_out` names those that multi-Krum
    did not choose.
    """

    round: int
    norms: Mapping[str, float]
    unusual: Mapping[str, str] = field(default_factory=dict[str, str])
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoundFinished:
    """The aggregate of a round is computed; it is saved next.

    `groups` are the sites that trained, in groups that followed one another, side by side within a
    group; empty in journals of older versions.
    """

    round: int
    digest: str
    score: float | None  # weighted validation score, if the round was validated
    best_round: int
    seconds: float
    groups: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class StoppedEarly:
    """The validation score did not improve for `patience` rounds."""

    round: int
    best_round: int


@dataclass(frozen=True)
class BudgetReached:
    """The privacy budget of this site's data allows no further round, which ends the training."""

    site: str
    round: int


@dataclass(frozen=True)
class Interrupted:
    """A person stopped the run after this round; it can be resumed."""

    round: int


@dataclass(frozen=True)
class Failed:
    """The run stopped because of an error."""

    site: str
    round: int
    stage: str
    error: str
    message: str
    hint: str
    trace: tuple[str, ...] = ()


@dataclass(frozen=True)
class SiteTested:
    """One site's test cases were scored with the model of `round`."""

    round: int
    site: str
    seconds: float
    cases: int
    summary: Mapping[str, float] = field(default_factory=dict[str, float])  # metric -> patient mean


@dataclass(frozen=True)
class RunFinished:
    """The run is complete."""

    round: int
    best_round: int
    digest: str
    seconds: float
    peak_memory: int  # bytes, of this process


Event: TypeAlias = (
    RunStarted
    | RunResumed
    | SiteReady
    | PolicySet
    | TopologySet
    | WorkSet
    | SiteTrained
    | SiteValidated
    | SiteMonitored
    | SiteExchanged
    | SiteMissed
    | SiteTuned
    | RoundFinished
    | StoppedEarly
    | BudgetReached
    | Interrupted
    | Failed
    | SiteTested
    | RunFinished
    | RoundLost
    | SiteJoined
    | UpdatesCompared
    | UpdatesJudged
)
Listener: TypeAlias = Callable[[Event], None]
EVENT_KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(Event)}
