"""What a crunch prescribes, once and as data: files, columns, states, rules of a submission, constants of the scorer.

Every other module reads it: `helpers.py` and what builds on it, the simulation, the validator, the local hub and its
runner. It imports nothing of the project. A second crunch is a second `Crunch`. Next: `helpers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


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
    control_centroid: str  # names in `uns` of the local truth
    perturbed_centroid: str

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
    prediction_file: str
    predicted_proportions_file: str
    predicted_columns: list[str]  # of the predicted proportions: exactly these
    cells_per_perturbation: int
    sum_tolerance: float  # of the sum of the shares

    # The method description.
    description_file: str
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

    def genes_of(self, name: str) -> tuple[str, ...]:
        """The genes that a perturbation's name holds, each once: A and B of `A+B`, A of `A`, `A+NC` and `A+A`.

        None for a control, `NC` or `NC+NC`. No other code reads a name as genes.
        """
        parts = (part.strip() for part in str(name).split(JOINED))
        return tuple(dict.fromkeys(part for part in parts if part not in ("", self.control)))

    def is_combination(self, name: str) -> bool:
        """Whether the name holds two or more genes."""
        return len(self.genes_of(name)) > 1


OBESITY_1 = Crunch(
    name="broad-obesity-1",
    title="Broad obesity, crunch 1",
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
    perturbation="gene",
    control="NC",
    scale=1e5,
    shares=["pre_adipo", "adipo", "other"],
    part="lipo",
    whole="adipo",
    ratio="lipo_adipo",
    signature_columns=["program", "sig_gene"],
    prediction_file="prediction.h5ad",
    predicted_proportions_file="predict_program_proportion.csv",
    predicted_columns=["gene", "pre_adipo", "adipo", "lipo", "other"],
    cells_per_perturbation=100,
    sum_tolerance=0.001,
    description_file="Method description.md",
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

JOINED = "+"  # between the genes of a combination

# What the platform's converter and client expect of any submission.
MAIN_FILE = "main.py"
REQUIREMENTS_FILE = "requirements.txt"
DATA_FOLDER, MODEL_FOLDER, PREDICTION_FOLDER = "data", "resources", "prediction"
# Root files that go along; each imports those before it.
TRAVELLING = ("contract.py", "helpers.py", "screens.py", "knowledge.py", "response.py", "combinations.py", "method.py")
