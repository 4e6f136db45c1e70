"""What a crunch prescribes, once and as data: files, columns, states, rules of a submission, constants of the scorer.

Every other module reads `CRUNCH`: `helpers.py` and what builds on it, the simulation, the validator, the local hub and
its runner. One process works on one crunch, which the environment variable CRUNCH names: 1 (the default) or 2. This
file imports nothing of the project. Next: `helpers.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Metric:
    """A score of the platform: how it is called, which direction is better, and its best possible value."""

    title: str
    higher_is_better: bool
    best: float

    @property
    def direction(self) -> str:
        """For axes and tables."""
        return "higher is better" if self.higher_is_better else "lower is better"


@dataclass(frozen=True)
class Crunch:
    """The contract of one crunch."""

    name: str  # as the crunch client spells it
    title: str
    folder: str  # of the project, where `data/`, `resources/` and `prediction/` lie
    n_training: int  # perturbations of the training file
    n_targets: int  # perturbations to predict

    # The files of `data/`.
    train_file: str
    local_truth_file: str
    proportions_file: str
    local_proportions_file: str
    signatures_file: str
    targets_file: str
    genes_file: str
    control_centroid: str  # names in `uns` of the local truth: of all cells, or of those with one guide
    perturbed_centroid: str
    double_control_centroid: str  # of the cells with two guides; empty where those above are of all cells
    double_perturbed_centroid: str

    # The cells. Expression is log2(1 + scale * count / total count of the cell).
    perturbation: str  # the column of `obs`, and of the tables of proportions, that names the perturbation
    control: str
    scale: float
    shares: list[str]  # every cell is in exactly one of these states
    part: str  # a further state, whose cells are some of those of `whole`
    whole: str
    ratio: str  # column: share of `part` / share of `whole`
    signature_columns: list[str]

    # The prediction.
    genes_argument: str  # of `infer`: the genes to predict
    prediction_file: str
    predicted_proportions_file: str
    predicted_columns: list[str]  # of the predicted proportions: exactly these
    cells_per_perturbation: int
    sum_tolerance: float  # of the sum of the shares

    # The method description.
    description_file: str  # its name in the submission ...
    description_source: str  # ... and in the project
    description_headings: tuple[str, ...]
    description_bytes: int
    description_sentences: int

    # The scores.
    metrics: dict[str, Metric]
    sigma: float  # the middle bandwidth of MMD ...
    sigma_genes: int  # ... and the number of genes it was made for: squared distances grow with it
    bandwidths: tuple[float, ...]  # the kernel is a sum over these multiples of sigma, each twice the one before
    share_weight: float  # of each share's difference in the L1 distance
    ratio_weight: float  # of the ratio's difference

    @property
    def data_files(self) -> list[str]:
        """The files of `data/`, whose names the fields say."""
        return [
            self.train_file,
            self.local_truth_file,
            self.proportions_file,
            self.local_proportions_file,
            self.signatures_file,
            self.targets_file,
            self.genes_file,
        ]

    @property
    def states(self) -> list[str]:
        """The shares and the further state."""
        return [*self.shares, self.part]

    @property
    def asks_for_doubles(self) -> bool:
        """Whether double knock-outs are to be predicted, with centroids of their own."""
        return bool(self.double_perturbed_centroid)

    @property
    def centroids(self) -> list[str]:
        """The names in `uns` of the local truth of all centroids."""
        names = [self.control_centroid, self.perturbed_centroid]
        return [*names, *filter(None, (self.double_control_centroid, self.double_perturbed_centroid))]

    def genes_of(self, name: str) -> tuple[str, ...]:
        """The genes that a perturbation's name holds, each once: A and B of `A+B`, A of `A`, `A+NC` and `A+A`.

        None for a control, `NC` or `NC+NC`. No other code reads a name as genes.
        """
        parts = (part.strip() for part in str(name).split(JOINED))
        return tuple(dict.fromkeys(part for part in parts if part not in ("", self.control)))

    def is_combination(self, name: str) -> bool:
        """Whether the name holds two or more genes."""
        return len(self.genes_of(name)) > 1

    def is_control(self, name: str) -> bool:
        """Whether the name is that of a control: `NC`, or `NC+NC`, whose cells have two guides."""
        return {part.strip() for part in str(name).split(JOINED)} == {self.control}

    def n_guides(self, name: str) -> int:
        """How many guides a perturbation's cells have: 1 of `A`, 2 of `A+B`, `A+A` and `A+NC`."""
        return 1 + str(name).count(JOINED)

    def centroid_of(self, name: str) -> str:
        """The name in `uns` of the mean over the training cells of the same kind as a perturbation or control.

        Of a perturbation it is the reference of Pearson delta. Where doubles have centroids of their own, the guides
        count, as the platform has it: `A+A` and `A+NC` are doubles. Empty for three guides or more: never scored.
        """
        if not self.asks_for_doubles or self.n_guides(name) == 1:
            return self.control_centroid if self.is_control(name) else self.perturbed_centroid
        if self.n_guides(name) > 2:
            return ""
        return self.double_control_centroid if self.is_control(name) else self.double_perturbed_centroid


OBESITY_1 = Crunch(
    name="broad-obesity-1",
    title="Broad obesity, crunch 1",
    folder=".",
    n_training=122,
    n_targets=2863,
    train_file="obesity_challenge_1.h5ad",
    local_truth_file="obesity_challenge_1_local_gtruth.h5ad",
    proportions_file="program_proportion.csv",
    local_proportions_file="program_proportion_local_gtruth.csv",
    signatures_file="signature_genes.csv",
    targets_file="predict_perturbations.txt",
    genes_file="genes_to_predict.txt",
    control_centroid="control_centroid_train",
    perturbed_centroid="perturbed_centroid_train",
    double_control_centroid="",
    double_perturbed_centroid="",
    perturbation="gene",
    control="NC",
    scale=1e5,
    shares=["pre_adipo", "adipo", "other"],
    part="lipo",
    whole="adipo",
    ratio="lipo_adipo",
    signature_columns=["program", "sig_gene"],
    genes_argument="genes_to_predict",
    prediction_file="prediction.h5ad",
    predicted_proportions_file="predict_program_proportion.csv",
    predicted_columns=["gene", "pre_adipo", "adipo", "lipo", "other"],
    cells_per_perturbation=100,
    sum_tolerance=0.001,
    description_file="Method description.md",
    description_source="Method description.md",
    description_headings=("Method Description", "Rationale", "Data and Resources Used"),
    description_bytes=4 * 1024 * 1024,
    description_sentences=15,
    metrics={
        "pearson_delta": Metric("Pearson delta", higher_is_better=True, best=1.0),
        "mmd": Metric("MMD", higher_is_better=False, best=0.0),
        "l1_distance": Metric("L1 distance", higher_is_better=False, best=0.0),
    },
    sigma=2326.0,
    sigma_genes=1000,
    bandwidths=(0.25, 0.5, 1.0, 2.0, 4.0),
    share_weight=0.75,
    ratio_weight=0.25,
)

OBESITY_2 = replace(
    OBESITY_1,
    name="broad-obesity-2",
    title="Broad obesity, crunch 2",
    folder="crunch-2",
    n_training=235,
    n_targets=62,
    train_file="obesity_challenge_2.h5ad",
    local_truth_file="obesity_challenge_2_local_gtruth.h5ad",
    targets_file="predict_perturbations_2.txt",
    genes_file="predict_genes_2.txt",
    control_centroid="single_control_centroid_train",
    perturbed_centroid="single_perturbed_centroid_train",
    double_control_centroid="double_control_centroid_train",
    double_perturbed_centroid="double_perturbed_centroid_train",
    genes_argument="predict_genes",
    predicted_columns=["gene", "pre_adipo", "adipo", "lipo", "other", "lipo_adipo"],
    description_source="Method description 2.md",
    sigma=849.0,
    sigma_genes=500,
)

CRUNCHES = {"1": OBESITY_1, "2": OBESITY_2}
CHOICE = "CRUNCH"  # the environment variable that names the crunch of this process


def chosen() -> Crunch:
    """The crunch that the environment names, or the first. Ends the process, with one line, for one that is not there.

    No exception of another kind: this is read while modules are imported, where no command could catch it.
    """
    name = os.environ.get(CHOICE, "").strip() or "1"
    if name not in CRUNCHES:
        raise SystemExit(
            f"error: the environment says {CHOICE}={name}; there is {' and '.join(CRUNCHES)}, unset it for 1"
        )
    return CRUNCHES[name]


CRUNCH = chosen()

JOINED = "+"  # between the genes of a combination

# What the platform's converter and client expect of any submission.
MAIN_FILE = "main.py"
REQUIREMENTS_FILE = "requirements.txt"
DATA_FOLDER, MODEL_FOLDER, PREDICTION_FOLDER = "data", "resources", "prediction"
# Root files that go along; each imports those before it.
TRAVELLING = ("contract.py", "helpers.py", "screens.py", "knowledge.py", "response.py", "combinations.py", "method.py")
