"""The field's competitors to pFLSynth: each by its own rule, on real tiny federations."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from grandrounds.algorithms.aggregation import Averaging
from grandrounds.algorithms.method import merge_updates
from grandrounds.algorithms.methods.fedavg import FedAvg
from grandrounds.algorithms.methods.fedmedgan import FedMedGAN
from grandrounds.algorithms.methods.fedmri import Contrast
from grandrounds.core.errors import BadStudy, BadUpdate, RunFailed
from grandrounds.core.events import SiteTrained
from grandrounds.core.journal import read_journal
from grandrounds.core.messages import Evaluate, Reply, Train
from grandrounds.core.state import State
from grandrounds.core.weights import (
    Weights,
    digest,
    first_not_finite,
    name_starts,
    read,
    select,
    without_prefix,
)
from grandrounds.runs.loop import run_study as run
from grandrounds.site.model_state import MEMORY, SiteStore
from grandrounds.study.file import Table, parse_study, read_table
from grandrounds.study.study import Study
from grandrounds.tasks.synthesis.losses import GradientGuard, ImagePool
from grandrounds.tasks.synthesis.networks import Translator, TwoWay, one_channel_each, own_channel
from tests.helpers.federation import TINY, Spy, built, digests, played, stopped, synthesis_of, tiny

pytestmark = pytest.mark.slow

COMPETITORS = {
    "fedgan": (),
    "fedmri": (),
    "fedmri, own negatives": ("method.negatives=own",),
    "fedmedgan": (),
    "fedmedgan, guarded": ("task.critic_clip=1",),
    "fedmmgan": (),
    "fedcyclegan": (),
    "fedcyclegan, unpaired": ("task.pairing=unpaired",),
    "fedbn": (),
    "fedbadam": (),
    "lg_fedavg": (),
    "pgan": (),
    "pix2pix": (),
}


@pytest.mark.parametrize("name", COMPETITORS)
def test_each_competitor_moves_what_it_trains_and_stays_finite(tmp_path: Path, name: str):
    study = tiny(f"method.kind={name.partition(',')[0]}", *COMPETITORS[name], sites=2)
    federation = built(study, tmp_path)
    for site in federation.sites.sites:
        before = site.first_weights()
        site.answer(Train(round=1, since=0, weights=federation.start.weights))
        after = site.trainer.model.state_dict()
        moved = {n for n, t in after.items() if not torch.equal(t.cpu(), before[n])}
        assert first_not_finite(after) is None
        generator = [
            n for n, _ in site.trainer.model.named_parameters() if n.startswith("generator.")
        ]
        assert {n for n in generator if n not in moved} <= {n for n in generator if "bias" in n}


@pytest.mark.parametrize(
    ("kind", "group"),
    [("fedmri", "generator.encoder."), ("fedmedgan", "generator."), ("fedmmgan", "generator.")],
)
def test_what_travels_is_the_method_s(tmp_path: Path, kind: str, group: str):
    federation = built(tiny(f"method.kind={kind}", sites=2), tmp_path)
    model = federation.sites.sites[0].trainer.model
    names = {n for n in model.state_dict() if n.startswith(group)}
    assert set(federation.start.weights) == names


def test_fedgan_averages_a_critic_over_the_sites_of_its_task_alone(tmp_path: Path):
    federation = built(tiny("method.kind=fedgan"), tmp_path)
    spy = Spy(federation.sites)
    outcome = federation.topology.round(federation.start, spy, federation.method)
    sent = {reply.site: reply.weights for reply in outcome.replies}
    tasks = {name: site.task for name, site in zip(sent, federation.sites.sites, strict=True)}
    alone = "critics.FLAIR->T2w."  # only the second site has this task
    owners = [s for s in sent if any(n.startswith(alone) for n in sent[s])]
    assert owners == [list(sent)[1]]
    assert all(set(filter(tasks[s].uses(s), sent[s])) == set(sent[s]) for s in sent)
    for name, tensor in select(sent[owners[0]], name_starts(alone)).items():
        assert torch.equal(outcome.state.weights[name], tensor)
    shared = next(n for n in sent[owners[0]] if n.startswith("critics.T1w->T2w."))
    assert not torch.equal(outcome.state.weights[shared], sent[owners[0]][shared])
    for name, request in spy.asked:  # nobody is sent a critic of others' tasks
        assert isinstance(request, Train)
        assert all(map(tasks[name].uses(name), request.weights))


def test_a_tensor_is_averaged_over_its_users_by_their_examples():
    def reply(site: str, examples: int, **weights: float) -> Reply:
        tensors = {name: torch.tensor([value]) for name, value in weights.items()}
        return Reply(site=site, round=1, examples=examples, weights=tensors)

    uses = {"a": {"g", "d"}, "b": {"g"}, "c": {"g", "d"}}
    method = FedAvg(averaging=Averaging(uses=lambda site: uses[site].__contains__))
    state = State({name: torch.zeros(1) for name in ("g", "d", "idle")})
    replies = [reply("a", 1, g=1.0, d=1.0), reply("b", 2, g=4.0), reply("c", 3, g=1.0, d=5.0)]
    found = merge_updates(method, state, replies).weights
    assert {name: float(tensor) for name, tensor in found.items()} == {
        "g": 2.0,
        "d": 4.0,
        "idle": 0.0,
    }
    with pytest.raises(BadUpdate, match="every site must send the same names"):
        merge_updates(method, state, [*replies[:2], reply("c", 3, g=1.0)])


BEST = ("method.kind=fedmedgan", "method.broadcast=best")


def test_the_best_site_s_update_is_taken_as_it_is_and_the_first_of_equal_ones():
    def taken(*scores: float | None) -> float:
        replies = [
            Reply(site=f"{place}", round=1, score=score, weights={"g": torch.tensor(float(place))})
            for place, score in enumerate(scores)
        ]
        state = State({"g": torch.tensor(-1.0)})
        return merge_updates(FedMedGAN("best"), state, replies).weights["g"].item()

    assert taken(20.0, 22.5, None, 22.5) == 1.0
    assert taken(None, -3.0) == 1.0
    with pytest.raises(RunFailed, match="round 1: no site has cases to validate its model with"):
        taken(None, None)


def test_all_sites_go_on_from_the_generator_of_the_one_that_validates_best(tmp_path: Path):
    federation = built(tiny(*BEST), tmp_path)
    outcome = federation.topology.round(federation.start, federation.sites, federation.method)
    scores: list[float] = []
    for site, reply in zip(federation.sites.sites, outcome.replies, strict=True):
        own = Evaluate(round=1, since=1, split="validation", weights=reply.weights)
        assert site.answer(own).metrics["psnr"] == reply.score
        assert reply.score is not None
        scores.append(reply.score)
    best = outcome.replies[scores.index(max(scores))]
    assert len(set(scores)) == len(scores)
    assert digest(outcome.state.weights) == digest(best.weights)


@pytest.mark.parametrize("kind", ["star", "swarm"])
def test_it_is_told_where_a_site_is_shown_what_another_one_sent(tmp_path: Path, kind: str):
    methods = {BEST: True, ("method.kind=fedmri",): True, BEST[:1]: False}
    for own, shown in methods.items():
        account = built(tiny(*own, f"topology.kind={kind}"), tmp_path).account
        assert ("other sites' own updates" in account.sees["sites"]) is shown


def test_a_leader_chooses_the_best_as_a_server_does(tmp_path: Path):
    runs = [
        run(tiny(*BEST, "rounds=2", f"topology.kind={kind}", sites=2), tmp_path / kind)
        for kind in ("star", "swarm")
    ]
    assert digests(tmp_path / "star") == digests(tmp_path / "swarm")
    assert runs[0].round == 2
    told = [e for _, e in read_journal(tmp_path / "star" / "journal.jsonl")]
    assert all(e.score is not None for e in told if isinstance(e, SiteTrained))


def test_the_contrast_s_gradient_is_autograd_s():
    layer = nn.Linear(3, 2).double()
    start = {n: torch.randn_like(p) for n, p in layer.named_parameters()}
    others: list[Weights] = [
        {n: torch.randn_like(p) for n, p in layer.named_parameters()} for _ in range(3)
    ]
    near = torch.stack([(p - start[n]).abs().sum() for n, p in layer.named_parameters()]).sum()
    gaps = [(p - o[n]).abs().sum() for o in others for n, p in layer.named_parameters()]
    far = torch.stack(gaps).sum()
    (0.7 * near / (far + 1e-14)).backward()
    wanted = {n: p.grad for n, p in layer.named_parameters()}
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Contrast(0.7, start, others)(dict(layer.named_parameters()))
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("negatives", ["all", "own"])
def test_fedmri_tells_others_encoders_only_if_it_shall(tmp_path: Path, negatives: str):
    federation = built(
        tiny("method.kind=fedmri", f"method.negatives={negatives}", sites=2), tmp_path
    )
    spy = Spy(federation.sites)
    state = federation.start
    for _ in range(2):
        state = federation.topology.round(state, spy, federation.method).state
    orders = [request for _, request in spy.asked if isinstance(request, Train)]
    told = [{n.split("/")[1] for n in r.weights if n.startswith("upload/")} for r in orders]
    everyone = set(federation.sites.names) if negatives == "all" else set[str]()
    assert told == [set(), set(), everyone, everyone]


def test_fedmri_s_term_changes_what_is_learned_from_the_second_round_on(tmp_path: Path):
    runs = [
        played(
            built(tiny("method.kind=fedmri", f"method.beta={beta}", sites=2), tmp_path / beta), 2
        )
        for beta in ("0", "100")
    ]
    first, second = [a.state.fingerprint == b.state.fingerprint for a, b in zip(*runs, strict=True)]
    assert (first, second) == (True, False)


def test_images_enter_by_their_own_channel_and_leave_by_the_target_s():
    images = torch.rand(2, 1, 2, 2)
    channels = one_channel_each(images, torch.tensor([2, 0]), 3)
    assert torch.equal(channels[0, 2], images[0, 0])
    assert torch.equal(channels[1, 0], images[1, 0])
    assert float(channels.sum()) == pytest.approx(float(images.sum()) - 4 * 4)
    assert torch.equal(own_channel(channels, torch.tensor([2, 0])), images)


def unpaired(*overrides: str) -> Study:
    """The tiny study with one pair of contrasts at two sites, and no pairs of images."""
    table = read_table(TINY)
    sites = [{**site, "tasks": ["T1w->T2w"]} for site in cast(list[Table], table["site"])[:2]]
    own = {**table, "site": sites, "method": {"kind": "fedmedgan"}}
    return parse_study(own, ("task.pairing=unpaired", *overrides), source="tiny")


def test_without_pairs_no_loss_reads_which_target_is_whose(tmp_path: Path):
    site = built(unpaired(), tmp_path).sites.sites[0]
    model = site.trainer.model
    assert isinstance(model, Translator)
    assert isinstance(model.generator, TwoWay)
    batch = site.task.training_examples(site.cohorts).batch([0, 1, 2, 3], torch.Generator())
    order = torch.tensor([2, 0, 3, 1])
    mixed = {**batch, "target": batch["target"][order]}
    found = [[(p, loss.item()) for p, loss in site.task.losses(model, b)] for b in (batch, mixed)]
    assert [part for part, _ in found[0]] == ["critics.T1w->T2w", "critics.T2w->T1w", "generator"]
    for (_, ours), (_, theirs) in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_without_pairs_the_generators_learn_guarded_from_their_critics(tmp_path: Path):
    torch.manual_seed(0)
    gradients: list[Tensor] = []
    for clip in (0.0, 1e-9):
        study = unpaired(f"task.critic_clip={clip}", "task.cycle=0", "task.identity=0")
        task = study.make_task()
        model = task.build(1).eval()
        *_, (_, loss) = task.losses(
            model, {**task.blank((32, 32)), "source": torch.rand(1, 1, 32, 32)}
        )
        loss.backward()
        gradients.append(
            torch.stack(
                [p.grad.abs().max() for p in model.parameters() if p.grad is not None]
            ).max()
        )
    assert gradients[1] < 1e-4 * gradients[0]


def test_a_full_pool_shows_older_images_half_of_the_time_and_each_of_them_once():
    torch.manual_seed(0)
    pool = ImagePool(5)
    images = torch.arange(400.0).view(100, 4, 1, 1, 1)
    shown = torch.stack([pool.shown("T1w->T2w", batch) for batch in images]).flatten()
    assert torch.equal(shown[:5], torch.arange(5.0))
    older = shown != torch.arange(400.0)
    assert 0.4 < older.float().mean() < 0.6
    assert (shown <= torch.arange(400.0)).all()
    assert len(set(shown[older].tolist())) == older.sum()
    assert pool.memory["T1w->T2w"].shape == (5, 1, 1, 1)
    assert pool.shown("T2w->T1w", images[0]).flatten().tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.full
def test_a_pool_stays_at_its_site_and_comes_back_with_a_resumed_run(tmp_path: Path):
    study = unpaired("task.image_pool=3", "rounds=3")
    run(study, tmp_path / "whole")
    stopped(study, tmp_path / "parts", lambda e: isinstance(e, SiteTrained) and e.round == 3)
    kept = SiteStore(tmp_path / "parts" / "sites" / study.trainers[0])
    held = without_prefix(MEMORY, kept.private.load(2)[0])
    assert set(held) == {"T1w->T2w", "T2w->T1w"}
    assert {tuple(images.shape) for images in held.values()} == {(3, 1, *study.elements.size)}
    run(study, tmp_path / "parts", resume=True)
    run(unpaired("rounds=3"), tmp_path / "without")
    whole, parts, without = (digests(tmp_path / n) for n in ("whole", "parts", "without"))
    assert parts == whole
    assert without[2] != whole[2]
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        if path.parent.name != "state":
            assert not any(n.startswith(MEMORY) for n in read(path)[0])


def test_what_each_image_learns_from_its_critic_is_clipped_and_noised():
    images = torch.randn(4, 1, 8, 8, requires_grad=True)
    (
        GradientGuard(1.0, 0.0)(images) * torch.tensor([1e-3, 1.0, 2.0, 3.0])[:, None, None, None]
    ).sum().backward()
    assert images.grad is not None
    norms = images.grad.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([8e-3, 0.25, 0.25, 0.25]))
    images.grad = None
    torch.manual_seed(0)
    GradientGuard(1.0, 2.14)(images).mean().backward()
    assert isinstance(images.grad, torch.Tensor)
    assert images.grad.std() == pytest.approx(2.14 / 4, rel=0.1)


REFUSED = {
    "a pool for pairs": (
        ("method.kind=fedmedgan", "task.image_pool=50"),
        'task.image_pool would do nothing: it is for task.pairing = "unpaired"',
    ),
    "networks of one pair": (
        ("method.kind=fedmedgan", "task.pairing=unpaired"),
        'task.pairing = "unpaired" with task.generator = "unet" has one network for each direction',
    ),
    "no pairs, no critic": (
        ("method.kind=fedcyclegan", "task.pairing=unpaired", "task.adversarial=0"),
        'task.pairing = "unpaired" needs task.adversarial above 0',
    ),
    "no pairs, ResNet": (
        ("method.kind=fedavg", "task.pairing=unpaired"),
        'task.pairing = "unpaired" needs task.generator = "unet" or "coded-unet", not "plain"',
    ),
    "nothing to weigh": (
        ("method.kind=fedavg", "task.channel_weights=false"),
        "task.channel_weights = false would do nothing",
    ),
    "no blocks to place": (
        ("method.kind=fedavg", "task.block_place=branch"),
        'task.block_place = "branch" would do nothing: only the personalised generator has '
        'personalisation blocks in its bottleneck, not "plain"',
    ),
    "blocks without a bottleneck": (
        ("method.kind=fedcyclegan", "task.block_place=after"),
        'task.block_place = "after" would do nothing: only the personalised generator has '
        'personalisation blocks in its bottleneck, not "coded-unet"',
    ),
    "uploads in a cycle": (
        ("method.kind=fedmri", "topology.kind=cyclic"),
        'method "fedmri" makes no sense over topology "cyclic": its term compares what sites sent',
    ),
    "the best of one": (
        (*BEST, "topology.kind=cyclic"),
        'method "fedmedgan" makes no sense over topology "cyclic": with broadcast = "best" one of '
        "several models is chosen, and here there is one model",
    ),
    "the best of parts": (
        (*BEST, "topology.kind=split", "topology.cut=encoder.0"),
        'method "fedmedgan" makes no sense over topology "split": a site cannot validate by itself',
    ),
    "a mean of the best": (
        (*BEST, "aggregation.shares=uniform"),
        'aggregation would do nothing: with method.broadcast = "best" one site',
    ),
    "critics that are cut": (
        ("method.kind=fedgan", "topology.kind=split", "topology.cut=decoder.0"),
        'method "fedgan" makes no sense over topology "split": critics stay beside the images',
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_makes_no_sense_is_refused_in_a_sentence(why: str):
    options, sentence = REFUSED[why]
    with pytest.raises(BadStudy) as refused:
        tiny(*options)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("split", "private"),
    [
        ("decoder", {"encoder", "bottleneck_early", "bottleneck_late", "personal"}),
        ("bottleneck", {"encoder", "personal"}),
        ("wide", {"personal"}),
        ("everything", set[str]()),
    ],
)
def test_the_split_point_is_a_word(tmp_path: Path, split: str, private: set[str]):
    federation = built(tiny("method.kind=pflsynth", f"method.split={split}", sites=2), tmp_path)
    policies = {g.group: g.policy for g in federation.policy.groups if g.group != "critic"}
    assert {name for name, policy in policies.items() if policy == "private"} == private


def test_blocks_without_channel_weights_scale_and_shift_alone(tmp_path: Path):
    study = tiny("method.kind=pflsynth", "task.channel_weights=false", sites=2)
    assert not synthesis_of(study).channel_weights
    model = built(study, tmp_path).sites.sites[0].trainer.model
    names = [n for n in model.state_dict() if n.startswith("generator.personal.")]
    assert names
    assert all(".affine." in name for name in names)
