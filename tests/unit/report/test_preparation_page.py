"""The page of prepared sessions puts first what a person should look at, and says what to do."""

from pathlib import Path

import pytest

from grandrounds.report.page.preparation import (
    PreparedContrast,
    PreparedSession,
    worst_first,
    write_quality_page,
)
from tests.helpers.browser import OVERFLOW, barriers, launched, opened

FINE = (1.0, 1.0, 3.0)
PIXEL = (
    "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"  # one, black
)


def session(
    name: str,
    *,
    information: float = 1.2,
    overlap: float = 0.97,
    shift: float = 2.0,
    brain: float | None = 1300.0,
    spacing: tuple[float, float, float] = FINE,
) -> PreparedSession:
    first = PreparedContrast("T1w", spacing, None, None, 0.0, None)
    second = PreparedContrast(
        "T2w", FINE, (1.1, information), (0.9, overlap), shift, (PIXEL, PIXEL)
    )
    return PreparedSession(name, "T1w", FINE, (first, second), brain, True, PIXEL)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (session("sub-x", information=1.01), "tell little of each other"),
        (session("sub-x", overlap=0.5), "overlap by 50% alone"),
        (session("sub-x", shift=40.0), "was moved by up to 40 mm"),
        (session("sub-x", brain=2300.0), "own brain mask has 2300 ml"),
        (session("sub-x", spacing=(1.0, 1.0, 9.0)), "voxels of 9.0 mm"),
    ],
)
def test_a_bad_session_comes_first_with_the_reason_and_what_to_do(bad: PreparedSession, words: str):
    first, *others = worst_first([session("sub-a"), bad, session("sub-b")])
    assert first.session.name == "sub-x"
    assert words in first.flags[0].found
    assert first.flags[0].do.endswith(".")
    assert not any(other.flags for other in others)


def test_a_session_unlike_the_sites_others_comes_first_although_no_limit_is_passed():
    alike = [session(f"sub-{n}", information=1.25 + 0.001 * n) for n in range(9)]
    first, *others = worst_first([*alike, session("sub-x", information=1.12)])
    assert first.session.name == "sub-x"
    assert "far below that of other sessions" in first.flags[0].found
    assert not any(other.flags for other in others)


def test_few_sessions_are_not_compared_with_each_other():
    few = [session("sub-a"), session("sub-b"), session("sub-x", information=1.1)]
    assert not any(each.flags for each in worst_first(few))


def test_names_and_reasons_are_text_and_no_markup(tmp_path: Path):
    path = tmp_path / "quality.html"
    look = write_quality_page(path, "oak", [session("sub-a")], {"sub-b": "<script>x</script>"})
    assert look == 0
    assert "<script>" not in path.read_text("utf-8")
    assert "stays at the site" in path.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_opens_alone_at_any_width_without_barriers(tmp_path: Path):
    path = tmp_path / "quality.html"
    sessions = [session("sub-a"), session("sub-x_ses-1", overlap=0.5)]
    write_quality_page(path, "oak", sessions, {"sub-b": "sub-b_T1w.nii.gz: cannot be read."})
    with launched() as browser:
        for width in (1280, 400):
            with opened(browser, path.as_uri(), width=width) as seen:
                assert seen.page.evaluate(OVERFLOW) == 0
                assert barriers(seen.page) == []
                asked = [url for url in seen.requests if not url.startswith("data:")]
                assert asked == [path.as_uri()]
                assert seen.complaints == []
