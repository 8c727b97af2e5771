"""Codes of protocols over engines, after a stop, and at a site that never trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import SiteTrained
from grandrounds.core.run_folder import RunFolder
from grandrounds.data.protocol import protocols_from_text, simulated_protocols
from grandrounds.engines.process_pool import ProcessPoolEngine
from grandrounds.flare.job import export_job
from grandrounds.runs.adapt import adapt
from grandrounds.runs.build import distribute
from grandrounds.runs.evaluate import model_scorer, score_at_site
from grandrounds.runs.folder import TrainedRun
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import find_site, open_sites
from grandrounds.study.checks import complete
from grandrounds.study.study import Study
from grandrounds.tasks.synthesis.task import SynthesisTask
from tests.helpers.federation import NOBODY, built, digests, played, rows, stopped, tiny
from tests.helpers.flare_federation import differing, needs_flare, simulated, small

ODD = 2.718281828  # tesla
CODED = ("task.codes=protocol", "rounds=2", "training.threads=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology",
    [
        "star",
        pytest.param("relay", marks=pytest.mark.full),
        pytest.param("swarm", marks=pytest.mark.full),
    ],
)
def test_processes_compute_what_one_process_computes(tmp_path: Path, topology: str):
    study = tiny(*CODED, f"topology.kind={topology}", sites=2)
    alone = played(built(study, tmp_path / "one"), 2)
    federation = built(study, tmp_path / "two")
    with distribute(federation, study, (), tmp_path / "two", NOBODY, processes=2) as shared:
        assert isinstance(shared.sites, ProcessPoolEngine)
        found = played(shared, 2)
    assert [o.state.fingerprint for o in found] == [o.state.fingerprint for o in alone]
    assert [[r.digest for r in o.replies] for o in found] == [
        [r.digest for r in o.replies] for o in alone
    ]


@pytest.mark.slow
def test_stopped_and_resumed_is_never_stopped(tmp_path: Path):
    study = tiny(*CODED, sites=2)
    run(study, tmp_path / "whole")
    stopped(study, tmp_path / "run", lambda e: isinstance(e, SiteTrained) and e.round == 2)
    run(study, tmp_path / "run", resume=True)
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    assert rows(tmp_path / "run" / "scores.csv") == rows(tmp_path / "whole" / "scores.csv")


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.full
@needs_flare
def test_nvflare_plays_it_to_the_same_digests(tmp_path: Path):
    study = small("task.codes=protocol")
    run(study, tmp_path / "here")
    export_job(study, tmp_path / "job", run="coded")
    there = simulated(tmp_path / "job", study, tmp_path / "grid") / "coded"
    assert differing(tmp_path / "here", there) == []


def like(study: Study, site: str, other: str) -> Study:
    """The study, in which one site has the scanner of another."""
    scanners = {spec.name: spec.scanner for spec in study.site}
    return replace(
        study,
        site=tuple(
            replace(spec, scanner=scanners[other]) if spec.name == site else spec
            for spec in study.site
        ),
    )


@pytest.mark.slow
def test_a_site_that_never_trained_is_coded_by_its_scanner_and_may_join(tmp_path: Path):
    study = like(tiny(*CODED, "holdout_sites=['cedar']", sites=3), "cedar", "alder")
    run(study, tmp_path / "run")
    task = study.make_task()
    assert isinstance(task, SynthesisTask)
    batches = {
        name: task.evaluation_examples(data.cohorts, "test").batch([0], None)
        for name, data in open_sites(study, ()).items()
    }
    assert torch.equal(batches["cedar"]["code"], batches["alder"]["code"])  # T1w->T2w of both
    assert not torch.equal(batches["cedar"]["code"], batches["birch"]["code"])
    trained = TrainedRun(tmp_path / "run")
    assert score_at_site(trained, find_site(study, "cedar"))
    models = adapt(trained, find_site(study, "cedar"), epochs=1)
    assert [model.name for model in models] == ["as it came", "adapted", "alone"]
    with model_scorer(study) as scorer:  # whoever's model it is, a case is what its scanner says
        cohorts = open_sites(study, (), only=("birch",))["birch"].cohorts
        weights = trained.model_weights("alder")
        own, viewed = (scorer.scores(weights, cohorts, reader=name) for name in ("", "alder"))
    assert own == viewed


@pytest.mark.slow
@pytest.mark.full
def test_a_site_that_nobody_named_before_joins_a_run_that_goes_on(tmp_path: Path):
    """Only codes of the site grow with the roster."""
    for codes, fits in (("protocol", True), ("both", False)):
        words, folder = (f"task.codes={codes}", *CODED[1:]), tmp_path / codes
        two, three = tiny(*words, sites=2), tiny(*words, sites=3)
        alder, birch, cedar = three.site
        three = complete(replace(three, site=(alder, birch, replace(cedar, joins=2))))
        stopped(two, folder, lambda e: isinstance(e, SiteTrained) and e.round == 2)
        if fits:
            run(three, folder, resume=True)
            assert {row["site"] for row in rows(folder / "scores.csv")} == set(three.trainers)
        else:
            with pytest.raises(BadFolder, match="the network grows with the roster"):
                run(three, folder, resume=True)


def with_odd_field(study: Study) -> Study:
    """The study, in which the first site has a field that no other has."""
    first, *others = study.site
    odd = replace(first, scanner=replace(first.scanner, field=ODD))
    return replace(study, site=(odd, *others))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pflsynth", pytest.param("central", marks=pytest.mark.full)])
def test_how_a_site_usually_scans_is_kept_beside_its_model_alone(tmp_path: Path, method: str):
    words = ("rounds=1", f"method.kind={method}", "task.generator=personalised")
    study = with_odd_field(tiny(*CODED, *words, sites=2))
    run(study, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    found = sorted(path.parent.name for path in folder.sites.glob("*/protocols.json"))
    assert found == (["pooled"] if method == "central" else ["alder", "birch"])
    for spec in study.site:
        usual = TrainedRun(tmp_path / "run").protocols(spec.name)
        assert usual == simulated_protocols(spec.scanner, study.elements, spec.slices)
    path = folder.site(found[0]).protocols
    assert path.stat().st_mode & 0o077 == 0
    known = study.trainers if method == "central" else ("alder",)
    assert set(protocols_from_text(path.read_text(), path)) == set(known)
    bearing = {
        file
        for file in (tmp_path / "run").rglob("*")
        if file.is_file() and str(ODD).encode() in file.read_bytes()
    }
    assert bearing == {path, folder.study}  # a simulated site's scanner stands in the study


def test_a_site_whose_network_reads_no_protocol_keeps_none(tmp_path: Path):
    assert {site.protocols for site in built(tiny(sites=2), tmp_path).sites.sites} == {""}
