"""README.md keeps its promises: its example runs, its commands and files exist, and it is short."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "RESULTS.md", ROOT / "BENCHMARKS.md", ROOT / "challenges" / "README.md"]


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(source, folder):
    script = folder / "example.py"
    script.write_text(source, encoding="utf-8")
    command = [sys.executable, str(script)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}, timeout=300
    )


def test_the_example_runs_and_prints_the_three_scores(tmp_path):
    done = run(code_blocks("python")[0], tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("pearson_delta", "mmd", "l1_distance"))


def test_the_class_of_the_example_trains_and_predicts(tmp_path):
    before = "import pandas\nimport helpers\nimport method\nfrom workbench.simulate import simulate\n"
    after = """
simulate("demo", cells=1500, genes=240, perturbations=14)
method.train("demo", "model", predictor=METHOD)
genes = helpers.load_challenge("demo").genes_to_predict
method.infer("demo", "out", "out/p.h5ad", "out/p.csv", "model", ["A", "B"], genes, predictor=METHOD)
"""
    done = run(before + code_blocks("python")[1] + after, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "p.h5ad").exists()


def test_it_is_short():
    assert len(README.split()) <= 1300


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    for module in set(re.findall(r"python -m ((?:workbench|challenges)\.[a-z_]+)", text)):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, flags=re.MULTILINE)) <= targets
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link
