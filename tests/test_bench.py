"""The benchmark: every job runs, on a few cells, and a page comes of it. No time is tested."""

import pandas as pd
import pytest

from workbench import bench
from workbench.bench import JOBS, Size

TINY = Size(cells=900, genes=1_300, targets=24, predicted_genes=1_200, repeats=1, perturbations=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the jobs read is made once."""
    return tmp_path_factory.mktemp("bench")


@pytest.mark.parametrize(("job", "variant"), [(job, variant) for job, variants in JOBS.items() for variant in variants])
def test_every_variant_of_a_job_runs(job, variant, folder):
    bench.make_inputs(job, folder, TINY)
    JOBS[job][variant](folder, TINY)
    written = [path.stat().st_size for path in (folder / "out").iterdir()]
    assert all(written)
    assert bool(written) == (job in ("adopt", "infer", "write"))
    for path in (folder / "out").iterdir():
        path.unlink()


def test_a_page_of_a_measured_job_and_of_what_the_compact_form_loses(folder, monkeypatch):
    monkeypatch.setitem(bench.SIZES, "quick", TINY)
    rows = bench.run_job("aggregate", folder, "quick", [bench.READ, "this"]) + bench.compact_loss(folder)
    table = pd.DataFrame(rows)
    assert (table["seconds"].iloc[:2] > 0).all()
    assert (table["ratio"] == table["limits"])[:2].all()
    assert (table["value"].iloc[2:] < 0.001).all()
    lines = bench.page(table, "python -m workbench.bench").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert [row[:3] for row in cells[1:3]] == [["aggregate", name, "900 x 1,300"] for name in (bench.READ, "this")]
    assert len({len(row) for row in cells}) == 1
