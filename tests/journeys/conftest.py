"""What several journeys start from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.live_report import Shown, shown
from tests.helpers.run_folders import PFLSYNTH, write_run


@pytest.fixture
def page_of(tmp_path: Path) -> Iterator[Shown]:
    """A run of ten rounds that stands after the second."""
    folder = write_run(tmp_path / "run", PFLSYNTH, until=2)
    with shown(folder) as found:
        found.watch.look()
        yield found
