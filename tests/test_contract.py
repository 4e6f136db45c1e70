"""The contract as data: its numbers agree with one another, and every other file with it."""

from dataclasses import FrozenInstanceError

import pandas as pd
import pytest

from contract import OBESITY_1 as CRUNCH


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
