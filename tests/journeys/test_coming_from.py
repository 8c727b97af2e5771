"""Their side of "Coming from": NVFlare's two files do the job; Flower's are Python at least."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/start/coming-from.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(?:py|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FILES = {b.partition("\n")[0].removeprefix("# "): b for b in BLOCKS if re.match(r"# \w+\.py\n", b)}
NVFLARE = ("client.py", "job.py")
FLOWER = ("client_app.py", "server_app.py")


def test_the_page_has_the_files_of_both():
    assert FILES.keys() == {"blocks.py", *NVFLARE, *FLOWER}
    for name, text in FILES.items():
        compile(text, name, "exec")


@pytest.mark.slow
def test_what_nvflare_is_asked_for_is_there():
    names = [node for name in NVFLARE for node in ast.walk(ast.parse(FILES[name]))]
    client = importlib.import_module("nvflare.client")
    for node in names:
        if isinstance(node, ast.ImportFrom) and node.module != "blocks":
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, each.name) for each in node.names), node.module
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "flare":
            assert hasattr(client, node.attr), node.attr
    recipe = importlib.import_module("nvflare.app_opt.pt.recipes.fedavg").FedAvgRecipe
    asked = {each.arg for each in call_of("FedAvgRecipe", names).keywords}
    assert len(asked) == 5
    assert asked <= inspect.signature(recipe).parameters.keys()


def call_of(name: str, nodes: list[ast.AST]) -> ast.Call:
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    (found,) = (call for call in calls if ast.unparse(call.func) == name)
    return found


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.engine
def test_nvflare_does_the_job_with_these_two_files(tmp_path: Path):
    files = {**FILES, "data.py": BLOCKS[0]}
    for name in ("data.py", "blocks.py", *NVFLARE):
        (tmp_path / name).write_text(files[name].replace("FOLDER", str(tmp_path)), "utf-8")
    for name in ("data.py", "job.py"):
        done = subprocess.run(
            [sys.executable, name],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (saved,) = tmp_path.glob("simulated/blocks/server/simulate_job/app_server/*global_model.pt")
    shapes = {
        name: tuple(t.shape) for name, t in torch.load(saved, weights_only=True)["model"].items()
    }
    assert shapes["conv_final.2.conv.weight"] == (1, 8, 1, 1, 1)
