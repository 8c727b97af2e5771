"""How a site opens in a federation, and what the coordinator hears if it cannot."""

from pathlib import Path

import pytest

from grandrounds.core.failures import Disclosure
from grandrounds.engines.envelope import READY, ReplyEnvelope, RequestEnvelope, pack, unpack
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.flare.executor import open_site_of_kit
from grandrounds.flare.job import JobPaths
from tests.helpers.federation import tiny
from tests.helpers.remote_sites import nowhere

REFUSALS = {
    "data = Müller": "its site file is not valid TOML",
    'name = "alder"\ndata = "Müller"\nMüller = 1': "its site file is not valid TOML",
    'name = "alder"\ndata = "Müller"\nmueller = 1': "a key of its site file is wrong or unknown",
    'name = "Müller"\ndata = "Müller"': "a key of its site file is wrong or unknown",
    'name = "mueller"\ndata = "Müller"': "its site file names another site than this one",
    'name = "alder"\ndata = "Müller"': "it is simulated in this study, and takes no site file",
}


@pytest.mark.parametrize("text", REFUSALS)
def test_a_site_file_that_is_wrong_is_a_refusal_without_its_words(tmp_path: Path, text: str):
    site, study = tmp_path / "site.toml", tiny(sites=2)
    site.write_text(text, "utf-8")
    paths = JobPaths(tmp_path / "s", site, tmp_path, tmp_path / "run", tmp_path / "r", None)
    told = Disclosure("alder", study.names)
    agent = SiteAgent(open_site_of_kit(study, "alder", paths), nowhere, told)
    answer = unpack(agent.answer(pack(RequestEnvelope(number=READY, wait=10.0))), ReplyEnvelope)
    agent.close()
    assert answer.state == "refused"
    assert answer.body.decode() == (
        f"site 'alder' cannot open: {REFUSALS[text]}; see the log of site 'alder'"
    )
