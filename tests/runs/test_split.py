"""Split learning: its bytes, its events, its messages, and that a run can stop and go on."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from grandrounds.algorithms.policy import CUT
from grandrounds.algorithms.split import Split
from grandrounds.core.errors import BadStudy, RunFailed
from grandrounds.core.events import Event, RoundFinished, SiteTested, SiteTrained, SiteValidated
from grandrounds.core.messages import Backward, Forward, Tail
from grandrounds.core.weights import digest
from grandrounds.data.simulation.simulate import Patients
from grandrounds.runs.costs import estimate, plan_run
from grandrounds.runs.loop import run_study as run
from grandrounds.site.cut import backpropagate, cut_at, leaf_gradients, leaves_from
from grandrounds.site.model_state import SiteStore
from grandrounds.study.file import read_study
from grandrounds.study.study import Study
from tests.helpers.federation import TINY, Spy, built, digests, played, rows, stopped, tiny
from tests.helpers.task_studies import tiny_of

pytestmark = pytest.mark.slow

SPLIT = ("method.kind=fedavg", "topology.kind=split", "topology.cut=encoder.2")
FP32 = "training.precision=fp32"
VARIANTS = ("sequential", "splitfed1", "splitfed2")


def split(*options: str, sites: int = 2) -> Study:
    """The tiny study over a cut."""
    return tiny(*SPLIT, FP32, *options, sites=sites)


def outlines(*options: str, sites: int = 2) -> Study:
    """The tiny segmentation study, whose U-Net has one skip, over a cut below it."""
    cut = ("topology.kind=split", "topology.cut=decoder_0")
    return tiny_of("segmentation", FP32, *cut, *options, sites=sites)


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_and_resumed_a_split_run_comes_to_the_same_bits(tmp_path: Path, variant: str):
    study = split(f"topology.variant={variant}")
    run(study, tmp_path / "whole")

    def in_round_2(event: Event) -> bool:
        return isinstance(event, SiteTrained) and event.round == 2

    stopped(study, tmp_path / "stopped", in_round_2)
    assert run(study, tmp_path / "stopped", resume=True).round == 3
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")
    assert rows(tmp_path / "stopped" / "scores.csv") == rows(tmp_path / "whole" / "scores.csv")


def test_sites_in_other_processes_change_no_bit(tmp_path: Path):
    study = split()
    run(study, tmp_path / "one")
    run(study, tmp_path / "two", workers=2)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


@pytest.mark.parametrize(
    "study",
    [
        *(split(f"topology.variant={variant}") for variant in VARIANTS),
        split("topology.back=decoder.2", "training.epochs=2", "stop.validate_every=2"),
        outlines(),
        outlines("topology.labels=server"),
    ],
    ids=[*VARIANTS, "U-shaped", "outlines", "labels"],
)
def test_a_round_moves_as_many_bytes_as_were_counted_before(tmp_path: Path, study: Study):
    run(study, tmp_path)
    second = [row for row in rows(tmp_path / "rounds.csv") if row["round"] == "2"]
    moved = sum(int(row["bytes_up"]) + int(row["bytes_down"]) for row in second)
    every = replace(study, stop=replace(study.stop, validate_every=1))
    assert moved == estimate(plan_run(every)).bytes_per_round


def test_the_account_names_the_skips_of_a_u_net():
    sees = estimate(plan_run(outlines())).topology.sees["server"]
    assert "(a batch: features 32.0 KiB, skip_0 64.0 KiB); the network's output" in sees
    labels = estimate(plan_run(outlines("topology.labels=server"))).topology.sees["server"]
    assert "skip_0 64.0 KiB, labels 48.0 KiB" in labels
    back = estimate(plan_run(outlines("topology.cut=bottleneck", "topology.back=output")))
    assert "output" not in back.topology.sees["server"]


def test_of_files_that_are_not_read_yet_one_batch_a_site_is_counted():
    study = split()
    unread = replace(study, site=tuple(replace(s, data="files") for s in study.site))
    found = estimate(plan_run(unread)).topology
    assert "a round's bytes count one batch a site" in found.sees["server"]
    assert 0 < found.bytes_per_round < estimate(plan_run(study)).bytes_per_round


def test_every_site_tells_once_a_round_that_it_trained_and_was_scored(tmp_path: Path):
    told: list[Event] = []
    run(split("topology.variant=splitfed2"), tmp_path, listeners=[told.append])
    for kind in (SiteTrained, SiteValidated):
        events = [(e.round, e.site) for e in told if isinstance(e, kind)]
        assert sorted(events) == [(r, s) for r in (1, 2, 3) for s in ("alder", "birch")]
    trained = next(e for e in told if isinstance(e, SiteTrained))
    assert trained.steps == 2
    assert {"generator"} < trained.losses.keys()
    assert min(trained.losses.values()) > 0
    assert len([e for e in told if isinstance(e, SiteTested)]) == 2


def test_a_site_shows_the_pictures_that_the_whole_model_would_show(tmp_path: Path):
    """A cycle with travelling optimiser state comes to the same model."""
    options = ("topology.kind=cyclic", "topology.optimizer=travels")
    run(tiny("method.kind=fedavg", FP32, *options, sites=2), tmp_path / "whole")
    run(split(), tmp_path / "split")
    for site in ("alder", "birch"):
        whole, halves = (panels(tmp_path / arm, site) for arm in ("whole", "split"))
        assert whole.keys() == halves.keys()
        for name, array in whole.items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(halves[name], array, atol=1e-5)
            else:
                assert halves[name] == array


def panels(folder: Path, site: str) -> dict[str, np.ndarray]:
    with np.load(folder / "sites" / site / "panels.npz") as file:
        return dict(file)


def test_a_site_without_validation_cases_is_scored_on_none(tmp_path: Path):
    study = split(sites=1)
    patients = Patients(train=2, validation=0, test=1)
    study = replace(study, site=(replace(study.site[0], patients=patients),))
    state = run(study, tmp_path)
    assert state.best_round == 3
    assert rows(tmp_path / "scores.csv")


def test_sites_take_turns_in_an_order_drawn_each_round_where_they_share_one_server_part(
    tmp_path: Path,
):
    drawn = turns(tmp_path / "drawn", "splitfed2")
    assert len(set(drawn)) > 1
    assert turns(tmp_path / "again", "splitfed2") == drawn
    assert set(turns(tmp_path / "fixed", "sequential")) == {("alder", "birch", "cedar")}


def turns(folder: Path, variant: str) -> list[tuple[str, ...]]:
    """Who begins a turn in each round, in order."""
    federation = built(split(f"topology.variant={variant}", sites=3), folder)
    state, found = federation.start, list[tuple[str, ...]]()
    for _ in range(4):
        spy = Spy(federation.sites)
        state = federation.topology.round(state, spy, federation.method).state
        begun = [n for n, r in spy.asked if isinstance(r, Forward) and r.step == 0]
        found.append(tuple(begun))
    return found


def test_dropout_differs_from_batch_to_batch_and_not_from_run_to_run(tmp_path: Path):
    federation = built(split("task.dropout=0.5", sites=1), tmp_path)
    assert isinstance(federation.topology, Split)
    server = federation.topology.server
    assert server is not None
    server.load(federation.start.weights, {}, 1)
    came = {f"{CUT}features": torch.ones(1, 16, 16, 16)}
    first, again, other = (server.forward(came, "alder", 1, batch) for batch in (0, 0, 1))
    assert digest(first) == digest(again) != digest(other)


def test_a_site_keeps_only_what_is_its_own_of_a_split_network(tmp_path: Path):
    federation = built(split(sites=1), tmp_path)
    state = played(federation, 1)[-1].state
    [site] = federation.sites.sites
    private = SiteStore(site.folder).private.load(1)[0]
    assert not [name for name in private if "bottleneck" in name or "decoder" in name]
    assert [name for name in private if name.startswith("critics.")]
    assert not [name for name in state.weights if "critics" in name]


def test_a_loss_that_is_not_finite_stops_the_run_wherever_it_is_found(tmp_path: Path):
    wild = ("training.learning_rate=1e30", "training.optimizer=sgd")
    for number, study in enumerate([split(*wild), outlines(*wild, "topology.labels=server")]):
        with pytest.raises(RunFailed, match="not finite"):
            run(study, tmp_path / str(number))


REFUSED = [
    (("topology.cut=",), 'topology.cut is ""; it names the first stage that is the server\'s: '),
    (
        ("topology.cut=encoder.0",),
        'topology.cut is "encoder.0"; it names the first stage that is the server\'s: encoder.1, '
        "encoder.2, bottleneck_early.0, bottleneck_late.0, decoder.0, decoder.1, decoder.2",
    ),
    (
        ("topology.back=encoder.1",),
        'topology.back is "encoder.1"; it names the first stage after the cut that is the '
        "site's again: bottleneck_early.0, bottleneck_late.0, decoder.0, decoder.1, decoder.2",
    ),
    (
        ("topology.cut=decoder.2", "topology.back=decoder.2"),
        'topology.back is "decoder.2"; it names the first stage after the cut that is the '
        "site's again: none is left",
    ),
    (
        ("topology.labels=server",),
        'topology.labels = "server" makes no sense for task "synthesis": its critics judge '
        "source, target and output side by side, and these stay at the site",
    ),
    (
        ("topology.labels=server", "topology.back=decoder.2"),
        'topology.labels = "server" and topology.back exclude each other: with back the output '
        "is made at the site, and judged there",
    ),
    (
        ("task.generator=personalised", "topology.cut=encoder.0"),
        'topology.cut = "encoder.0" would send the source itself to the server; cut after a '
        "stage that takes it in",
    ),
    (
        ("task.dropout_at_evaluation=true",),
        'task.dropout_at_evaluation makes no sense over topology "split": the server\'s part '
        "predicts without dropout",
    ),
    (
        ("task.norm=batch", "task.statistics_at_evaluation=image"),
        'task.statistics_at_evaluation = "image" makes no sense over topology "split": the '
        "server's part predicts with running statistics",
    ),
    (
        ("method.kind=fedbn", "task.norm=batch"),
        "the group 'norm' must stay at the site, and topology.cut = \"encoder.2\" puts it at the "
        "server (for example generator.encoder.2.norm.weight); move the cut",
    ),
    (
        ("method.kind=pflsynth",),
        "the group 'encoder' must stay at the site, and topology.cut = \"encoder.2\" puts it at "
        "the server (for example generator.encoder.2.",
    ),
    (
        ("method.kind=fedper",),
        "the group 'head' must stay at the site, and topology.cut = \"encoder.2\" puts it at "
        "the server (for example generator.decoder.2.weight); move the cut",
    ),
    (
        ("task.norm=batch", "training.norm_buffers=private"),
        "the group 'encoder' must stay at the site",
    ),
    (
        ("method.kind=fedprox",),
        'method "fedprox" makes no sense over topology "split": the server\'s part has no '
        "round's start of one site's to be pulled towards",
    ),
    (
        ("method.kind=fedrep",),
        'method "fedrep" makes no sense over topology "split": the server\'s part takes a step '
        "with every batch, and cannot wait for the head",
    ),
    (
        ("method.kind=ditto",),
        'method "ditto" makes no sense over topology "split": a site cannot train a whole model '
        "of its own, as it holds only a part of one",
    ),
    (
        ("method.kind=scaffold",),
        'method "scaffold" makes no sense over topology "split": the server\'s part is trained '
        "in one place, where there is no drift to correct",
    ),
    (
        ("method.kind=fedopt",),
        'method "fedopt" makes no sense over topology "split": the server\'s part steps with '
        "every batch, and leaves no mean move to step by",
    ),
    (("method.kind=local",), 'method "local" sends nothing, so topology "split" would do nothing'),
    (
        ("method.kind=central",),
        'method "central" sends nothing, so topology "split" would do nothing',
    ),
    (
        ("aggregation.kind=median",),
        'aggregation would do nothing over topology "split" with variant = "sequential": '
        'nothing is averaged there; choose "splitfed1" or "splitfed2"',
    ),
    (
        ("training.fine_tune=1",),
        'training.fine_tune makes no sense over topology "split": a site alone lacks the '
        "server's part of the network",
    ),
    (
        ("training.compile=true",),
        'training.compile makes no sense over topology "split": stages run one by one, not as '
        "one network",
    ),
    (
        ("training.first_broadcast=false",),
        'training.first_broadcast = false makes no sense over topology "split": both parts '
        "start from the same first weights",
    ),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_a_network_in_two_parts_cannot_follow_is_refused(
    options: Sequence[str], sentence: str
):
    with pytest.raises(BadStudy) as refused:
        split(*options)
    assert str(refused.value).startswith(f"{TINY}: {sentence}")


def test_volumes_are_not_slid_over_through_a_cut():
    whole = ("task.dims=3", "task.patch=[4,32,32]")
    with pytest.raises(BadStudy, match=r'task.dims = 3 makes no sense over topology "split"'):
        outlines(*whole)


@pytest.mark.parametrize(
    "options",
    [
        ("method.kind=lg_fedavg", "topology.cut=bottleneck_late.0"),
        ("method.kind=fedper", "topology.back=decoder.2"),
        ("method.kind=fedbn", "task.norm=instance"),
        ("aggregation.kind=median", "topology.variant=splitfed1"),
    ],
)
def test_private_groups_at_the_site_and_averages_of_parts_train(
    tmp_path: Path, options: tuple[str, ...]
):
    federation = built(split(*options), tmp_path)
    state = played(federation, 2)[-1].state
    start = federation.start.weights
    assert state.weights.keys() == start.keys()
    assert all(not torch.equal(tensor, start[name]) for name, tensor in state.weights.items())


def test_the_file_of_a_study_holds_the_cut_and_not_the_servers_part(tmp_path: Path):
    run(replace(split(sites=1), rounds=1), tmp_path)
    table = read_study(tmp_path / "study.toml")
    assert dict(table.topology.options) == {
        "cut": "encoder.2",
        "back": "",
        "labels": "site",
        "variant": "sequential",
    }
    lines = (tmp_path / "journal.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events.count(RoundFinished.__name__) == 1


def test_stages_are_dealt_out_in_their_order():
    study = split()
    task = study.make_task()
    stages = task.stages(task.build(1))
    cut = cut_at(stages, cut="encoder.2", back="decoder.1", labels="site")
    assert (*cut.head, *cut.body, *cut.tail) == tuple(stages)
    assert cut.head == ("encoder.0", "encoder.1")
    assert cut.tail == ("decoder.1", "decoder.2")
    assert cut.at_server("generator.decoder.0.weight")
    assert not cut.at_server("critics.any.entry.weight")
    assert not cut.at_site(lambda name: True)("generator.decoder.0.weight")


def test_gradients_cross_the_cut_as_if_it_were_not_there():
    entered = torch.tensor([1.0, 2.0], requires_grad=True)
    made = {"features": entered.square(), "count": torch.tensor(3)}
    sent = {f"{CUT}{name}": tensor.detach() for name, tensor in made.items()}
    begun = leaves_from(sent, torch.device("cpu"))
    (3 * begun["features"]).sum().backward()
    came = {f"{CUT}{name}": tensor for name, tensor in leaf_gradients(begun).items()}
    assert list(came) == ["cut/features"]
    backpropagate(made, came)
    assert entered.grad is not None
    assert entered.grad.tolist() == [6.0, 12.0]


def test_what_a_batch_says_is_said_in_three_messages(tmp_path: Path):
    federation = built(split(sites=1), tmp_path)
    spy = Spy(federation.sites)
    federation.topology.round(federation.start, spy, federation.method)
    kinds = [type(request) for _, request in spy.asked]
    assert kinds == [Forward, Tail, Backward] * 2
    assert [r.last for _, r in spy.asked if isinstance(r, Backward)] == [False, True]
    assert all(name.startswith(CUT) for reply in spy.replies[:-1] for name in reply.weights)
