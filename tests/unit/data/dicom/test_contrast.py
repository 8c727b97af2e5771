"""Which contrast a series has, by its acquisition; which series have none; what a rule changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grandrounds.data.dicom.contrast import ContrastRule, recognise_contrast
from grandrounds.data.dicom.geometry import PlacedFrame, VolumeGrid
from grandrounds.data.dicom.instance import Frame, Instance, PatientIdentity, ScannerSettings
from grandrounds.data.dicom.series import Series

MAGNITUDE = ("ORIGINAL", "PRIMARY", "M", "ND")


def series(
    sequence: str, te: float | None, image_type: tuple[str, ...] = MAGNITUDE, **more: Any
) -> Series:
    frame_facts = {name: more.pop(name) for name in ("b_value", "component") if name in more}
    facts = {name: more.pop(name) for name in ("description", "modality") if name in more}
    instance = Instance(
        **{
            "path": Path("a.dcm"),
            "sop_uid": "1",
            "series_uid": "2",
            "study_uid": "3",
            "patient": PatientIdentity(),
            "modality": "MR",
            "image_type": image_type,
            "settings": ScannerSettings(sequence=sequence, **more),
            **facts,
        }
    )
    frame = Frame(0, image_type=image_type, echo_time=te, **frame_facts)
    return Series((PlacedFrame(instance, frame),), VolumeGrid((1, 1, 1), np.eye(4)))


def times(tr: float, ti: float | None = None, flip: float | None = None, **more: Any) -> Any:
    return {"repetition_time": tr, "inversion_time": ti, "flip_angle": flip, **more}


PROTOCOLS: list[tuple[str, Series, str | None]] = [
    ("Siemens MPRAGE", series("GR\\IR", 2.98, **times(2300, 900, 9)), "T1w"),
    ("GE BRAVO", series("GR", 3.2, variant="SS\\SP\\MP", **times(8.2, 450, 12)), "T1w"),
    ("Philips T1 TFE", series("GR", 3.7, variant="MP", **times(8.1, None, 8)), None),
    ("UIH GRE", series("GR\\IR", 3.1, **times(7.25, 750, 10)), "T1w"),
    ("SPGR", series("GR", 5, variant="SP", **times(24, None, 30)), "T1w"),
    ("2-D FLASH", series("GR", 4.8, **times(250, None, 70)), "T1w"),
    ("T1 spin echo", series("SE", 10, **times(550, None, 90)), "T1w"),
    ("T1 FLAIR", series("SE\\IR", 24, **times(2500, 860)), "T1w"),
    ("T2 turbo spin echo", series("SE", 98, **times(4500)), "T2w"),
    ("T2 SPACE", series("SE", 408, dimensions="3D", **times(3200)), "T2w"),
    ("GRASE", series("SE\\GR", 100, **times(4000)), "T2w"),
    ("PD turbo spin echo", series("SE", 22, **times(2300)), "PDw"),
    ("FLAIR", series("SE\\IR", 120, **times(9000, 2500)), "FLAIR"),
    ("3-D FLAIR", series("IR\\SE", 388, dimensions="3D", **times(5000, 1800)), "FLAIR"),
    ("FLAIR without TI", series("SE", 120, description="Ax FLAIR", **times(9000)), "FLAIR"),
    ("GE FLAIR, RM", series("RM", 159, description="FLAIR", **times(10002)), "FLAIR"),
    ("long T2w", series("SE", 120, description="Ax T2", **times(9000)), "T2w"),
    ("T2*", series("GR", 20, **times(600, None, 20)), "T2starw"),
    ("STIR", series("SE\\IR", 60, **times(4000, 160)), None),
    ("between PDw and T2w", series("SE", 55, **times(3000)), None),
    ("between T1w and T2w", series("SE", 80, **times(1000)), None),
    ("DWI", series("SE\\EP", 90, b_value=1000.0, **times(8000)), None),
    ("EPI", series("EP", 30, **times(2000, None, 75)), None),
    ("ADC", series("SE", 90, ("DERIVED", "PRIMARY", "ADC"), **times(8000)), None),
    ("phase", series("GR", 20, component="PHASE", **times(600, None, 20)), None),
    ("phase by type", series("GR", 20, ("ORIGINAL", "PRIMARY", "P"), **times(600)), None),
    ("angiography", series("GR", 3.5, variant="TOF\\SP", **times(22, None, 18)), None),
    ("no times", series("SE", None), None),
    ("CT", series("", None, modality="CT"), None),
]


@pytest.mark.parametrize(
    ("found", "contrast"), [each[1:] for each in PROTOCOLS], ids=[each[0] for each in PROTOCOLS]
)
def test_clinical_protocols_are_told_apart(found: Series, contrast: str | None):
    recognised = recognise_contrast(found)
    assert recognised.contrast == contrast, str(recognised.reason)
    assert recognised.reason.told(frozenset()) is not None


def test_a_description_alone_makes_no_contrast():
    found = series("SE", 98, description="t1_mprage_sag", **times(4500))
    assert recognise_contrast(found).contrast == "T2w"
    assert recognise_contrast(series("", None, description="T2w")).contrast is None


@pytest.mark.parametrize(
    ("agent", "description", "contrast"),
    [
        (True, "t1", "T1wGd"),
        (False, "t1 +c", "T1w"),
        (None, "t1", "T1w"),
        (None, "Ax T1 +C", "T1wGd"),
        (None, "t1_se_tra post contrast", "T1wGd"),
    ],
)
def test_a_contrast_agent_is_told(agent: bool | None, description: str, contrast: str):
    found = series("SE", 10, description=description, contrast_agent=agent, **times(550))
    recognised = recognise_contrast(found)
    assert recognised.contrast == contrast
    assert ("contrast agent" in str(recognised.reason)) == (contrast == "T1wGd")


def test_the_first_rule_of_the_site_that_matches_counts():
    found = series("EP", 30, description="Odd Name 3", **times(2000))
    rules = (
        ContrastRule("none*", "T1w"),
        ContrastRule("odd name ?", "T2w"),
        ContrastRule("*", "X"),
    )
    recognised = recognise_contrast(found, rules)
    assert (recognised.contrast, str(recognised.reason)) == ("T2w", "by a rule of the site")


def test_the_reason_has_the_times():
    reason = recognise_contrast(series("GR\\IR", 2.98, **times(2300, 900, 9))).reason
    assert str(reason) == (
        "by its acquisition, an inverted gradient echo (TR 2300 ms, TE 2.98 ms, TI 900 ms)"
    )


def test_a_field_of_15000_is_caught():
    found = series("GR\\IR", 2.98, field_strength=15000.0, **times(2300, 900, 9))
    acquisition, [doubt] = found.acquisition()
    assert acquisition.field_strength is None
    assert "in gauss it would be 1.5 T" in str(doubt)
    known = replace(found.first.settings, field_strength=3.0).to_acquisition(3)
    assert known.field_strength == 3.0
