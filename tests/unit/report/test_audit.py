"""An audit as a file and as a page: what others wrote in it is text, and damage is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.report.analysis.audit import (
    AuditedAttack,
    AuditFigure,
    SiteAudit,
    read_site_audit,
    write_audit,
)
from grandrounds.report.page.audit import AuditPicture, said, write_audit_page

RATE = AuditFigure("Members told at 1.0% false positives", 0.25, 0.1, 0.45)
MISSING = AuditFigure("Members told at 0.1%", None, note="too few patients to say")
MEMBERSHIP = AuditedAttack(
    "Membership: can one tell who trained?",
    "found",
    "Whoever has the model can tell who trained.",
    (RATE, MISSING),
    (AuditFigure("A network before training: area under the curve", 0.5),),
    ("Fewer rounds.", "More patients."),
    ((0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0)),
)
INVERSION = AuditedAttack(
    "Update inversion",
    "not found",
    "The attack rebuilds no more than from noise.",
    (AuditFigure("Individual detail", 0.1),),
    (AuditFigure("Noise: individual detail", 0.05),),
    ("Secure sum.",),
)
AUDIT = SiteAudit(
    *("brains", "alder", "pFLSynth", 1, 30),
    {"train": 12, "validation": 2, "test": 6},
    (MEMBERSHIP, INVERSION),
)


def pictures_of(title: str) -> dict[str, list[AuditPicture]]:
    """Two pictures for an attack."""
    ramp = np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)
    return {title: [AuditPicture("The patient's image", ramp), AuditPicture("Found", ramp.T)]}


def test_an_audit_is_read_as_it_was_written(tmp_path: Path):
    write_audit(tmp_path / "audit.json", AUDIT)
    assert read_site_audit(tmp_path / "audit.json") == AUDIT


def test_a_figure_is_said_with_its_interval_or_what_it_lacks():
    assert said(RATE) == "0.25 (0.1 to 0.45)"
    assert said(MISSING) == "too few patients to say"


def test_words_of_an_audit_are_text_and_a_damaged_one_is_refused(tmp_path: Path):
    path, hostile = tmp_path / "audit.json", "<script>alert(1)</script>"
    write_audit(path, replace(AUDIT, attacks=(replace(MEMBERSHIP, sentence=hostile),)))
    write_audit_page(tmp_path / "audit.html", read_site_audit(path), {})
    page = (tmp_path / "audit.html").read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    whole = json.loads(path.read_text("utf-8"))
    for damage in ({"attacks": 3}, {"patients": []}, {"attacks": [{"verdict": "sure"}]}):
        path.write_text(json.dumps({**whole, **damage}), "utf-8")
        with pytest.raises(BadFolder, match="is not an audit"):
            read_site_audit(path)
