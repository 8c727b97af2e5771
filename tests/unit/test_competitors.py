"""The field's competitors to pFLSynth: each by its own rule, on real tiny federations."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from grandrounds.checkpoints import State
from grandrounds.errors import BadStudy, BadUpdate
from grandrounds.messages import Reply, Train
from grandrounds.methods.combine import Combine
from grandrounds.nudges import Contrast
from grandrounds.study_file import Table, parse_study, read_table
from grandrounds.tasks.networks import TwoWay, chosen, spread
from grandrounds.tasks.translation import Guarded, Translator
from grandrounds.weights import Weights, first_not_finite, select, starting_with
from tests.federation import TINY, Spy, built, played, synthesis_of, tiny

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
        site.answer(
            Train(round=1, since=0, plan=federation.method.plan, weights=federation.start.weights)
        )
        after = site.bench.model.state_dict()
        moved = {n for n, t in after.items() if not torch.equal(t.cpu(), before[n])}
        assert first_not_finite(after) is None
        generator = [
            n for n, _ in site.bench.model.named_parameters() if n.startswith("generator.")
        ]
        assert {n for n in generator if n not in moved} <= {n for n in generator if "bias" in n}


@pytest.mark.parametrize(
    ("kind", "group"),
    [("fedmri", "generator.encoder."), ("fedmedgan", "generator."), ("fedmmgan", "generator.")],
)
def test_what_travels_is_the_method_s(tmp_path: Path, kind: str, group: str):
    federation = built(tiny(f"method.kind={kind}", sites=2), tmp_path)
    model = federation.sites.sites[0].bench.model
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
    for name, tensor in select(sent[owners[0]], starting_with(alone)).items():
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
    combine = Combine(uses=lambda site: uses[site].__contains__)
    state = State({name: torch.zeros(1) for name in ("g", "d", "idle")})
    replies = [reply("a", 1, g=1.0, d=1.0), reply("b", 2, g=4.0), reply("c", 3, g=1.0, d=5.0)]
    found = combine(state, replies).weights
    assert {name: float(tensor) for name, tensor in found.items()} == {
        "g": 2.0,
        "d": 4.0,
        "idle": 0.0,
    }
    with pytest.raises(BadUpdate, match="every site must send the same names"):
        combine(state, [*replies[:2], reply("c", 3, g=1.0)])


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
    channels = spread(images, torch.tensor([2, 0]), 3)
    assert torch.equal(channels[0, 2], images[0, 0])
    assert torch.equal(channels[1, 0], images[1, 0])
    assert float(channels.sum()) == pytest.approx(float(images.sum()) - 4 * 4)
    assert torch.equal(chosen(channels, torch.tensor([2, 0])), images)


def test_without_pairs_no_loss_reads_which_target_is_whose(tmp_path: Path):
    table = read_table(TINY)
    sites = [{**site, "tasks": ["T1w->T2w"]} for site in cast(list[Table], table["site"])[:2]]
    own = {**table, "site": sites, "method": {"kind": "fedmedgan"}}
    study = parse_study(own, ("task.pairing=unpaired",), source="tiny")
    site = built(study, tmp_path).sites.sites[0]
    model = site.bench.model
    assert isinstance(model, Translator)
    assert isinstance(model.generator, TwoWay)
    batch = site.task.training_examples(site.cohorts).batch([0, 1, 2, 3], torch.Generator())
    order = torch.tensor([2, 0, 3, 1])
    mixed = {**batch, "target": batch["target"][order]}
    found = [[(p, loss.item()) for p, loss in site.task.losses(model, b)] for b in (batch, mixed)]
    assert [part for part, _ in found[0]] == ["critics.T1w->T2w", "critics.T2w->T1w", "generator"]
    for (_, ours), (_, theirs) in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_what_each_image_learns_from_its_critic_is_clipped_and_noised():
    images = torch.randn(4, 1, 8, 8, requires_grad=True)
    (
        Guarded(1.0, 0.0)(images) * torch.tensor([1e-3, 1.0, 2.0, 3.0])[:, None, None, None]
    ).sum().backward()
    assert images.grad is not None
    norms = images.grad.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([8e-3, 0.25, 0.25, 0.25]))
    images.grad = None
    torch.manual_seed(0)
    Guarded(1.0, 2.14)(images).mean().backward()
    assert isinstance(images.grad, torch.Tensor)
    assert images.grad.std() == pytest.approx(2.14 / 4, rel=0.1)


REFUSED = {
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
    "uploads in a cycle": (
        ("method.kind=fedmri", "topology.kind=cyclic"),
        'method "fedmri" makes no sense over topology "cyclic": its term compares what sites sent',
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
    model = built(study, tmp_path).sites.sites[0].bench.model
    names = [n for n in model.state_dict() if n.startswith("generator.personal.")]
    assert names
    assert all(".affine." in name for name in names)
