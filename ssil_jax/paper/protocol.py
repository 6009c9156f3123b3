"""Holds the paper's runs: which table or figure needs which of them.

H. Ahn and T. Moon, *A Simple Class Decision Balancing for Incremental Learning*,
arXiv:2003.13947v1, sections 4 and 6. A `Cell` is named by the paper's own numbers; a
`Scale` turns these into settings, those of the paper or smaller ones in the same ratios.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

IMAGENET, LANDMARKS_1K, LANDMARKS_10K = "ImageNet-1K", "Landmark-v2-1K", "Landmark-v2-10K"
DATASETS = (IMAGENET, LANDMARKS_1K, LANDMARKS_10K)
MEMORY_SIZES = {  # |M| of table 1; the first goes with T = 20 and T = 5
  IMAGENET: (5_000, 10_000, 20_000),
  LANDMARKS_1K: (5_000, 10_000, 20_000),
  LANDMARKS_10K: (10_000, 20_000, 30_000),
}
COMPARED = ("icarl", "ft", "il2m", "ssil")  # in the order of table 1
_REPLAYED = {20: 16, 10: 32, 5: 64}  # T -> N_M, section 6.2
_EPOCHS = {"ssil": 20}  # of later states, where a figure varies them


class Cell(NamedTuple):
  """Holds a run of the paper, without its seed; numbers are the paper's."""

  dataset: str
  method: str
  num_states: int  # T
  memory_size: int  # |M|
  batch_size_memory: int  # N_M
  epochs: int | None = None  # of later states; None for the method's own


def cell(
  dataset: str,
  method: str,
  num_states: int = 10,
  memory_size: int = 10_000,
  *,
  batch_size_memory: int | None = None,
  epochs: int | None = None,
) -> Cell:
  """Returns a cell, the same one for the same run however it is asked for."""
  if epochs == _EPOCHS.get(method):
    epochs = None
  replayed = batch_size_memory or _REPLAYED[num_states]
  return Cell(dataset, method, num_states, memory_size, replayed, epochs)


def table1_columns(dataset: str) -> list[tuple[int, int]]:
  """Returns the columns of table 1 for a data set, T and |M|."""
  sizes = MEMORY_SIZES[dataset]
  return [*((10, size) for size in sizes), (20, sizes[0]), (5, sizes[0])]


def table1() -> Iterator[Cell]:
  """Yields the cells of table 1; the paper prints no iCaRL on Landmark-v2-10K."""
  for dataset in DATASETS:
    for num_states, memory_size in table1_columns(dataset):
      for method in COMPARED:
        if (method, dataset) != ("icarl", LANDMARKS_10K):
          yield cell(dataset, method, num_states, memory_size)


TABLE2_STATES = (20, 10, 5)
TABLE2_REPLAYED = (16, 32, 64, 128)


def table2() -> Iterator[Cell]:
  """Yields the cells of table 2: SS-IL on ImageNet-1K with |M| = 5k."""
  for num_states in TABLE2_STATES:
    for replayed in TABLE2_REPLAYED:
      yield cell(IMAGENET, "ssil", num_states, 5_000, batch_size_memory=replayed)


def figure1() -> Iterator[Cell]:
  """Yields FT and IL2M on ImageNet-1K."""
  for method in ("ft", "il2m"):
    yield cell(IMAGENET, method)


def figure4(dataset: str | None = None) -> Iterator[Cell]:
  """Yields all methods on all data sets, or one; |M| = 10k, 20k for Landmark-v2-10K."""
  for name in DATASETS if dataset is None else (dataset,):
    for method in COMPARED:
      if (method, name) != ("icarl", LANDMARKS_10K):
        yield cell(name, method, memory_size=MEMORY_SIZES[name][1])


def figure5() -> Iterator[Cell]:
  """Yields all methods on ImageNet-1K."""
  for method in COMPARED:
    yield cell(IMAGENET, method)


FIGURE6_EPOCHS = (10, 20, 25, 50)
FIGURE6_SCORES = ("ft", "ssil")
FIGURE6_ABLATION = ("ft", "ft_ss", "ft_rp", "ssil")


def figure6() -> Iterator[Cell]:
  """Yields SS-IL with other epochs, and the ablations, on ImageNet-1K."""
  for epochs in FIGURE6_EPOCHS:
    yield cell(IMAGENET, "ssil", epochs=epochs)
  for method in FIGURE6_ABLATION:
    yield cell(IMAGENET, method)


def figure7() -> Iterator[Cell]:
  """Yields IL2M, whose statistics tell of FT, too, on ImageNet-1K with |M| = 5k."""
  yield cell(IMAGENET, "il2m", memory_size=5_000)


def _no_runs() -> Iterator[Cell]:
  """Yields nothing: figures 2 and 3 need no data set."""
  yield from ()


PARTS = {
  "table1": table1,
  "table2": table2,
  "figure1": figure1,
  "figure2": _no_runs,
  "figure3": _no_runs,
  "figure4": figure4,
  "figure5": figure5,
  "figure6": figure6,
  "figure7": figure7,
}


def cells_of(parts: Sequence[str]) -> list[Cell]:
  """Returns the cells of some parts, each once, in the order in which they are named."""
  return list(dict.fromkeys(one for part in parts for one in PARTS[part]()))


class Scale(NamedTuple):
  """Says how large the paper's runs are made.

  Attributes:
    title: of what is run, for the page.
    datasets: the paper's data set -> flags of what stands for it.
    flags: of all runs.
    methods: method -> flags of its runs.
    num_states: the paper's T -> T.
    memory_size: the paper's |M| -> |M|, for each data set.
    batch_size_memory: the paper's N_M -> N_M.
    epochs: the paper's epochs of later states -> epochs.
    stands_in: what stands for the paper's data set; empty if that is itself there.
    sizes: the paper's data set -> classes and training images of what stands for it, where
      these are known without it.
    other_datasets: values of --dataset that hold the same images in another form.
  """

  title: str
  datasets: Mapping[str, Mapping[str, Any]]
  flags: Mapping[str, Any]
  methods: Mapping[str, Mapping[str, Any]]
  num_states: Mapping[int, int]
  memory_size: Mapping[str, Mapping[int, int]]
  batch_size_memory: Mapping[int, int]
  epochs: Mapping[int, int]
  stands_in: str = ""
  sizes: Mapping[str, tuple[int, int]] = {}
  other_datasets: tuple[str, ...] = ()

  def label(self, dataset: str) -> str:
    """Returns what is shown for one of the paper's data sets."""
    return f"{self.stands_in} in place of {dataset}" if self.stands_in else dataset

  def cells(self, parts: Sequence[str]) -> list[Cell]:
    """Returns the cells of some parts that this scale has data for."""
    return [one for one in cells_of(parts) if one.dataset in self.datasets]

  def settings(self, one: Cell) -> dict[str, Any]:
    """Returns the flags of a cell's runs, but for seed, workdir and data_dir."""
    own = {} if one.epochs is None else {"epochs": self.epochs[one.epochs]}
    return {
      **self.flags,
      **self.datasets[one.dataset],
      **self.methods.get(one.method, {}),
      "method": one.method,
      "num_states": self.num_states[one.num_states],
      "memory_size": self.memory_size[one.dataset][one.memory_size],
      "batch_size_memory": self.batch_size_memory[one.batch_size_memory],
      **own,
    }


def _same(*numbers: int) -> dict[int, int]:
  return {number: number for number in numbers}


PAPER = Scale(
  title="the paper's own scale",
  datasets={
    IMAGENET: {"dataset": "imagenet"},
    LANDMARKS_1K: {"dataset": "landmarks_v2/1k"},
    LANDMARKS_10K: {"dataset": "landmarks_v2/10k"},
  },
  flags={"image_size": 224, "keep_test": 5},
  methods={},
  num_states=_same(20, 10, 5),
  memory_size={name: _same(*sizes) for name, sizes in MEMORY_SIZES.items()},
  batch_size_memory=_same(*TABLE2_REPLAYED),
  epochs=_same(*FIGURE6_EPOCHS),
  sizes={IMAGENET: (1_000, 1_281_167)},
)

# 5, 10 and 20 exemplars of each class and replay ratios of 8, 4 and 2, as on ImageNet-1K;
# a tenth of the first state's epochs, a fifth of the later ones'.
SMALL = Scale(
  title="60 classes of CIFAR-100 at 16 pixels, ResNet-18 of width 8",
  datasets={IMAGENET: {"dataset": "cifar100"}},
  flags={
    "num_classes": 60,
    "image_size": 16,
    "width": 8,
    "batch_size_new": 64,
    "epochs_first": 10,
    "keep_test": 0,
  },
  methods={
    "ssil": {"epochs": 4},
    **dict.fromkeys(("ft", "il2m", "ft_ss", "ft_rp"), {"epochs": 5}),
    "icarl": {"epochs_first": 6, "epochs": 6},
  },
  num_states=_same(20, 10, 5),
  memory_size={IMAGENET: {5_000: 300, 10_000: 600, 20_000: 1_200}},
  batch_size_memory={16: 8, 32: 16, 64: 32, 128: 64},
  epochs={10: 2, 20: 4, 25: 5, 50: 10},
  stands_in="CIFAR-100",
  sizes={IMAGENET: (100, 50_000)},
  other_datasets=("image_folder",),
)

# Two digits a state stand for T = 10, five for T = 5, one for T = 20.
DIGITS = Scale(
  title="scanned digits, ResNet-18 of width 16",
  datasets={IMAGENET: {"dataset": "digits"}},
  flags={"width": 16, "batch_size_new": 32, "epochs_first": 20, "log_every": 10},
  methods={
    "ssil": {"epochs": 20},
    **dict.fromkeys(("ft", "il2m", "ft_ss", "ft_rp"), {"epochs": 25}),
    "icarl": {"epochs": 20},
  },
  num_states={20: 10, 10: 5, 5: 2},
  memory_size={IMAGENET: {5_000: 10, 10_000: 20, 20_000: 40}},
  batch_size_memory={16: 4, 32: 8, 64: 16, 128: 32},
  epochs={10: 10, 20: 20, 25: 25, 50: 50},
  stands_in="digits",
)

SCALES = {"paper": PAPER, "small": SMALL, "digits": DIGITS}
