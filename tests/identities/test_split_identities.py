"""What a network in two parts must equal: rows 9, 10 and 11, for every task and every cut."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grandrounds.core.messages import Evaluate, Reply
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.runs.build import Federation
from grandrounds.tasks import TASKS
from tests.helpers import task_studies as kinds
from tests.helpers.federation import Spy, assert_trained, built, model_of, played
from tests.helpers.grids import with_representatives
from tests.helpers.task_studies import tiny_of

pytestmark = pytest.mark.slow

ROUNDS = 2
KINDS = tuple(kind for kind in kinds.KINDS if kind in TASKS)
LABELLED = tuple(kind for kind in KINDS if kind != "synthesis")  # its critics need the images
FEDAVG = ("method.kind=fedavg", "training.precision=fp32")


def stages(kind: str) -> tuple[str, ...]:
    """The names of a task's stages."""
    study = tiny_of(kind, *FEDAVG)
    task = study.make_task()
    return tuple(task.stages(task.build(study.seed)))


def split(kind: str, *options: str) -> tuple[str, ...]:
    """Split before the third stage, unless the options say otherwise."""
    return ("topology.kind=split", f"topology.cut={stages(kind)[2]}", *options)


CUTS = [(kind, cut, "") for kind in KINDS for cut in stages(kind)[1:]]
CUTS += [(kind, cut, stages(kind)[-1]) for kind in KINDS for cut in stages(kind)[1:-1]]
REPRESENTATIVES = (  # each task; the cut in encoder and decoder, with the end at the site or not
    ("synthesis", "encoder.2", ""),
    ("synthesis", "decoder.1", "decoder.2"),
    ("segmentation", "decoder_0", ""),
    ("classification", "features_1", "classifier"),
)


def trained(
    folder: Path, kind: str, *options: str, sites: int = 1
) -> tuple[Federation[InProcessEngine], dict[str, Tensor]]:
    """A federation after some rounds, and the models that it came to, all parts moved."""
    federation = built(tiny_of(kind, *FEDAVG, *options, sites=sites), folder)
    state = played(federation, ROUNDS)[-1].state
    models: dict[str, Tensor] = {}
    for site in federation.sites.sites:
        own = model_of(site, state)
        assert_trained(site.first_weights(), own)
        # The server counts the batches of its own batch norms; nobody sends counters.
        floating = {name: tensor for name, tensor in own.items() if tensor.is_floating_point()}
        models |= {f"{site.name}/{name}": tensor for name, tensor in floating.items()}
    return federation, models


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_u_shaped", [False, True])
def test_row_9_handing_the_sites_part_on_is_the_cycle(tmp_path: Path, kind: str, is_u_shaped: bool):
    """The server's part, both optimisers' states and private critics included."""
    travels = ("topology.kind=cyclic", "topology.optimizer=travels")
    _, cyclic = trained(tmp_path / "cyclic", kind, *travels, sites=3)
    back = [f"topology.back={stages(kind)[-1]}"] if is_u_shaped and len(stages(kind)) > 3 else []
    _, handed_on = trained(tmp_path / "split", kind, *split(kind, *back), sites=3)
    assert_equal(handed_on, cyclic)


@pytest.mark.parametrize(("kind", "cut", "back"), with_representatives(CUTS, REPRESENTATIVES))
def test_row_10_a_split_network_of_one_site_is_the_unsplit_network(
    tmp_path: Path, kind: str, cut: str, back: str
):
    _, whole = trained(tmp_path / "star", kind)
    where = (f"topology.cut={cut}", f"topology.back={back}")
    _, halves = trained(tmp_path / "split", kind, "topology.kind=split", *where)
    assert_equal(halves, whole)


@pytest.mark.parametrize("kind", LABELLED)
def test_row_10_holds_with_the_labels_at_the_server(tmp_path: Path, kind: str):
    _, whole = trained(tmp_path / "star", kind)
    federation, halves = trained(tmp_path / "split", kind, *split(kind, "topology.labels=server"))
    assert_equal(halves, whole)
    [told] = played(federation, 1)[-1].replies
    [loss] = played(built(tiny_of(kind, *FEDAVG, sites=1), tmp_path / "told"), 1)[-1].replies
    assert dict(told.metrics) == pytest.approx(dict(loss.metrics), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        ("task.norm=batch",),
        ("training.optimizer=sgd", "training.momentum=0.9", "training.learning_rate=0.01"),
        ("training.epochs=2", "training.reset_optimizer=true"),
    ],
)
def test_row_10_holds_for_batch_norm_and_every_optimiser(tmp_path: Path, options: tuple[str, ...]):
    _, whole = trained(tmp_path / "star", "synthesis", *options)
    _, halves = trained(tmp_path / "split", "synthesis", *split("synthesis"), *options)
    assert_equal(halves, whole)


PERSONAL = (
    "task.generator=personalised",
    "method.kind=pflsynth",
    'method.share=["mapper","bottleneck_late","decoder","personal"]',
)


@pytest.mark.parametrize("back", ["", "decoder.1"])
def test_row_10_holds_where_styles_cross_the_cut_and_the_encoder_is_private(
    tmp_path: Path, back: str
):
    cut = ("topology.kind=split", "topology.cut=bottleneck_late.0", f"topology.back={back}")
    _, whole = trained(tmp_path / "star", "synthesis", *PERSONAL)
    _, halves = trained(tmp_path / "split", "synthesis", *PERSONAL, *cut)
    assert_equal(halves, whole)


@pytest.mark.parametrize("variant", ["splitfed1", "splitfed2"])
@pytest.mark.parametrize("kind", KINDS)
def test_row_11_splitfed_of_one_site_is_the_unsplit_network(
    tmp_path: Path, kind: str, variant: str
):
    _, whole = trained(tmp_path / "star", kind)
    _, halves = trained(tmp_path / "split", kind, *split(kind, f"topology.variant={variant}"))
    assert_equal(halves, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_splitfed_on_copies_is_fedavg_for_any_number_of_sites(tmp_path: Path, kind: str):
    """Each site's copy of the server's part, with its optimiser's state, is that site's own."""
    _, star = trained(tmp_path / "star", kind, sites=3)
    options = split(kind, "topology.variant=splitfed1")
    _, copies = trained(tmp_path / "split", kind, *options, sites=3)
    assert_equal(copies, star)


def test_one_server_part_for_all_differs_from_copies_of_it(tmp_path: Path):
    """Row 11 would hold for one variant under two names, too."""
    both = [
        trained(tmp_path / v, "synthesis", *split("synthesis", f"topology.variant={v}"), sites=2)[1]
        for v in ("splitfed1", "splitfed2")
    ]
    assert any(not torch.equal(tensor, both[1][name]) for name, tensor in both[0].items())


@pytest.mark.parametrize("variant", ["sequential", "splitfed1", "splitfed2"])
def test_no_critic_no_target_and_no_source_ever_reaches_the_coordinator(
    tmp_path: Path, variant: str
):
    study = tiny_of("synthesis", *FEDAVG, *split("synthesis", f"topology.variant={variant}"))
    federation = built(study, tmp_path)
    spy = Spy(federation.sites)
    outcome = federation.topology.round(federation.start, spy, federation.method)
    orders = evaluations(spy.names, outcome.state.weights, since=1)
    federation.topology.evaluate(spy, orders)
    sent = {name for reply in spy.replies for name in reply.weights}
    assert {"cut/features", "cut/output"} <= sent
    assert not [name for name in sent if "critic" in name or name.startswith("label/")]
    assert {t.shape[1:] for r in spy.replies for t in features(r)} == {(16, 16, 16)}
    got = {name for _, request in spy.asked for name in getattr(request, "weights", {})}
    assert not [name for name in got if name.startswith("generator.") and held(federation, name)]


def features(reply: Reply) -> list[Tensor]:
    """What a reply sent up through the cut, images among it if there were any."""
    return [t for name, t in reply.weights.items() if name == "cut/features"]


def held(federation: Federation[InProcessEngine], name: str) -> bool:
    """Whether a tensor lies at the server."""
    cut = federation.sites.sites[0].cut
    assert cut is not None
    return cut.at_server(name)


def evaluations(
    names: tuple[str, ...], weights: dict[str, Tensor], *, since: int
) -> dict[str, Evaluate]:
    """Ask for every test case's score."""
    order = Evaluate(round=since, since=since, split="test", cases=True, weights=weights)
    return dict.fromkeys(names, order)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_u_shaped", [False, True])
def test_scores_through_the_cut_are_those_of_the_whole_model(
    tmp_path: Path, kind: str, is_u_shaped: bool
):
    back = [f"topology.back={stages(kind)[-1]}"] if is_u_shaped and len(stages(kind)) > 3 else []
    halves = built(tiny_of(kind, *FEDAVG, *split(kind, *back), sites=2), tmp_path / "split")
    weights = played(halves, 1)[-1].state.weights
    whole = built(tiny_of(kind, *FEDAVG, sites=2), tmp_path / "star")
    through = halves.topology.evaluate(
        halves.sites, evaluations(halves.sites.names, weights, since=1)
    )
    straight = whole.topology.evaluate(
        whole.sites, evaluations(whole.sites.names, weights, since=0)
    )
    for one, other in zip(through, straight, strict=True):
        assert one.cases == other.cases > 0
        assert dict(one.metrics) == pytest.approx(dict(other.metrics), rel=1e-5)
        bare = [replace(score, values={}) for score in one.scores]
        assert bare == [replace(score, values={}) for score in other.scores]
        for mine, theirs in zip(one.scores, other.scores, strict=True):
            assert dict(mine.values) == pytest.approx(dict(theirs.values), rel=1e-4)
