"""What the sister systems share: seeds, devices, trained models as files, tables, the command line."""

import argparse
import hashlib
import importlib
import itertools
import os
import re
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
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
    common.Bundle("test", {"rank": 3, "names": ["x", "y"]}, arrays, {"label": "A"}).save(tmp_path / "bundle.h5")
    again = common.Bundle.load(tmp_path / "bundle.h5", "test")
    assert again.settings == {"rank": 3, "names": ["x", "y"]}
    assert again.about == {"label": "A"}
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
    with pytest.raises(DataError, match="no such model"):
        common.Bundle.load(path, "test")
    common.Bundle("other", {}, {}).save(path)
    with pytest.raises(DataError, match="a model of 'other', not of 'test'"):
        common.Bundle.load(path, "test")
    common.Bundle("test", {}, {}).save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = 99
    with pytest.raises(DataError, match="another version"):
        common.Bundle.load(path, "test")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="damaged, no trained model"):
        common.Bundle.load(path, "test")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert common.pick_device("auto").type == "cpu"
    with pytest.raises(DataError, match="--device cuda: not on this machine; there is cpu"):
        common.pick_device("cuda")


def seal(path):
    """Make a changed file look whole, as whoever means harm would."""
    with h5py.File(path, "r+") as file:
        end = file.id.get_filesize()
    content = path.read_bytes()[:end]
    path.write_bytes(content + hashlib.sha256(content).digest())


@pytest.fixture
def bundle(tmp_path):
    arrays = {"genes": np.array(["A", "B"]), "weights": np.arange(2000.0).reshape(2, 1000), "scale": np.array(2.0)}
    common.Bundle("test", {"rank": 3}, arrays, {"label": "A"}).save(tmp_path / "bundle.h5")
    return tmp_path / "bundle.h5"


def test_every_flipped_byte_is_seen(bundle, tmp_path):
    content = bytearray(bundle.read_bytes())
    random = np.random.default_rng(0)
    flipped = tmp_path / "flipped.h5"
    for place in {0, len(content) - 1, *random.integers(len(content), size=300).tolist()}:
        content[place] ^= 1 << int(random.integers(8))
        flipped.write_bytes(content)
        with pytest.raises(DataError, match=r"flipped\.h5: damaged, .* train again"):
            common.Bundle.load(flipped, "test")
        content = bytearray(bundle.read_bytes())
    for n in (0, 1, 31, 32, 33, len(content) // 2, len(content) - 1):
        flipped.write_bytes(content[:n])
        with pytest.raises(DataError, match=r"flipped\.h5: damaged, "):
            common.Bundle.load(flipped, "test")


def external_link(file, elsewhere):
    file["arrays/other"] = h5py.ExternalLink(str(elsewhere), "/weights")


def external_group(file, elsewhere):
    del file["arrays"]
    file["arrays"] = h5py.ExternalLink(str(elsewhere), "/")


def external_storage(file, elsewhere):
    file.create_dataset("arrays/other", (16,), np.uint8, external=[(str(elsewhere), 0, 16)])


def virtual(file, elsewhere):
    layout = h5py.VirtualLayout((5,), np.float64)
    layout[:] = h5py.VirtualSource(str(elsewhere), "weights", (5,))
    file.create_virtual_dataset("arrays/other", layout)


def bomb(file, elsewhere):
    file.create_dataset("arrays/other", (1 << 39,), np.float64, chunks=(1 << 20,), compression="gzip")


def packed_bomb(file, elsewhere):
    """One chunk of zeros, which stands for 4 GB."""
    data = file.create_dataset("arrays/other", (1 << 29,), np.float64, chunks=(1 << 20,), compression="gzip")
    data[:1000] = 1


def texts_of_any_length(file, elsewhere):
    file["arrays/other"] = np.array(["a", "b"], object)


def no_texts(file, elsewhere):
    del file["arrays/genes"]
    file["arrays/genes"] = np.frombuffer(b'["A", 7]', np.uint8)
    file["arrays/genes"].attrs["texts"] = (2,)


def wrong_settings(file, elsewhere):
    file.attrs["settings"] = "[1]"


def deep_settings(file, elsewhere):
    file.attrs["settings"] = "[" * 100_000


def settings_of_numbers(file, elsewhere):
    file.attrs["settings"] = np.zeros(5)


def circle(file, elsewhere):
    """No fault, but nothing to hang on."""
    file["arrays/again"] = file["arrays"]
    file.attrs["settings"] = "no JSON"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (external_link, "arrays/other lie in another file"),
        (external_group, "arrays lie in another file"),
        (external_storage, "arrays/other lie in another file"),
        (virtual, "arrays/other lie in another file"),
        (bomb, "other claims 4398.0 GB, of which the file holds nothing"),
        (packed_bomb, "other claims 4.3 GB, of which"),
        (texts_of_any_length, "other holds object, not numbers"),
        (no_texts, "genes holds something else than texts"),
        (wrong_settings, "settings that are no names with values"),
        (deep_settings, "recursion"),
        (settings_of_numbers, "settings is not a text"),
        (circle, "Expecting value"),
    ],
)
def test_nothing_in_a_sealed_file_is_trusted(bundle, tmp_path, harm, says, peak_memory):
    elsewhere = tmp_path / "secret.h5"
    with h5py.File(elsewhere, "w") as file:
        file["weights"] = np.arange(5.0)
    with h5py.File(bundle, "r+") as file:
        harm(file, elsewhere)
    seal(bundle)

    def load():
        with pytest.raises(DataError, match=rf"bundle\.h5: damaged \(.*{says}.*\); train again"):
            common.Bundle.load(bundle, "test")

    assert peak_memory(load) < 50e6


def test_what_does_not_fit_into_memory_is_said_before_it_is_asked_for(bundle, monkeypatch):
    monkeypatch.setattr(common, "free_memory", lambda: 10_000)
    with pytest.raises(DataError, match=r"its arrays take 0\.0 MB, but 0\.0 MB of memory are free"):
        common.Bundle.load(bundle, "test")


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ({"genes": "texts G", "weights": "numbers G R", "scale": "numbers"}, ""),
        (
            {"genes": "texts G", "weights": "numbers R G"},
            r"weights holds float64 \(2, 1000\), which are no numbers R G",
        ),
        ({"weights": "numbers G G"}, "are no numbers G G"),
        ({"genes": "numbers G"}, "are no numbers G"),
        ({"weights": "whole G R"}, "are no whole G R"),
        ({"weights": "numbers G"}, "are no numbers G"),
        ({"other": "numbers"}, "other is missing"),
        ({"genes": "texts H"}, "are no texts H"),
    ],
)
def test_arrays_are_held_against_their_layout(bundle, layout, says):
    arrays = common.Bundle.load(bundle, "test").arrays
    if not says:
        assert common.check_arrays(arrays, layout) == {"G": 2, "R": 1000}
        return
    with pytest.raises(DataError, match=says):
        common.check_arrays(arrays, layout, H=7)


def test_codes_and_networks_are_held_against_what_they_belong_to():
    common.check_codes(np.array([0, 2]), 3, "cell_type")
    for codes in ([0, 3], [-1, 0]):
        with pytest.raises(DataError, match="cell_type points outside its 3 names"):
            common.check_codes(np.array(codes), 3, "cell_type")
    arrays = common.under(common.module_arrays(torch.nn.Linear(3, 4), "net"), "net")
    common.check_module(lambda: torch.nn.Linear(3, 4), arrays)
    for make in (lambda: torch.nn.Linear(4, 3), lambda: torch.nn.Linear(10**9, 10**9)):
        with pytest.raises(DataError, match="not of the shapes that its settings say"):
            common.check_module(make, arrays)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_model_with_numbers_that_are_none_is_damaged(tmp_path, value):
    common.save_model(tmp_path / "m.h5", Constant(value))
    with pytest.raises(DataError, match=r"m\.h5: damaged \(value holds NaN or infinite values\); train again"):
        common.load_model(tmp_path / "m.h5", Constant)


def test_a_model_without_what_it_needs_is_damaged(tmp_path):
    common.Bundle(Constant.KIND, {}, {}).save(tmp_path / "m.h5")
    with pytest.raises(DataError, match=r"m\.h5: damaged \('value'\); train again"):
        common.load_model(tmp_path / "m.h5", Constant)


def test_what_is_no_file_is_no_model(tmp_path):
    (tmp_path / "folder.h5").mkdir()
    os.mkfifo(tmp_path / "pipe.h5")  # which would be read for ever
    for name in ("folder.h5", "pipe.h5"):
        with pytest.raises(DataError, match=f"{name}: not a file; train again"):
            common.Bundle.load(tmp_path / name, "test")
        with pytest.raises(DataError, match=f"{name}: not a file"):
            common.read_h5ad(tmp_path / name)
        with pytest.raises(DataError, match=f"{name}: not a file"):
            common.read_csv(tmp_path / name)


def test_cells_that_are_not_finite_are_not_written(tmp_path):
    labels = ad.AnnData(obs=pd.DataFrame(index=list("ABCDE")), var=pd.DataFrame(index=list("wxyz")))
    (tmp_path / "cells.h5ad").write_text("older and good")
    values = np.ones((5, 4), np.float32)
    values[3, 2] = np.nan
    with pytest.raises(DataError, match="not written, the values of cells 0 to 5 are NaN"):
        common.write_cells(tmp_path / "cells.h5ad", labels, lambda rows: values[rows])
    cells = ad.AnnData(values, obs=labels.obs, var=labels.var)
    with pytest.raises(DataError, match=r"cells\.h5ad: not written: NaN or infinite values in cells D"):
        common.write_cells(tmp_path / "cells.h5ad", cells)
    assert (tmp_path / "cells.h5ad").read_text() == "older and good"
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def bad_sparse(kind, **changes):
    matrix = kind(np.eye(4, dtype=np.float32))
    for name, (place, value) in changes.items():
        getattr(matrix, name)[place] = value
    return matrix


@pytest.mark.parametrize(
    ("X", "says"),
    [
        (bad_sparse(sp.csr_matrix, indices=(1, 2**31 - 1)), "its sparse values have no valid places"),
        (bad_sparse(sp.csr_matrix, indices=(1, -7)), "no valid places"),
        (bad_sparse(sp.csc_matrix, indices=(1, 2**30)), "no valid places"),
        (bad_sparse(sp.csr_matrix, indptr=(2, 4)), "no valid places"),
        (bad_sparse(sp.csr_matrix, data=(3, np.nan)), "NaN or infinite values in cells c3"),
        (np.full((4, 4), "0.1"), "holds <U3 in 2 dimensions, not numbers"),
        (np.ones((4, 4, 4)), "holds float64 in 3 dimensions"),
        (np.full((4, 4), 1e300), "NaN or infinite values in cells c0, c1, c2, c3"),
        (np.full((4, 4), 1j), "holds complex128"),
    ],
)
def test_a_matrix_that_is_none_is_refused_before_it_is_used(X, says):
    with pytest.raises(DataError, match=f"here: .*{says}"):
        common.checked_matrix(X, "here", pd.Index([f"c{i}" for i in range(4)]))


class Constant:
    """The smallest model that a file can hold."""

    KIND = "test/constant"

    def __init__(self, value):
        self.value = value

    def to_bundle(self):
        return common.Bundle(self.KIND, {}, {"value": np.array(self.value)})

    @classmethod
    def from_bundle(cls, bundle):
        return cls(float(bundle.arrays["value"]))


class Other(Constant):
    KIND = "test/other"


def test_a_model_comes_back_as_the_class_that_its_file_names(tmp_path):
    common.save_model(tmp_path / "m.h5", Other(2.5), seed=3)
    model, about = common.load_model(tmp_path / "m.h5", Constant, Other)
    assert (type(model), model.value, about) == (Other, 2.5, {"seed": 3})
    with pytest.raises(DataError, match="a model of 'test/other', not of 'test/constant'; train again"):
        common.load_model(tmp_path / "m.h5", Constant)


def test_cells_are_written_by_blocks_into_every_matrix(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "BLOCK_VALUES", 8)  # two cells at a time
    values, asked = np.random.default_rng(0).random((5, 4)).astype(np.float32), []

    def block(rows):
        asked.append(rows)
        return values[rows]

    labels = ad.AnnData(obs=pd.DataFrame(index=list("ABCDE")), var=pd.DataFrame(index=list("wxyz")))
    common.write_cells(tmp_path / "cells.h5ad", labels, block, ("X", "layers/normalized"))
    found = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert len(asked) == 3
    assert np.array_equal(found.X, values)
    assert np.array_equal(found.layers["normalized"], values)
    assert (list(found.obs_names), list(found.var_names)) == (list("ABCDE"), list("wxyz"))


def test_cells_are_written_by_blocks_as_one_sparse_matrix_under_two_names(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "BLOCK_VALUES", 8)  # two cells at a time
    values = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    values[values < 0.5], values[3] = 0, 0
    labels = ad.AnnData(obs=pd.DataFrame(index=list("ABCDE")), var=pd.DataFrame(index=list("wxyz")))
    names = ("X", "layers/normalized")
    common.write_cells(tmp_path / "cells.h5ad", labels, lambda rows: values[rows], names, sparse=True)
    found = ad.read_h5ad(tmp_path / "cells.h5ad")
    for matrix in (found.X, found.layers["normalized"]):
        assert matrix.format == "csr"
        assert matrix.nnz == (values > 0).sum()
        assert np.array_equal(matrix.toarray(), values)
    with h5py.File(tmp_path / "cells.h5ad") as file:
        assert file["X"] == file["layers/normalized"]
    values[4, 1] = np.nan
    with pytest.raises(DataError, match="not written, the values of cells 4 to 5 are NaN"):
        common.write_cells(tmp_path / "cells.h5ad", labels, lambda rows: values[rows], sparse=True)
    assert ad.read_h5ad(tmp_path / "cells.h5ad").n_obs == 5


def test_a_table_shows_half_of_each_interval_where_there_is_one():
    table = pd.DataFrame(
        [("a", "RMSE", 1.0, 0.9, 1.1, 5), ("b", "RMSE", 2.0, np.nan, np.nan, 1)], columns=common.COLUMNS
    )
    assert [line.split() for line in common.table_text(table).splitlines()] == [
        ["RMSE"],
        ["method"],
        ["a", "1.0000", "±", "0.1000"],
        ["b", "2.0000"],
    ]
    assert common.table_text(table, rows="metric").splitlines()[0].split() == ["a", "b"]


def refuse(options: argparse.Namespace) -> None:
    """Refuse the data."""
    raise DataError(f"{options.data}: no such file")


SYSTEM = common.System(
    name="test",
    description="Text.",
    verbs={"train": refuse, "predict": refuse, "evaluate": refuse},
    methods=("mean", "ridge"),
    method="ridge",
    data="a folder",
    result="a table",
)


def test_every_system_has_the_same_options_and_says_what_is_wrong_without_a_traceback(capsys):
    parser, _ = common.parsers(SYSTEM)
    options = parser.parse_args(["train", "--data", "x", "--seed", "3"])
    assert vars(options) == {
        "verb": "train",
        "data": Path("x"),
        "method": "ridge",
        "work": Path("build/test"),
        "seed": 3,
        "device": "auto",
    }
    assert parser.parse_args(["predict", "--data", "x"]).out is None
    options = parser.parse_args(["evaluate", "--data", "x"])
    assert (options.method, options.out, options.pictures) == (["mean", "ridge"], None, None)
    for words in (["train"], ["train", "--data", "x", "--seed", "-1"], ["train", "--data", "x", "--method", "knn"]):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "Refuse the data." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: x: no such file"):
        common.run(refuse, options)


@pytest.mark.parametrize("name", ["drug_response", "modality", "synthesis"])
def test_the_three_systems_have_the_same_modules_verbs_and_options(name):
    for module in ("data", "folds", "baselines", "networks", "training", "models", "evaluate", "plots"):
        importlib.import_module(f"challenges.{name}.{module}")
    system = importlib.import_module(f"challenges.{name}.__main__").SYSTEM
    assert {"prepare", "train", "evaluate"} < set(system.verbs)
    assert len({"predict", "sample"} & set(system.verbs)) == 1
    _, verbs = common.parsers(system)
    for verb, parser in verbs.items():
        words = {word for action in parser._actions for word in action.option_strings}
        assert {"--data", "--method", "--work", "--seed", "--device"} < words
        assert ("--out" in words) == (verb in ("predict", "sample", "repro", "evaluate"))
        assert ("--pictures" in words) == (verb == "evaluate")


@pytest.mark.parametrize("name", ["drug_response", "modality", "synthesis"])
def test_the_reading_guide_names_every_file_and_each_file_the_next(name):
    package = importlib.import_module(f"challenges.{name}")
    guide = re.findall(r"^\d+\. `(\w+)`", package.__doc__, re.MULTILINE)
    folder = Path(package.__file__).parent
    assert sorted(guide) == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    for module, after in itertools.pairwise(guide):
        text = importlib.import_module(f"challenges.{name}.{module}").__doc__
        assert f"Next: `{after}`" in " ".join(text.split()), module
