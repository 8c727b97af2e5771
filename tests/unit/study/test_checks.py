"""Every refusal of a study, word for word."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from grandrounds.algorithms.aggregation import Aggregation
from grandrounds.core.errors import BadStudy
from grandrounds.data.elements import Elements, Fractions
from grandrounds.data.simulation.simulate import Patients, Scanner
from grandrounds.site.training import Training
from grandrounds.study.checks import complete, notes
from grandrounds.study.study import Choice, SiteSpec, Stop, Study
from grandrounds.tasks import Synthesis
from tests.helpers.federation import NAME_RULE, synthesis_of, tiny

CONTRASTS = ("T1w", "T2w", "PDw")
SITE = SiteSpec("alder", ("T1w->T2w",))
STUDY = Study("s", Elements(CONTRASTS, (32, 32)), (SITE,))
SIMULATED = replace(SITE, data="simulated")


def with_site(**changes: object) -> Study:
    return replace(STUDY, site=(replace(SITE, **changes),))  # pyright: ignore[reportArgumentType]


def simulated(**changes: object) -> Study:
    return replace(STUDY, site=(replace(SIMULATED, **changes),))  # pyright: ignore[reportArgumentType]


def with_elements(**changes: object) -> Study:
    elements = replace(STUDY.elements, **changes)  # pyright: ignore[reportArgumentType]
    return replace(STUDY, elements=elements)


def with_task(**changes: object) -> Study:
    return replace(STUDY, task=Synthesis(**changes))  # pyright: ignore[reportArgumentType]


def with_training(**changes: object) -> Study:
    return replace(STUDY, training=Training(**changes))  # pyright: ignore[reportArgumentType]


COUNTS: list[tuple[Study, str]] = [
    (replace(STUDY, rounds=0), "rounds is 0; it must be 1 or more"),
    (with_training(batch_size=0), "training.batch_size is 0; it must be 1 or more"),
    (with_training(epochs=0), "training.epochs is 0; it must be 1 or more"),
    (with_training(threads=-1), "training.threads is -1; it must be 0 or more"),
    (replace(STUDY, stop=Stop(patience=-1)), "stop.patience is -1; it must be 0 or more"),
    (
        replace(STUDY, stop=Stop(validate_every=0)),
        "stop.validate_every is 0; it must be 1 or more",
    ),
    (with_task(width=7), "task.width is 7; it must be 8 or more"),
    (with_task(blocks=1), "task.blocks is 1; it must be 2 or more"),
    (with_task(latent=0), "task.latent is 0; it must be 1 or more"),
    (with_task(mapper_layers=0), "task.mapper_layers is 0; it must be 1 or more"),
    (with_task(critic_width=0), "task.critic_width is 0; it must be 1 or more"),
    (with_task(critic_layers=0), "task.critic_layers is 0; it must be 1 or more"),
    (with_training(learning_rate=0.0), "training.learning_rate must be above 0"),
    (with_task(dropout=1.5), "task.dropout is 1.5; it is a probability, from 0 to 1"),
    (with_task(flip=-0.5), "task.flip is -0.5; it is a probability, from 0 to 1"),
]
ELEMENTS: list[tuple[Study, str]] = [
    (with_elements(contrasts=("T1w",)), "elements.contrasts must name two contrasts or more"),
    (
        with_elements(contrasts=("T1w", "T2w", "T1w")),
        "elements.contrasts names a contrast twice: T1w, T2w, T1w",
    ),
    (
        with_elements(size=(34, 32)),
        "elements.size is [34, 32]; both numbers must be multiples of 4, 32 or more",
    ),
    (
        with_elements(size=(32, 28)),
        "elements.size is [32, 28]; both numbers must be multiples of 4, 32 or more",
    ),
    (with_elements(spacing=(1.0, 0.0)), "elements.spacing must be above 0 (mm)"),
    (
        with_elements(split=Fractions(0.7, 0.1, 0.1)),
        "elements.split adds up to 0.9; train and test must be above 0 and all three add up to 1",
    ),
    (
        with_elements(split=Fractions(1.0, 0.0, 0.0)),
        "elements.split adds up to 1; train and test must be above 0 and all three add up to 1",
    ),
    (
        with_elements(split=Fractions(0.7, -0.1, 0.4)),
        "elements.split adds up to 1; train and test must be above 0 and all three add up to 1",
    ),
]
SITES: list[tuple[Study, str]] = [
    (replace(STUDY, site=()), "the study names no [[site]]; it needs one or more"),
    (replace(STUDY, site=(SITE, SITE)), "two sites are named 'alder'; site names must differ"),
    (with_site(name="../alder"), f"site '../alder': {NAME_RULE}"),
    (with_site(name=""), f"site '': {NAME_RULE}"),
    (
        replace(STUDY, site=(SITE, replace(SITE, name="Alder"))),
        "sites 'alder' and 'Alder' differ in case alone; choose another",
    ),
    (
        with_site(name="Server"),
        "site 'Server': is kept for the coordinator's server; choose another",
    ),
    (replace(STUDY, name="four hospitals"), f"study name 'four hospitals': {NAME_RULE}"),
    (replace(STUDY, arm="../x"), f"arm '../x': {NAME_RULE}"),
    (
        with_site(tasks=()),
        "site 'alder' has no tasks; for example tasks = [\"T1w->T2w\"]",
    ),
    (
        with_site(tasks=("T1w=>T2w",)),
        "site 'alder', task 'T1w=>T2w': write it as \"SOURCE->TARGET\", for example \"T1w->T2w\"",
    ),
    (
        with_site(tasks=("T1w->T2w->PDw",)),
        "site 'alder', task 'T1w->T2w->PDw': "
        'write it as "SOURCE->TARGET", for example "T1w->T2w"',
    ),
    (
        with_site(tasks=("T1w->FLAIR",)),
        "site 'alder', task 'T1w->FLAIR': "
        "contrast 'FLAIR' is not in elements.contrasts (T1w, T2w, PDw)",
    ),
    (
        with_site(tasks=("T1w->T1w",)),
        "site 'alder', task 'T1w->T1w': source and target are the same contrast",
    ),
    (
        simulated(scanner=Scanner(protocol={"T1w": Scanner().protocol["T1w"]})),
        "site 'alder': its scanner.protocol has no sequence for contrast 'T2w' (it has T1w)",
    ),
    (
        simulated(scanner=Scanner(protocol={})),
        "site 'alder': its scanner.protocol has no sequence for contrast 'T1w' (it has nothing)",
    ),
    (
        simulated(patients=Patients(train=0, validation=1, test=1)),
        "site 'alder': patients must give one or more to train and to test",
    ),
    (
        simulated(patients=Patients(train=1, validation=1, test=0)),
        "site 'alder': patients must give one or more to train and to test",
    ),
    (
        simulated(patients=Patients(train=1, validation=-1, test=1)),
        "site 'alder': patients must give one or more to train and to test",
    ),
    (simulated(slices=0), "site 'alder': slices is 0; it must be 1 or more"),
]
METHODS: list[tuple[Study, str]] = [
    (
        with_task(generator="plain"),
        'method "pflsynth" needs task.generator = "personalised"; '
        "without personalisation blocks and mapper its split has nothing to personalise",
    ),
    (
        with_task(statistics_at_evaluation="image"),
        'task.statistics_at_evaluation = "image" would do nothing: task.norm is "instance", which '
        'keeps no running statistics. Remove it, or set task.norm = "batch".',
    ),
    *[
        (
            with_training(norm_buffers=policy),
            f'training.norm_buffers = "{policy}" would do nothing: task.norm is "instance", '
            'which keeps no running statistics. Remove it, or set task.norm = "batch".',
        )
        for policy in ("shared", "private", "reset")
    ],
]


def watched(
    every: int = 5, method: str = "fedavg", topology: str = "star", sites: int = 2
) -> Study:
    each = tuple(replace(SITE, name=name) for name in ("alder", "birch")[:sites])
    aggregation = Aggregation(cosines_every=every)
    kinds = {"method": Choice(method), "topology": Choice(topology)}
    return replace(STUDY, site=each, aggregation=aggregation, **kinds)  # pyright: ignore[reportArgumentType]


COSINES: list[tuple[Study, str]] = [
    (
        watched(every=0),
        "aggregation.cosines_every is 0; it must be 1 or more, or left out for never",
    ),
    (
        watched(method="local"),
        'aggregation.cosines_every would do nothing: method "local" sends no update; in a '
        "comparison give it to the arms that do, for example fedavg:aggregation.cosines_every=5",
    ),
    *(
        (
            watched(topology=kind),
            f'aggregation.cosines_every needs topology.kind = "star": over "{kind}" the '
            "coordinator does not have the updates of all sites from one start side by side",
        )
        for kind in ("swarm", "cyclic")
    ),
    (
        watched(sites=1),
        "aggregation.cosines_every would do nothing: a single site has none to compare with",
    ),
]


@pytest.mark.parametrize(("study", "sentence"), [*COSINES, *COUNTS, *ELEMENTS, *SITES, *METHODS])
def test_a_study_is_refused_with_a_sentence(study: Study, sentence: str):
    with pytest.raises(BadStudy) as refused:
        complete(study)
    assert str(refused.value) == sentence


def test_comparing_updates_is_no_other_way_to_average_and_a_note_says_that_it_is_done():
    study = complete(watched(method="fedmedgan"))  # which refuses other aggregations for its option
    best = replace(study, method=Choice("fedmedgan", {"broadcast": "best"}))
    assert notes(complete(best))[0] == (
        "the coordinator computes the cosines between the sites' updates, by parameter group, "
        "every 5 rounds; they stand in the run folder and the report"
    )


def test_the_studies_that_the_refused_ones_differ_from_are_accepted():
    assert complete(STUDY).site == (SITE,)
    assert complete(simulated()).site == (SIMULATED,)


@pytest.mark.parametrize(
    ("path", "value"), [("training.learning_rate", "nan"), ("elements.spacing", "[nan, 1.0]")]
)
def test_a_number_that_is_none_is_refused(path: str, value: str):
    with pytest.raises(BadStudy, match=path):
        tiny(f"{path}={value}")


@pytest.mark.parametrize(
    ("method", "generator"),
    [
        ("pflsynth", "personalised"),
        ("fedavg", "plain"),
        ("fedbn", "plain"),
        ("local", "plain"),
        ("central", "plain"),
    ],
)
def test_a_method_chooses_its_generator_where_the_study_leaves_it_open(method: str, generator: str):
    study = complete(replace(STUDY, method=Choice(method)))
    assert synthesis_of(study).generator == generator


def test_a_generator_that_the_study_names_stands():
    study = replace(with_task(generator="personalised"), method=Choice("fedavg"))
    assert synthesis_of(complete(study)).generator == "personalised"


def test_an_arm_is_titled_by_its_name_or_else_its_method():
    assert STUDY.title == "pflsynth"
    assert replace(STUDY, arm="wide").title == "wide"


FEDBN = Choice("fedbn")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda s: s, ()),
        (
            lambda s: replace(s, method=FEDBN),
            ("fedbn keeps no layer at a site: the network has no batch norm",),
        ),
        (lambda s: replace(s, method=FEDBN, task=Synthesis(norm="batch")), ()),
        (
            lambda s: replace(s, task=Synthesis(norm="batch"), training=Training(batch_size=1)),
            ("batch norm with training.batch_size = 1 acts as instance norm while training",),
        ),
        (
            lambda s: replace(
                s, parity=True, task=Synthesis(norm="batch"), training=Training(batch_size=1)
            ),
            (),
        ),
    ],
)
def test_notes_say_what_may_surprise(change: Callable[[Study], Study], found: tuple[str, ...]):
    assert notes(change(STUDY)) == found


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        (
            with_elements(spacing=(0.0015, 0.0015)),
            "elements.spacing is [0.0015, 0.0015]; it is in millimetres, from 0.02 to 100",
        ),
        (
            with_elements(spacing=(1.0, 1500.0)),
            "elements.spacing is [1.0, 1500.0]; it is in millimetres, from 0.02 to 100",
        ),
        (
            with_elements(contrasts=(*CONTRASTS, "brainmask")),
            "elements.contrasts: 'brainmask' names a mask or labels, which no site gives as a "
            "contrast; a structure stands on the right of a task, as in T1w->lesion",
        ),
        (
            with_elements(intensity={"CT": (0.0, 80.0)}),
            "elements.intensity: 'CT' is not in elements.contrasts (T1w, T2w, PDw)",
        ),
        (
            with_elements(intensity={"T1w": (80.0, 0.0)}),
            "elements.intensity.T1w is [80, 0]; the low end of a window comes first, for example "
            "[0, 80]",
        ),
        (
            replace(simulated(), elements=replace(STUDY.elements, intensity={"T1w": (0.0, 80.0)})),
            "site 'alder': elements.intensity would do nothing: simulated images are in [0, 1] "
            "already",
        ),
        (
            with_site(slices=3),
            "site 'alder': slices would do nothing: the site has files; it is for a site with "
            'data = "simulated"',
        ),
        (
            with_site(scanner=Scanner(field=3.0)),
            "site 'alder': scanner would do nothing: the site has files; it is for a site with "
            'data = "simulated"',
        ),
    ],
)
def test_elements_that_no_site_can_meet_and_keys_without_effect_are_refused(
    study: Study, sentence: str
):
    with pytest.raises(BadStudy) as caught:
        complete(study)
    assert str(caught.value) == sentence


def test_a_window_of_a_contrast_is_a_part_of_the_study():
    windowed = with_elements(contrasts=(*CONTRASTS, "CT"), intensity={"CT": (0.0, 80.0)})
    assert complete(windowed).elements.intensity == {"CT": (0.0, 80.0)}
