"""What the sister systems share: seeds, devices, bundles, the command line."""

import argparse

import h5py
import numpy as np
import pytest
import torch

from challenges import common
from helpers import DataError


def test_a_seed_depends_on_its_names_alone():
    seeds = [common.derived_seed(*names) for names in ((0, "model_1", 3), (0, "model_1", 4), (1, "model_1", 3))]
    assert len(set(seeds)) == 3
    assert seeds[0] == common.derived_seed(0, "model_1", 3) == 6934071346492630552


def test_reproducible_gives_the_same_numbers_and_restores_the_callers_state():
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    drawn = []
    for _ in range(2):
        with common.reproducible(0, "a") as generator:
            drawn.append((torch.nn.Linear(3, 2).weight.detach(), torch.rand(2, generator=generator)))
            assert torch.get_num_threads() == 1
        torch.rand(3)
        torch.set_rng_state(before)
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_gradient_penalty_is_that_of_each_row():
    slope = torch.tensor([3.0, 4.0, 0.0])  # of length 5 everywhere
    penalty = common.gradient_penalty(lambda rows: rows @ slope, torch.rand(7, 3), torch.rand(7, 3))
    assert penalty.item() == pytest.approx(16.0)


def test_the_gradient_penalty_is_taken_between_real_and_fake():
    penalty = common.gradient_penalty(
        lambda rows: (rows**2).sum(dim=1), torch.full((50, 1), 2.0), torch.full((50, 1), 4.0)
    )
    assert (2 * 2 - 1) ** 2 < penalty.item() < (2 * 4 - 1) ** 2  # the slope at x is 2 x


def test_a_bundle_comes_back_as_it_was(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    arrays = {"genes": np.array(["A", "B"]), "scale": np.float32(2.0), **common.module_arrays(module, "net")}
    common.Bundle("test", {"rank": 3, "names": ["x", "y"]}, arrays).save(tmp_path / "bundle.h5")
    again = common.Bundle.load(tmp_path / "bundle.h5", "test")
    assert again.settings == {"rank": 3, "names": ["x", "y"]}
    assert list(again.arrays["genes"]) == ["A", "B"]
    assert again.arrays["scale"] == 2.0
    other = common.load_module(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)), again.under("net"))
    inputs = torch.rand(5, 3)
    assert torch.equal(other(inputs), module.eval()(inputs))


def test_the_same_bundle_is_the_same_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        common.Bundle("test", {"rank": 3}, {"values": np.arange(6.0)}).save(tmp_path / name)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_missing_broken_foreign_or_newer_bundle_is_said(tmp_path):
    path = tmp_path / "bundle.h5"
    with pytest.raises(DataError, match="no such bundle"):
        common.Bundle.load(path, "test")
    common.Bundle("other", {}, {}).save(path)
    with pytest.raises(DataError, match="a bundle of 'other', not of 'test'"):
        common.Bundle.load(path, "test")
    common.Bundle("test", {}, {}).save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = 99
    with pytest.raises(DataError, match="another version"):
        common.Bundle.load(path, "test")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="not a bundle, or a broken one"):
        common.Bundle.load(path, "test")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert common.pick_device("auto").type == "cpu"
    with pytest.raises(DataError, match="--device cuda: not on this machine; there is cpu"):
        common.pick_device("cuda")


def test_the_command_line_says_what_is_wrong_without_a_traceback(capsys):
    parser, verbs = common.parsers("challenges.test", "Text.", {"train": "fit", "predict": "use"})
    verbs["train"].add_argument("--data")
    options = parser.parse_args(["train", "--data", "x", "--seed", "3"])
    assert (options.verb, options.data, options.seed, options.device) == ("train", "x", 3, "auto")

    def fail(options: argparse.Namespace) -> None:
        raise DataError(f"{options.data}: no such file")

    with pytest.raises(SystemExit, match="error: x: no such file"):
        common.run(fail, options)
