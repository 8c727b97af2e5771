from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from grandrounds.core.errors import BadSite
from grandrounds.core.weights import digest, select
from grandrounds.data.cohort import SPLITS, Cohort
from grandrounds.data.elements import Elements
from grandrounds.models.generator import GeneratorShape
from grandrounds.site.training import Trainer
from grandrounds.tasks import Synthesis
from grandrounds.tasks.synthesis.examples import ContrastPair
from grandrounds.tasks.synthesis.networks import Translator, unit
from grandrounds.tasks.synthesis.task import SynthesisTask
from grandrounds.tasks.task import Batch
from tests.helpers.federation import assert_trained, built, model_of, played, synthesis_of, tiny

SITES = {"alder": ("T1w->T2w", "T2w->PDw"), "birch": ("T1w->T2w", "FLAIR->T2w")}
CONTRASTS = ("T1w", "T2w", "PDw", "FLAIR")


def task_of(**options: object) -> SynthesisTask:
    small: dict[str, object] = {
        "generator": "personalised",
        "width": 8,
        "blocks": 2,
        "latent": 16,
        "critic_width": 8,
        "critic_layers": 2,
        **options,
    }
    return Synthesis(**small).bind(Elements(CONTRASTS), SITES)  # pyright: ignore[reportArgumentType]


def batch_of(task: SynthesisTask, *samples: tuple[str, str]) -> Batch:
    """Random images, each of a site and a task."""
    draw = torch.Generator().manual_seed(len(samples))
    pairs = [(site, ContrastPair.parse(label)) for site, label in samples]
    return {
        "source": torch.rand(len(samples), 1, 32, 32, generator=draw) * 2 - 1,
        "target": torch.rand(len(samples), 1, 32, 32, generator=draw) * 2 - 1,
        "code": torch.stack([task.coding.code(site, pair) for site, pair in pairs]),
        "pair": torch.tensor(
            [[CONTRASTS.index(p.source), CONTRASTS.index(p.target)] for _, p in pairs]
        ),
    }


MIXED = (
    ("alder", "T2w->PDw"),
    ("alder", "T1w->T2w"),
    ("birch", "FLAIR->T2w"),
    ("birch", "T1w->T2w"),
)


def step(bench: Trainer, task: SynthesisTask, batch: Batch) -> list[str]:
    """One batch of training; the parts that were stepped, in order."""
    parts: list[str] = []
    bench.model.train()
    for part, loss in task.losses(bench.model, batch):
        optimizer = bench.optimizer(part)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        parts.append(part)
    return parts


def bench_of(task: SynthesisTask) -> Trainer:
    bench = Trainer(task.build(1), torch.device("cpu"), torch.float32)
    bench.set_rate(1e-2)
    return bench


def critic_digests(model: nn.Module) -> dict[str, str]:
    assert isinstance(model, Translator)
    return {name: digest(critic.state_dict()) for name, critic in model.critics.items()}


def test_critics_of_the_batchs_tasks_come_first_and_the_generator_last():
    task = task_of()
    parts = [part for part, _ in task.losses(task.build(1), batch_of(task, *MIXED))]
    assert parts == [
        "critics.T2w->PDw",
        "critics.T1w->T2w",
        "critics.FLAIR->T2w",
        "generator",
    ]


def test_only_the_critics_that_were_used_step_and_an_idle_one_does_not_drift():
    """The idle critic has momentum from an earlier step: zero gradients would still move it."""
    task = task_of()
    bench = bench_of(task)
    step(bench, task, batch_of(task, *MIXED))
    before = critic_digests(bench.model)
    assert step(bench, task, batch_of(task, ("alder", "T2w->PDw"))) == [
        "critics.T2w->PDw",
        "generator",
    ]
    after = critic_digests(bench.model)
    assert {name for name in before if before[name] != after[name]} == {"T2w->PDw"}


def test_the_generators_step_gives_critics_no_gradient_and_needs_theirs_for_itself():
    task = task_of()
    model = task.build(1)
    *_, (part, loss) = task.losses(model, batch_of(task, *MIXED))
    loss.backward()
    assert part == "generator"
    assert all(p.grad is None for p in model.critics.parameters())
    assert all(p.grad is not None for p in model.generator.parameters())
    assert all(p.requires_grad for p in model.critics.parameters())


def test_a_critics_step_gives_the_generator_no_gradient():
    task = task_of()
    model = task.build(1)
    _, loss = next(iter(task.losses(model, batch_of(task, *MIXED))))
    loss.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad is not None for p in model.critics["T2w->PDw"].parameters())


def test_realism_reaches_the_generator_through_the_critic():
    task = task_of(l1=0.0)
    model = task.build(1)
    *_, (_, loss) = task.losses(model, batch_of(task, *MIXED))
    loss.backward()
    assert sum(
        float(p.grad.abs().sum()) for p in model.generator.parameters() if p.grad is not None
    )


def expected_losses(
    task: SynthesisTask, model: Translator, batch: Batch, rows: dict[str, list[int]]
) -> dict[str, float]:
    """The formulas of the paper, one sample after the other."""
    fake = model.generator(batch["source"], batch["code"])

    def verdict(name: str, row: int, image: Tensor) -> Tensor:
        both = torch.cat([batch["source"][row : row + 1], image[row : row + 1]], 1)
        return model.critics[name](both)

    found: dict[str, float] = {}
    realism = 0.0
    for name, mine in rows.items():
        on_fake = torch.cat([verdict(name, row, fake) for row in mine])
        on_real = torch.cat([verdict(name, row, batch["target"]) for row in mine])
        loss = 0.5 * ((on_fake**2).mean() + ((on_real - 1) ** 2).mean())
        found[f"critics.{name}"] = loss.item()
        realism += ((on_fake - 1) ** 2).flatten(1).mean(1).sum().item()
    distance = (fake - batch["target"]).abs().mean().item()
    return found | {"generator": realism / len(fake) + 100 * distance}


@pytest.mark.parametrize(
    ("critics", "rows"),
    [
        ("per-task", {"T2w->PDw": [0], "T1w->T2w": [1, 3], "FLAIR->T2w": [2]}),
        ("single", {"any": [0, 1, 2, 3]}),
    ],
)
def test_losses_are_least_squares_and_a_hundred_times_the_distance(
    critics: str, rows: dict[str, list[int]]
):
    task = task_of(critics=critics, dropout=0.0)
    model, batch = task.build(1), batch_of(task, *MIXED)
    found = {part: loss.item() for part, loss in task.losses(model, batch)}
    assert found == pytest.approx(expected_losses(task, model, batch, rows), rel=1e-5)


def test_without_adversarial_weight_there_is_no_critic():
    task = task_of(adversarial=0.0, dropout=0.0)
    model, batch = task.build(1), batch_of(task, *MIXED)
    assert len(model.critics) == 0
    [(part, loss)] = task.losses(model, batch)
    fake = model.generator(batch["source"], batch["code"])
    assert part == "generator"
    assert loss.item() == pytest.approx(100 * (fake - batch["target"]).abs().mean().item())


@pytest.mark.slow
def test_a_task_of_several_sites_has_one_critic_and_a_site_uses_its_own():
    task = task_of()
    assert list(task.build(1).critics) == ["T1w->T2w", "T2w->PDw", "FLAIR->T2w"]
    used = select(task.build(1).state_dict(), task.uses("birch"))
    assert {".".join(name.split(".")[:2]) for name in used if name.startswith("critics")} == {
        "critics.T1w->T2w",
        "critics.FLAIR->T2w",
    }
    assert set(select(task.build(1).state_dict(), task.uses("pooled"))) == set(
        task.build(1).state_dict()
    )


def test_a_task_whose_label_starts_like_another_keeps_its_critic_apart():
    """Contrasts T1w and T1wC: a prefix must not select the other's critic."""
    contrasts = ("T1w", "T2w", "T2wC")
    sites = {"alder": ("T1w->T2w",), "birch": ("T1w->T2wC",)}
    small = Synthesis(generator="plain", width=8, blocks=2, critic_width=8, critic_layers=2)
    task = small.bind(Elements(contrasts), sites)
    used = select(task.build(1).state_dict(), task.uses("alder"))
    assert not any("T2wC" in name for name in used)


def test_the_same_seed_builds_the_same_bits_and_leaves_the_global_generator_alone():
    task, state = task_of(), torch.get_rng_state()
    first, again, other = (digest(task.build(seed).state_dict()) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_of_mixed_codes_is_the_samples_one_by_one():
    task = task_of()
    model, batch = task.build(1), batch_of(task, *MIXED)
    with torch.no_grad():
        together = task.predict(model, batch)
        alone = [
            task.predict(model, {name: t[row : row + 1] for name, t in batch.items()})
            for row in range(len(MIXED))
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_codes_tell_the_tasks_of_one_image_apart():
    task = task_of()
    batch = batch_of(task, *MIXED)
    batch["source"] = batch["source"][:1].expand(4, -1, -1, -1)
    with torch.no_grad():
        found = task.predict(task.build(1), batch)
    assert all((found[i] - found[j]).abs().max() > 1e-4 for i in range(4) for j in range(i))


def test_prediction_is_deterministic_and_in_the_unit_range():
    task = task_of(dropout=0.5)
    model, batch = task.build(1).train(), batch_of(task, *MIXED)
    with torch.no_grad():
        first, again = task.predict(model, batch), task.predict(model, batch)
    assert torch.equal(first, again)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


def test_dropout_at_evaluation_makes_predictions_differ_as_the_released_code_does():
    task = task_of(dropout=0.5, dropout_at_evaluation=True)
    model, batch = task.build(1), batch_of(task, *MIXED)
    with torch.no_grad():
        first, again = task.predict(model, batch), task.predict(model, batch)
    assert not torch.equal(first, again)


def counted(task: SynthesisTask) -> nn.Module:
    """A model whose batch norms have counted statistics that no image has."""
    model = task.build(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.fill_(0.5)
    return model


def in_training_mode(model: nn.Module, batch: Batch) -> Tensor:
    """As the released code tests: one image at a time, the network as in training."""
    assert isinstance(model, Translator)
    trained = deepcopy(model).train().generator
    rows = [
        trained(batch["source"][row : row + 1], batch["code"][row : row + 1])
        for row in range(len(batch["source"]))
    ]
    return (torch.cat(rows) + 1) / 2


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_with_parity_s_switches_a_prediction_is_that_of_training_mode(dropout: float):
    """The network as the released code leaves it, with the same draws of dropout."""
    switches = {"norm": "batch", "dropout": dropout, "dropout_at_evaluation": True}
    own, running = task_of(**switches, statistics_at_evaluation="image"), task_of(**switches)
    model, batch = counted(own), batch_of(own, *MIXED)
    before = digest(model.state_dict())
    with torch.no_grad():
        torch.manual_seed(1)
        wanted = in_training_mode(model, batch)
        torch.manual_seed(1)
        torch.testing.assert_close(own.predict(model, batch), wanted, rtol=0, atol=1e-6)
        assert digest(model.state_dict()) == before, "evaluation counted statistics"
        torch.manual_seed(1)
        assert (running.predict(model, batch) - wanted).abs().max() > 1e-3


def test_after_a_prediction_batch_norms_count_as_before():
    task = task_of(norm="batch", dropout=0.0, statistics_at_evaluation="image")
    model, batch = task.build(1), batch_of(task, *MIXED)
    with torch.no_grad():
        task.predict(model, batch)
        before = digest(model.state_dict())
        in_training_mode(model.train(), batch)
        model.generator(batch["source"], batch["code"])
    assert digest(model.state_dict()) != before
    assert task_of(norm="batch").predict(model, batch).isfinite().all()


def test_scores_are_of_each_case_in_the_unit_range():
    task = task_of()
    batch = batch_of(task, *MIXED)
    target = (batch["target"] + 1) / 2
    perfect, shifted = task.score(target, batch), task.score(target + 0.1, batch)
    assert perfect["ssim"].tolist() == pytest.approx([1.0] * 4, abs=1e-6)
    assert shifted["psnr"].tolist() == pytest.approx([20.0] * 4, abs=1e-3)
    assert task.metric in perfect


def test_a_picture_shows_the_first_case():
    task = task_of()
    batch = batch_of(task, *MIXED)
    target = (batch["target"] + 1) / 2
    shown = task.picture(target, batch)
    assert {image.shape for image in shown.values()} == {(32, 32)}
    assert (shown["target"] == shown["prediction"]).all()
    assert (shown["target"] == target[0, 0].numpy()).all()


def test_the_mapper_has_a_rate_of_its_own():
    assert task_of(mapper_rate=0.01).learning_rates == {"generator.mapper.": 0.01}


def test_a_blank_batch_has_the_form_of_a_real_one():
    task = task_of()
    blank, real = task.blank((32, 32)), batch_of(task, MIXED[0])
    assert {n: (t.shape, t.dtype) for n, t in blank.items()} == {
        n: (t.shape, t.dtype) for n, t in real.items()
    }
    assert len(list(task.losses(task.build(1), blank))) == 2


def shape_of_study(*overrides: str) -> GeneratorShape:
    task = tiny(*overrides, sites=2).make_task()
    assert isinstance(task, SynthesisTask)
    assert isinstance(task.shape, GeneratorShape)
    return task.shape


def test_a_study_says_where_the_blocks_stand_and_parity_has_them_where_they_were_published():
    assert shape_of_study().block_place == "branch"
    assert shape_of_study("parity=true").block_place == "after"
    assert shape_of_study("task.block_place=after").block_place == "after"
    assert shape_of_study("parity=true", "task.block_place=branch").block_place == "branch"


@pytest.mark.slow
def test_a_parity_study_builds_and_trains_a_round(tmp_path: Path):
    """Batch norm at batch 1, own first weights, the reference's schedule, crops and dropout."""
    study = tiny("parity=true", "training.batch_size=1", "rounds=2", "seed=2", sites=2)
    assert synthesis_of(study).equalised
    assert study.training.schedule == "reference"
    federation = built(study, tmp_path)
    assert federation.start.weights == {}
    first = [dict(site.first_weights()) for site in federation.sites.sites]
    assert digest(first[0]) != digest(first[1])
    [outcome] = played(federation, 1)
    for site, weights in zip(federation.sites.sites, first, strict=True):
        assert_trained(weights, model_of(site, outcome.state))


def test_the_brain_is_scored_by_itself_where_the_study_asks_for_it(tmp_path: Path):
    federation = built(tiny("task.masked=brain", sites=1), tmp_path)
    [site] = federation.sites.sites
    examples = site.task.evaluation_examples(site.cohorts, "test")
    batch = examples.batch([0], None)
    found = site.task.score(unit(batch["source"]), batch)
    assert {"psnr_brain", "ssim_brain", "nrmse_brain"} < set(found)
    inside = batch["mask"]
    assert 0 < inside.float().mean() < 1
    outside = torch.where(inside, unit(batch["source"]), torch.rand_like(batch["source"]))
    again = site.task.score(outside, batch)
    assert torch.equal(again["psnr_brain"], found["psnr_brain"])
    assert not torch.equal(again["psnr"], found["psnr"])


def test_a_site_without_the_mask_is_refused_before_anything_trains(tmp_path: Path):
    federation = built(tiny("task.masked=brain", sites=1), tmp_path)
    [site] = federation.sites.sites
    bare = [
        Cohort(c.site, {s: tuple(replace(x, masks={}) for x in c.splits[s]) for s in SPLITS})
        for c in site.cohorts
    ]
    with pytest.raises(BadSite, match="site 'alder': 5 of its sessions have no brain mask"):
        site.task.training_examples(bare)
