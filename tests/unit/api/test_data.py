"""Where the data of real sites lie, as Python says it."""

from pathlib import Path

import pytest

import grandrounds as gr
from grandrounds.api.run import site_files
from grandrounds.core.errors import BadSite
from grandrounds.study.site_file import SiteDataset, SiteFile
from tests.helpers.own_tasks import Line, points, table_of


def test_data_are_a_folder_a_site_file_or_its_object(tmp_path: Path):
    (tmp_path / "oak.toml").write_text('name = "oak"\ndata = "images"\n')
    given = {
        "elm": tmp_path / "elm",
        "fir": str(tmp_path / "fir.tsv"),
        "oak": str(tmp_path / "oak.toml"),
        "yew": SiteFile("yew", tmp_path),
    }
    assert site_files(given) == [
        SiteFile("elm", tmp_path / "elm"),
        SiteFile("fir", tmp_path / "fir.tsv"),
        SiteFile("oak", tmp_path / "images"),
        SiteFile("yew", tmp_path),
    ]
    with pytest.raises(BadSite) as refused:
        site_files({"ash": tmp_path / "oak.toml"})
    assert str(refused.value) == "data of site 'ash': its site file is of site 'oak'"
    with pytest.raises(BadSite, match="data of site 'ash' is an object of int; give a folder"):
        site_files({"ash": 3})  # pyright: ignore[reportArgumentType]


def test_a_dataset_is_a_site_s_data_and_trains(tmp_path: Path):
    given = {name: points(name, seed=seed).dataset for seed, name in enumerate(("oak", "yew"))}
    assert site_files(given) == [SiteDataset(name, given[name]) for name in given]
    assert site_files([SiteDataset("oak", given["oak"])]) == [SiteDataset("oak", given["oak"])]
    study = gr.load(table_of(Line), task=Line(), rounds=1)
    assert study == gr.load(table_of(Line), rounds=1)
    finished = gr.run(study, tmp_path, data=given, progress=False)
    assert {row["metric"] for row in finished.scores} == {"closeness", "error"}
    assert finished.study == study
    with pytest.raises(BadSite, match="site 'oak': Bare does not name patients"):
        gr.run(study, tmp_path / "bare", data={**given, "oak": Bare()}, progress=False)  # pyright: ignore[reportArgumentType]


class Bare:
    """A dataset of torch's kind alone."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        return {}
