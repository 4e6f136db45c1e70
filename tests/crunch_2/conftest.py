"""A small demo folder of crunch 2. A process that works on crunch 1 collects nothing here."""

import pytest

import helpers
from method import train
from workbench.simulate import simulate

SMALL = {"cells": 3500, "genes": 240, "perturbations": 8, "unseen": 6, "seed": 1}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with `data/` and `answer.h5`: 8 genes alone and in 28 pairs. Read only."""
    folder = tmp_path_factory.mktemp("doubles")
    simulate(folder / "data", answer=folder / "answer.h5", **SMALL)
    return folder


@pytest.fixture(scope="session")
def challenge(made):
    return helpers.load_challenge(made / "data")


@pytest.fixture(scope="session")
def stats(challenge):
    return helpers.perturbation_stats(challenge.train_path)


@pytest.fixture(scope="session")
def trained(made, tmp_path_factory):
    resources = tmp_path_factory.mktemp("resources")
    train(made / "data", resources)
    return resources
