"""The audit of a finished run at one of its sites: what it attacks, and what it lets out."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.audit.attacks import audit_opened, audit_site
from grandrounds.audit.inversion import Search
from grandrounds.audit.sites import sites_asked
from grandrounds.audit.subject import AuditedSite, opened_site
from grandrounds.audit.updates import Attempts
from grandrounds.core.errors import BadSite
from grandrounds.report.analysis.audit import read_site_audit
from grandrounds.report.page.html import write_report
from grandrounds.runs.folder import TrainedRun
from grandrounds.runs.loop import run_study as run
from tests.helpers.federation import tiny

pytestmark = pytest.mark.slow
QUICK = Attempts(2, Search(steps=2))


def trained(folder: Path, *options: str) -> TrainedRun:
    run(tiny("rounds=1", *options, sites=2), folder)
    return TrainedRun(folder)


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return trained(tmp_path_factory.mktemp("audited") / "run")


@pytest.fixture
def site(federated: TrainedRun) -> Iterator[AuditedSite]:
    with opened_site(federated, "alder", None) as found:
        yield found


def nobody(attack: str) -> None:
    """Hear of an attack and do nothing."""


def test_what_may_leave_holds_no_picture_and_no_patient(site: AuditedSite):
    audit, page = audit_opened(site, QUICK, nobody)
    told = (page.parent / "audit.json").read_text("utf-8")
    assert read_site_audit(page.parent / "audit.json") == audit
    patients = {session.patient for cohort in site.data.cohorts for session in cohort}
    assert not [name for name in (*patients, *site.trained, "data:", "image/") if name in told]
    assert page.read_text("utf-8").count("<img") == 9  # copies, and an attempt on each update
    assert [each.verdict for each in audit.attacks[:2]] == ["too few", "too few"]
    report = write_report(site.run.folder).read_text("utf-8")
    assert 'href="sites/alder/audit.html"' in report
    assert "Too few patients to say" in report


def test_a_site_that_allows_no_pictures_gets_a_page_without_any(site: AuditedSite):
    closed = replace(site, data=replace(site.data, shows_images=False))
    _, page = audit_opened(closed, QUICK, nobody)
    assert "<img" not in page.read_text("utf-8")
    assert "no pictures of patients" in page.read_text("utf-8")


def test_where_every_site_trains_alone_others_models_are_controls_and_no_update_is_attacked(
    tmp_path: Path,
):
    alone = trained(tmp_path / "run", "method.kind=local")
    with opened_site(alone, "alder", None) as found:
        assert [model.reader for model in found.unseen] == ["birch"]
        audit, _ = audit_opened(found, QUICK, nobody)
    titles = [each.what for each in audit.attacks[0].controls]
    assert any("never saw" in title for title in titles)
    assert audit.attacks[3].sentence == "Every site trains alone, so nothing is sent."


def test_of_a_split_network_the_activations_are_attacked(tmp_path: Path):
    cut = ("topology.kind=split", "topology.cut=bottleneck_late.0")
    split = trained(tmp_path / "run", "method.kind=lg_fedavg", *cut)
    audit, _ = audit_site(split, "alder", None, QUICK, nobody)
    assert audit.attacks[3].verdict == "not applicable"
    assert audit.attacks[4].verdict in ("found", "not found")
    assert len(audit.attacks[4].controls) == 2


def test_a_site_that_did_not_train_is_named(federated: TrainedRun):
    assert list(sites_asked(federated, [], [])) == ["alder", "birch"]
    with pytest.raises(BadSite, match="no site 'oak' trained; those that did are alder, birch"):
        sites_asked(federated, ["oak"], [])
