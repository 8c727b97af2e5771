"""The tutorial notebooks run in a real kernel, and are kept without what a run leaves in them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.notebooks import NOTEBOOKS, executed, needs_kernel, outputs, said

FIRST = "1-first-federation"
ENDS_WITH = {
    "1-first-federation": "report: runs/compared/report.html",
    "2-my-monai-network": "largest difference from the trained model: ",
    "3-my-own-method": "the same weights after each round: True",
}
SENTENCE = re.compile(r"^(The hospitals|It is not clear|Too few patients)", re.MULTILINE)
ABSOLUTE = re.compile(r"""["'(= ](/(?!data/)\w+|~/|[A-Z]:\\)""")
METHOD = re.compile(r"@dataclass\(frozen=True\)\nclass Mixed.*", re.DOTALL)


def cells(path: Path) -> list[Any]:
    return json.loads(path.read_text("utf-8"))["cells"]


def source(cell: Any) -> str:
    return "".join(cell["source"])


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == list(ENDS_WITH)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_paths_of_a_machine(path: Path):
    table = json.loads(path.read_text("utf-8"))
    assert (table["nbformat"], table["nbformat_minor"]) >= (4, 5)
    assert set(table["metadata"]) <= {"kernelspec", "language_info"}
    ids = [cell["id"] for cell in table["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in table["cells"]:
        assert cell["metadata"] == {}
        assert not ABSOLUTE.search(source(cell)), source(cell)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            assert len(source(cell).splitlines()) <= 30


@needs_kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid(path: Path):
    import nbformat

    nbformat.validate(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_a_title_and_a_sentence_and_ends_with_what_to_turn_up(path: Path):
    texts = [source(cell) for cell in cells(path) if cell["cell_type"] == "markdown"]
    title, _, first = texts[0].partition("\n\n")
    assert title.startswith("# ")
    assert 40 < len(first.partition(". ")[0]) < 200
    assert texts[-1].startswith("## For real results, turn these up")
    for link in re.findall(r"\]\(((?!https?:)[^)#]+)\)", "\n".join(texts)):
        assert (path.parent / link).exists(), link


def test_the_method_of_a_cell_is_the_one_of_the_module_and_short():
    code = [source(cell) for cell in cells(NOTEBOOKS[2]) if cell["cell_type"] == "code"]
    written = [found.group().strip() for text in code if (found := METHOD.search(text))]
    assert len(written) == 2
    assert written[0] == written[1]
    lines = [line for line in written[0].splitlines() if line.strip() and '"""' not in line]
    assert len(lines) == 9  # as the notebook says
    assert "a class of nine lines" in source(cells(NOTEBOOKS[2])[0])


@needs_kernel
@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem == FIRST else pytest.mark.full)
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path: Path, tmp_path: Path):
    folder = tmp_path / "work"
    shutil.copytree(path.parent, folder)
    found = outputs(executed(path, folder, tmp_path))
    text = said(found)
    assert ENDS_WITH[path.stem] in text
    assert not [each for each in found if each.get("name") == "stderr"]
    assert any("image/png" in each.get("data", ()) for each in found)
    if path.stem == FIRST:
        assert SENTENCE.search(text)
        assert "did you mean 'fedavg'?" in text
    if path.stem == "3-my-own-method":
        assert "holds: stopped in any round and resumed = never stopped" in text
        assert "is defined in this notebook; move it into a module" in text


RUN = """
import grandrounds as gr
gr.run(gr.load("tiny", rounds=2, method="fedavg"), "run")
"""


@needs_kernel
@pytest.mark.slow
def test_a_cell_that_ends_with_a_run_shows_its_bar_and_its_table(tmp_path: Path):
    found = outputs(executed([RUN], tmp_path, tmp_path))
    [table] = [each["data"] for each in found if each["output_type"] == "execute_result"]
    assert table["text/html"].startswith("<table>")
    assert "<th>FedAvg</th><th>psnr</th>" in table["text/html"]
    assert {each["output_type"] for each in found} == {"display_data", "execute_result"}
    shown = [each["data"] for each in found if each["output_type"] == "display_data"]
    [bar] = [data for data in shown if "2/2 rounds" in data["text/plain"]]
    assert "<pre" in bar["text/html"]
    assert len(said(found).splitlines()) < 10
    assert "\\u001b" not in json.dumps(found)
