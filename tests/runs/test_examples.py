"""What one writes to bring a network, a loss, a method, a task or data: counted, and run."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch

import grandrounds as gr
from grandrounds.algorithms.methods.mrmtl import MRMTL
from grandrounds.core.messages import Reply

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MOST = {
    "a network": ("own_network.py", 1),
    "a loss": ("own_loss.py", 1),
    "an aggregation": ("own_aggregation.py", 12),
    "a personalised method": ("own_method.py", 15),
    "a dataset": ("own_task.py", 20),
    "a task": ("own_task.py", 40),
}
CLASSES = {"a dataset": "NoduleVolumes", "a task": "Nodules"}  # which share a file
ROW = re.compile(r"^\| (an? [a-z ]+) \| `examples/(\w+\.py)` \| (\d+) \| (\d+) \|$", re.MULTILINE)


@pytest.fixture(autouse=True)
def beside_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def lines(path: Path, of: str = "") -> list[str]:
    """The lines of a file, or of one of its classes, without comments and docstrings."""
    text = path.read_text("utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = [
        range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, documented) and ast.get_docstring(node)
    ]
    return [
        line
        for number, line in enumerate(text.splitlines(), 1)
        if (not of or number in span(text, of))
        and line.strip()
        and not line.strip().startswith("#")
        and not any(number in each for each in docs)
    ]


def span(text: str, of: str) -> range:
    """The numbers of the lines of a class, from its first decorator."""
    [found] = [n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == of]
    first = min(each.lineno for each in (found, *found.decorator_list))
    return range(first, (found.end_lineno or first) + 1)


def written(what: str) -> int:
    """How many lines one writes: those of a class, or all of a file with its imports."""
    path = EXAMPLES / MOST[what][0]
    if what in ("a network", "a loss"):
        return len([line for line in lines(path) if "task={" in line])
    return len(lines(path, of=CLASSES.get(what, "")))


@pytest.mark.parametrize("what", MOST)
def test_what_one_writes_is_short(what: str):
    assert 1 <= written(what) <= MOST[what][1]


def test_the_page_on_python_says_how_many_lines_and_files():
    page = (ROOT / "docs/how-to/python.md").read_text("utf-8")
    said = {what: (file, int(n), int(files)) for what, file, n, files in ROW.findall(page)}
    assert said == {what: (file, written(what), 1) for what, (file, _) in MOST.items()}


def test_a_method_of_ones_own_is_the_one_of_the_house_to_the_bit(tmp_path: Path):
    from own_method import OwnMRMTL  # pyright: ignore[reportMissingImports]

    study = gr.load("tiny", rounds=2)
    methods = [OwnMRMTL(strength=0.2), MRMTL(strength=0.2)]
    own, house = gr.compare(study, methods, tmp_path, progress=False).values()
    assert own[0].digests == house[0].digests
    values = [[row["value"] for row in run.scores] for run in (own[0], house[0])]
    assert values[0] == values[1]


def test_an_aggregation_of_ones_own_cuts_moves_to_the_median():
    from own_aggregation import ClippedMean  # pyright: ignore[reportMissingImports]

    from grandrounds.algorithms.aggregation import Updates

    state = gr.State({"w": torch.tensor([1.0, 0.0])})
    moved = {"a": [2.0, 0.0], "b": [1.0, 2.0], "c": [7.0, 8.0]}  # by 1, 2 and 10
    replies = [Reply(site=s, round=1, weights={"w": torch.tensor(w)}) for s, w in moved.items()]
    new = ClippedMean().combine(state, Updates(replies, state)).weights["w"]
    expected = torch.tensor([1 + (1 + 0 + 1.2) / 3, (0 + 2 + 1.6) / 3])
    assert torch.allclose(new, expected)


def test_an_aggregation_of_ones_own_trains(tmp_path: Path):
    from own_aggregation import ClippedMean  # pyright: ignore[reportMissingImports]

    study = gr.load("tiny", rounds=1)
    runs = gr.compare(study, [ClippedMean(), "fedavg"], tmp_path, progress=False)
    own, mean = (found[0] for found in runs.values())
    assert own.digests != mean.digests
    assert abs(own.mean() - mean.mean()) < 1
    assert sys.modules["own_aggregation"].__file__ == str(EXAMPLES / "own_aggregation.py")


@pytest.mark.parametrize("name", ["own_network.py", "own_loss.py"])
def test_a_network_and_a_loss_of_others_take_one_line(name: str, tmp_path: Path):
    done: dict[str, object] = {}
    text = (EXAMPLES / name).read_text("utf-8")
    exec(compile(text, name, "exec"), done)
    [change] = [line for line in lines(EXAMPLES / name) if "task={" in line]
    assert change.startswith("study = gr.load(")
    study = done["study"]
    assert isinstance(study, gr.Study)
    run = gr.run(study, tmp_path, progress=False)
    assert type(run.model(study.trainers[0]).network).__module__.startswith("monai.") == (
        name == "own_network.py"
    )
