"""The contract as data: its numbers agree with one another, and every other file with it."""

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pandas as pd
import pytest

from contract import CRUNCHES, OBESITY_2
from contract import OBESITY_1 as CRUNCH

ROOT = Path(__file__).resolve().parents[1]


def test_states_and_columns_agree():
    assert CRUNCH.states == [*CRUNCH.shares, CRUNCH.part]
    assert CRUNCH.whole in CRUNCH.shares
    assert sorted(CRUNCH.predicted_columns) == sorted([CRUNCH.perturbation, *CRUNCH.states])


def test_bandwidths_double_up_to_the_last():
    """`helpers.scorer_kernel` takes squares, and so relies on it."""
    assert [2 * width for width in CRUNCH.bandwidths[:-1]] == list(CRUNCH.bandwidths[1:])


def test_a_metric_says_which_direction_is_better():
    assert {name: metric.direction for name, metric in CRUNCH.metrics.items()} == {
        "pearson_delta": "higher is better",
        "mmd": "lower is better",
        "l1_distance": "lower is better",
    }


def test_the_contract_cannot_be_changed_in_passing():
    with pytest.raises(FrozenInstanceError):
        CRUNCH.control = "other"


def test_a_data_folder_holds_the_files_and_columns_of_the_contract(demo_folder):
    files = [CRUNCH.train_file, CRUNCH.local_truth_file, CRUNCH.local_proportions_file]
    files += [CRUNCH.targets_file, CRUNCH.genes_file]
    assert [name for name in files if not (demo_folder / name).exists()] == []
    assert list(pd.read_csv(demo_folder / CRUNCH.signatures_file)) == CRUNCH.signature_columns
    columns = set(pd.read_csv(demo_folder / CRUNCH.proportions_file))
    assert columns >= {CRUNCH.perturbation, *CRUNCH.states, CRUNCH.ratio}


def test_the_ratio_is_predicted_in_crunch_2_alone():
    assert CRUNCH.ratio not in CRUNCH.predicted_columns
    assert OBESITY_2.predicted_columns == [*CRUNCH.predicted_columns, CRUNCH.ratio]


def test_what_differs_in_crunch_2_and_nothing_else():
    one, two = asdict(CRUNCH), asdict(OBESITY_2)
    assert {name for name in one if one[name] != two[name]} == {
        *("name", "title", "folder", "n_training", "n_targets", "train_file", "local_truth_file", "targets_file"),
        *("genes_file", "control_centroid", "perturbed_centroid", "double_control_centroid"),
        *("double_perturbed_centroid", "genes_argument", "predicted_columns", "description_source", "sigma"),
        "sigma_genes",
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("A", "single_perturbed"),
        ("NC", "single_control"),
        ("A+B", "double_perturbed"),
        ("A+A", "double_perturbed"),
        ("A+NC", "double_perturbed"),
        ("NC+ZBED3", "double_perturbed"),
        ("NC+NC", "double_control"),
        ("A+B+C", ""),
        ("A+B+NC", ""),
    ],
)
def test_the_centroid_of_a_name_counts_guides(name, kind):
    assert OBESITY_2.centroid_of(name) == (f"{kind}_centroid_train" if kind else "")
    assert OBESITY_2.is_control(name) == kind.endswith("control")
    assert CRUNCH.centroid_of(name) == f"{'control' if OBESITY_2.is_control(name) else 'perturbed'}_centroid_train"


def chosen(value):
    """What a process says whose environment names a crunch."""
    known = {name: text for name, text in os.environ.items() if name != "CRUNCH"}
    command = [sys.executable, "-c", "from helpers import CRUNCH; print(CRUNCH.name)"]
    known |= {} if value is None else {"CRUNCH": value}
    return subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("value", "number"), [(None, "1"), ("", "1"), ("1", "1"), ("2", "2")])
def test_the_environment_chooses_the_crunch(value, number):
    assert chosen(value).stdout.strip() == CRUNCHES[number].name


def test_an_unknown_crunch_is_one_line():
    done = chosen("3")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: the environment says CRUNCH=3; there is 1 and 2, unset it for 1"


def test_every_module_takes_the_crunch_that_was_chosen():
    modules = [*ROOT.glob("*.py"), *ROOT.glob("workbench/**/*.py"), *ROOT.glob("challenges/**/*.py")]
    assert len(modules) > 50
    assert [path.name for path in modules if "OBESITY_1 as CRUNCH" in path.read_text()] == []
