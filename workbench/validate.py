"""Says whether a submission keeps the platform's rules, before the platform does.

In: a prediction folder (`prediction.h5ad`, `predict_program_proportion.csv`), the perturbations and genes asked for,
and `Method description.md`, beside which `resources/` may lie. Out: a list of problems, one sentence each; an empty
list means valid. The matrix is read by slabs, so 25 GB of prediction take little memory. Predicted files are checked
with `contract.py` alone.

    python -m workbench.validate PREDICTION_FOLDER DATA_FOLDER ["Method description.md"]
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from contract import CRUNCH, DATA_FOLDER, MODEL_FOLDER, PREDICTION_FOLDER

APART = (MODEL_FOLDER, DATA_FOLDER, PREDICTION_FOLDER)  # the platform keeps them apart from the submission's files
KEPT = ".gitkeep"  # git keeps the empty prediction folder by this file; the platform has no git
SLAB_VALUES = 8_000_000  # 64 MB of float64 at a time


def requested_perturbations(data: Path, *, local: bool) -> list[str]:
    """Perturbations to predict, in their file's order: those with a local truth, or all that the cloud asks for.

    Raises ValueError, which names the file, where it is missing, not text, or without a column of perturbations.
    """
    if not local:
        return _names(data / CRUNCH.targets_file)
    path, truth = data / CRUNCH.local_proportions_file, data / CRUNCH.local_truth_file
    if not path.exists() and truth.exists() and not has_states(data):
        return _perturbations_of(truth)
    table = _read_table(path)
    if CRUNCH.perturbation not in table:
        raise ValueError(f"{path}: no column {CRUNCH.perturbation}; it has {_first(table.columns)}")
    return table[CRUNCH.perturbation].astype(str).tolist()


def has_states(data: Path) -> bool:
    """Whether anything in a data folder speaks of states of the cells: only then are proportions predicted."""
    if any((data / name).exists() for name in (CRUNCH.proportions_file, CRUNCH.local_proportions_file)):
        return True
    try:
        with h5py.File(data / CRUNCH.train_file) as file:
            obs = file["obs"]
            return isinstance(obs, h5py.Dataset) or any(state in obs for state in CRUNCH.states)
    except (OSError, KeyError):  # what is wrong with it is said elsewhere
        return True


def _perturbations_of(path: Path) -> list[str]:
    """The perturbations of the cells in a file, sorted."""
    try:
        with h5py.File(path) as file:
            return sorted(set(read_elem(file["obs"])[CRUNCH.perturbation].astype(str)))
    except (OSError, KeyError) as error:
        raise ValueError(f"{path}: not a readable h5ad file ({error})") from error


def requested_genes(data: Path) -> list[str]:
    """Genes to predict, in their file's order (another than that of the training cells). Raises ValueError as above."""
    return _names(data / CRUNCH.genes_file)


def _names(path: Path) -> list[str]:
    """One name a line, with or without a byte-order mark."""
    _check_plain(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as text in UTF-8 ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path}: the file is empty")
    return names


def _check_plain(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise ValueError(f"{path}: not a file; put the file there")


def _read_table(path: Path) -> pd.DataFrame:
    """A csv file; a gene may be called "NA". Raises ValueError for one that is none."""
    _check_plain(path)
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable CSV file ({error})") from error


def validate_prediction_folder(
    folder: str | Path,
    perturbations: Sequence[str],
    genes: Sequence[str],
    *,
    cells_per_perturbation: int = CRUNCH.cells_per_perturbation,
    proportions: bool = True,
) -> list[str]:
    """Problems of the folder: exactly the two expected files (`.gitkeep` aside), and both valid.

    Of a screen without states `proportions` is False: then the cells alone are expected. Raises FileNotFoundError when
    there is no such folder.
    """
    folder = Path(folder)
    expected = [CRUNCH.prediction_file, *([CRUNCH.predicted_proportions_file] if proportions else [])]
    extra = sorted({path.name for path in folder.iterdir()} - {*expected, KEPT})
    problems = [f"{name}: unexpected file in the prediction folder; write temporary files elsewhere." for name in extra]
    prediction, table = folder / CRUNCH.prediction_file, folder / CRUNCH.predicted_proportions_file
    return problems + validate_submission(
        prediction,
        table if proportions else None,
        perturbations,
        genes,
        cells_per_perturbation=cells_per_perturbation,
    )


def validate_submission(
    prediction_h5ad: str | Path,
    proportions_csv: str | Path | None,
    perturbations: Sequence[str],
    genes: Sequence[str],
    *,
    cells_per_perturbation: int = CRUNCH.cells_per_perturbation,
) -> list[str]:
    """Problems of the two files against the P perturbations and G genes asked for; a missing file is a problem.

    The prediction may hold more perturbations and genes than asked for (the platform drops them), in any order;
    the proportions may not; None says that there are none to check.
    """
    problems = _check_prediction(Path(prediction_h5ad), perturbations, genes, cells_per_perturbation)
    return problems + ([] if proportions_csv is None else _check_proportions(Path(proportions_csv), perturbations))


def validate_method_description(
    path_or_text: str | Path, *, submission: str | Path | None = None, resources: str | Path | None = None
) -> list[str]:
    """Problems of the method description: a `Path` (or one line that ends in `.md`) is a file, else the text itself.

    A file must be called `Method description.md` and lie directly in `submission`; without `submission` it only must
    not lie in a folder that the platform treats apart (`resources/`, `data/`, `prediction/`). It must credit the
    tables and screens in `resources`; without it, in the folder of that name beside the file.
    """
    name, problems = CRUNCH.description_file, []
    if isinstance(path_or_text, Path) or ("\n" not in path_or_text and path_or_text.endswith(".md")):
        path = Path(path_or_text).resolve()
        if not path.is_file():
            return [f"{name}: the file is missing; write it at the top level of the submission."]
        at_top = (
            path.parent == Path(submission).resolve()
            if submission
            else path.parent.name not in (MODEL_FOLDER, DATA_FOLDER, PREDICTION_FOLDER)
        )
        if path.name != name or not at_top:
            problems.append(f"{name}: found as {path_or_text}; put it at the top level of the submission.")
        content, resources = path.read_bytes(), resources or path.parent / MODEL_FOLDER
    else:
        content = path_or_text.encode()

    if len(content) > CRUNCH.description_bytes:
        problems.append(f"{name}: {len(content)} bytes, at most {CRUNCH.description_bytes} are allowed; shorten it.")
    text = content.decode("utf-8", errors="replace").replace("\r", "")
    strange = _unique(character for character in text if not character.isascii())
    if strange:
        problems.append(f"{name}: characters outside ASCII ({_first(map(ascii, strange))}); replace them.")

    visible = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for heading in CRUNCH.description_headings:
        found = len(re.findall(rf"^#+ *{heading}$", visible, flags=re.MULTILINE | re.IGNORECASE))
        if found != 1:
            problems.append(f"{name}: {found} headings `# {heading}` on a line of their own; write exactly one.")
    sentences = [part for part in re.split(r"[.!?;:\n]", visible) if part.strip()]
    if len(sentences) < CRUNCH.description_sentences:
        problems.append(
            f"{name}: {len(sentences)} sentences or lines, {CRUNCH.description_sentences} are needed; describe more."
        )
    return problems + (_uncredited(text, resources) if resources else [])


def _uncredited(text: str, resources: str | Path) -> list[str]:
    from workbench.sources.record import uncredited  # noqa: PLC0415 - the runner loads this file with contract.py alone

    return uncredited(text, resources)


def _check_prediction(path: Path, perturbations: Sequence[str], genes: Sequence[str], cells: int) -> list[str]:
    name = path.name
    if not path.is_file():
        return [f"{name}: the file is missing; infer must write it."]
    try:
        with h5py.File(path) as file:
            if elsewhere := stored_elsewhere(file):
                return [f"{name}: {_first(elsewhere)} lie in another file, which does not travel; write them here."]
            obs, var = read_elem(file["obs"]), read_elem(file["var"])
            problems = _check_cells(name, obs, perturbations, cells) + _check_genes(name, var.index, genes)
            return problems + _check_values(name, file.get("X"), obs, var)
    except Exception as error:  # noqa: BLE001 - a damaged file raises whatever it is that its reader met
        what = " ".join(str(error).split("\n"))
        return [f"{name}: not a readable h5ad file ({what}); write it with AnnData.write_h5ad."]


def stored_elsewhere(file: h5py.File) -> list[str]:
    """The names in an HDF5 file whose contents are taken from another file: reading them would read that one."""
    found: list[str] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset | h5py.Datatype) -> None:
        if isinstance(item, h5py.Group):
            links = {f"{name}/{key}".lstrip("/"): item.get(key, getlink=True) for key in item}
            found.extend(key for key, link in links.items() if isinstance(link, h5py.ExternalLink))
        elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
            found.append(name)

    visit("", file)
    file.visititems(visit)  # each object once, whatever the links: a file may hold circles
    return found


def _check_cells(name: str, obs: pd.DataFrame, perturbations: Sequence[str], cells: int) -> list[str]:
    """`obs` (cells x columns) holds the perturbation of each cell in `gene`, and nothing else."""
    if list(obs.columns) != [CRUNCH.perturbation]:
        columns = _first(obs.columns) or "none"
        return [f"{name}: obs has the columns {columns}; keep exactly one, gene."]
    problems = []
    unnamed = int(obs[CRUNCH.perturbation].isna().sum())
    if unnamed:
        problems.append(f"{name}: obs column gene is empty in {unnamed} cells; name the perturbation of every cell.")
    counts = obs[CRUNCH.perturbation].dropna().astype(str).value_counts()
    missing = [gene for gene in _unique(perturbations) if gene not in counts.index]
    if missing:
        problems.append(
            f"{name}: obs column gene lacks {len(missing)} ({_first(missing)}); predict all that are asked."
        )
    wrong = [f"{gene} {count}" for gene, count in counts.items() if count != cells]
    if wrong:
        problems.append(
            f"{name}: obs column gene has not {cells} cells for {_first(wrong)}; write exactly {cells} each."
        )
    return problems


def _check_genes(name: str, found: pd.Index, genes: Sequence[str]) -> list[str]:
    problems = []
    repeated = found[found.duplicated()].unique()
    if len(repeated):
        problems.append(f"{name}: var names {_first(repeated)} stand more than once; write each gene once.")
    missing = [gene for gene in genes if gene not in found]
    if missing:
        problems.append(
            f"{name}: var names lack {len(missing)} genes ({_first(missing)}); predict every gene asked for."
        )
    return problems


def _check_values(name: str, x: h5py.Dataset | h5py.Group | None, obs: pd.DataFrame, var: pd.DataFrame) -> list[str]:
    """X (cells x genes), dense or sparse: there, numeric, of the right shape, finite. Negative values are allowed."""
    if x is None:
        return [f"{name}: X is missing; write the predicted values there."]
    sparse = isinstance(x, h5py.Group)
    shape = tuple(x.attrs["shape"]) if sparse else x.shape
    if shape != (len(obs), len(var)):
        return [f"{name}: X is {shape}, obs and var say {(len(obs), len(var))}; write cells x genes."]
    if sparse and (problem := _check_places(x)):
        return [f"{name}: X {problem}; write it with AnnData.write_h5ad."]
    values = x["data"] if sparse else x
    if values.dtype.kind not in "iuf":
        return [f"{name}: X holds {values.dtype}, not numbers; write float32."]
    bad, rows, columns = 0, set[int](), set[int]()
    for start, slab in _slabs(values):
        where = np.argwhere(~np.isfinite(slab))
        bad += len(where)
        rows.update(np.unique(where[:, 0]) + start)
        columns.update(np.unique(where[:, -1]))
    if not bad:
        return []
    places = ""
    if not sparse:
        perturbed = (
            f"perturbation {_first(_unique(obs[CRUNCH.perturbation].iloc[sorted(rows)]))}, "
            if CRUNCH.perturbation in obs
            else ""
        )
        places = f", in {perturbed}gene {_first(var.index[sorted(columns)])}"
    return [f"{name}: X has {bad} values that are NaN or infinite{places}; replace them."]


def _check_places(x: h5py.Group) -> str:
    """What is wrong with the places of sparse values (CSR or CSC), in words; empty if nothing."""
    by_cell = x.attrs["encoding-type"] == "csr_matrix"
    n_rows, n_columns = x.attrs["shape"] if by_cell else x.attrs["shape"][::-1]
    starts, places, n_values = x["indptr"][:], x["indices"], len(x["data"])
    if len(starts) != n_rows + 1 or starts[0] != 0 or starts[-1] != n_values or (np.diff(starts) < 0).any():
        return f"has an indptr that does not rise from 0 to its {n_values} values in {n_rows} steps"
    if len(places) != n_values:
        return f"has {len(places)} indices for {n_values} values"
    for _, slab in _slabs(places):
        if len(slab) and (slab.min() < 0 or slab.max() >= n_columns):
            return f"has values outside its {n_columns} {'genes' if by_cell else 'cells'}"
    return ""


def _slabs(values: h5py.Dataset) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of a one- or two-dimensional dataset, about SLAB_VALUES values at a time."""
    rows = max(1, SLAB_VALUES // max(1, int(np.prod(values.shape[1:]))))
    for start in range(0, values.shape[0], rows):
        yield start, values[start : start + rows]


def _check_proportions(path: Path, perturbations: Sequence[str]) -> list[str]:
    """The table: one row per perturbation asked for, the four states' proportions, and their ratio where asked for."""
    name = path.name
    if not path.is_file():
        return [f"{name}: the file is missing; infer must write it."]
    try:
        table = _read_table(path)
    except ValueError as error:  # empty, not text, or rows of unequal length
        return [f"{name}: {error}; write it with DataFrame.to_csv(index=False)."]
    expected = CRUNCH.predicted_columns
    problems = []
    missing, extra = [c for c in expected if c not in table], [c for c in table if c not in expected]
    if missing:
        problems.append(f"{name}: the columns lack {_first(missing)}; write exactly {', '.join(expected)}.")
    if extra:
        problems.append(f"{name}: the columns {_first(extra)} are not allowed; write exactly {', '.join(expected)}.")
    if missing:
        return problems
    return problems + _check_rows(name, table[CRUNCH.perturbation], perturbations) + _check_numbers(name, table)


def _check_rows(name: str, genes: pd.Series, perturbations: Sequence[str]) -> list[str]:
    counts, asked = Counter(genes.dropna().astype(str)), set(perturbations)
    groups = {
        "lacks": ([gene for gene in _unique(perturbations) if gene not in counts], "write one row each"),
        "repeats": ([gene for gene, count in counts.items() if count > 1], "write one row each"),
        "has unasked": ([gene for gene in counts if gene not in asked], "remove their rows"),
    }
    return [f"{name}: column gene {what} {_first(found)}; {todo}." for what, (found, todo) in groups.items() if found]


def _check_numbers(name: str, table: pd.DataFrame) -> list[str]:
    problems = []
    genes = table[CRUNCH.perturbation].astype(str)
    columns = CRUNCH.predicted_columns[1:]
    numbers = table[columns].apply(pd.to_numeric, errors="coerce")
    for state in columns:
        text = numbers[state].isna() & table[state].notna()
        found = {"NaN": table[state].isna(), "no number": text}
        found |= {"infinite": np.isinf(numbers[state]), "negative": numbers[state] < 0}
        for what, bad in found.items():
            if bad.any():
                problems.append(f"{name}: column {state} is {what} for {_first(genes[bad])}; write a finite number.")
    if table[CRUNCH.perturbation].isna().any():
        problems.append(f"{name}: column gene is NaN in {int(table['gene'].isna().sum())} rows; name the perturbation.")

    above = numbers[CRUNCH.part] > numbers[CRUNCH.whole]
    if above.any():
        problems.append(f"{name}: column lipo exceeds adipo for {_first(genes[above])}; lipo is a part of adipo.")
    total = numbers[CRUNCH.shares].sum(axis=1, skipna=False)
    off = (total - 1).abs() > CRUNCH.sum_tolerance
    if off.any():
        problems.append(f"{name}: pre_adipo + adipo + other is not 1 for {_first(genes[off])}; divide by their sum.")
    return problems + (_check_ratio(name, genes, numbers) if CRUNCH.ratio in columns else [])


def _check_ratio(name: str, genes: pd.Series, numbers: pd.DataFrame) -> list[str]:
    """`lipo_adipo` is lipo / adipo; of no adipo there is no ratio, which the platform refuses whatever is written."""
    problems, none = [], numbers[CRUNCH.whole] == 0
    if none.any():
        problems.append(
            f"{name}: column adipo is 0 for {_first(genes[none])}, so lipo / adipo is none; write a little."
        )
    ratio = numbers[CRUNCH.part] / numbers[CRUNCH.whole].where(~none)
    off = (ratio - numbers[CRUNCH.ratio]).abs() > CRUNCH.sum_tolerance
    if off.any():
        problems.append(f"{name}: column lipo_adipo is not lipo / adipo for {_first(genes[off])}; write that ratio.")
    return problems


def _first(names: Iterable, most: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def main(arguments: list[str] | None = None) -> int:
    """Command line: print OK or the problems; 0 when there are none, else 1."""
    from workbench.commands import command_line  # noqa: PLC0415 - the runner loads this file with contract.py alone

    with command_line():
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    from helpers import DataError  # noqa: PLC0415 - see above

    parser = argparse.ArgumentParser(prog="python -m workbench.validate", description=__doc__.splitlines()[0])
    parser.add_argument("prediction_folder", type=Path)
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("method_description", type=Path, nargs="?")
    parser.add_argument("--cloud", action="store_true", help=f"all of {CRUNCH.targets_file}, not the local few")
    options = parser.parse_args(arguments)

    for folder in (options.prediction_folder, options.data_folder):
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    try:
        perturbations = requested_perturbations(options.data_folder, local=not options.cloud)
        genes = requested_genes(options.data_folder)
    except ValueError as error:
        raise DataError(str(error)) from error
    problems = validate_prediction_folder(
        options.prediction_folder, perturbations, genes, proportions=has_states(options.data_folder)
    )
    if options.method_description is not None:
        problems += validate_method_description(options.method_description)
    print("\n".join(problems) or "OK")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
