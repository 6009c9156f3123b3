"""The paper's runs: its cells, and what each scale makes of them."""

import pytest

from ssil_jax.commands import paper
from ssil_jax.errors import ConfigError
from ssil_jax.paper import protocol
from ssil_jax.paper.protocol import IMAGENET, LANDMARKS_10K, PAPER, SCALES, cell


def test_every_cell_of_both_tables_is_there_once():
  cells = list(protocol.table1())
  # 3 data sets, 5 columns, 4 methods; the paper prints no iCaRL on Landmark-v2-10K.
  assert len(cells) == len(set(cells)) == 3 * 5 * 4 - 5
  assert len(set(protocol.table2())) == 3 * 4
  # What both have is one run: SS-IL with each T's own N_M.
  assert len({*cells} & {*protocol.table2()}) == 3


def test_the_default_is_the_same_cell_as_its_value_in_words():
  assert cell(IMAGENET, "ssil", 10, 10_000, batch_size_memory=32, epochs=20) == cell(
    IMAGENET, "ssil"
  )
  assert cell(IMAGENET, "ft", epochs=25) != cell(IMAGENET, "ft")


def test_all_parts_on_one_data_set():
  # Table 1: 20; table 2: 9 more; epochs: 3 more; ablations: 2 more.
  cells = [one for one in protocol.cells_of([*protocol.PARTS]) if one.dataset == IMAGENET]
  assert len(cells) == 34
  assert protocol.cells_of(["figure2", "figure3"]) == []


@pytest.mark.parametrize("part", [p for p in protocol.PARTS if p[-1] not in "23"])
def test_the_papers_own_numbers(part):
  for one in protocol.cells_of([part]):
    settings = PAPER.settings(one)
    assert settings["num_states"] == one.num_states
    assert settings["memory_size"] == one.memory_size
    assert settings["batch_size_memory"] == one.batch_size_memory
    assert settings.get("epochs") == one.epochs


@pytest.mark.parametrize("scale", ["small", "digits"])
def test_smaller_scales_keep_the_papers_ratios(scale):
  made = SCALES[scale]
  for one in made.cells([*protocol.PARTS]):
    settings = made.settings(one)
    ratio = 128 / one.batch_size_memory
    assert settings["batch_size_new"] / settings["batch_size_memory"] == ratio
    # 5, 10 or 20 exemplars of each class; of ten digits, a fifth as many.
    classes = settings.get("num_classes", 10)
    assert settings["memory_size"] / classes == one.memory_size / (
      1_000 if scale == "small" else 5_000
    )
    assert classes % settings["num_states"] == 0


def test_what_a_run_is_called_and_given(tmp_path):
  argv = ["paper.py", "figure6", "--scale=small", f"--output={tmp_path}", "--data_dir=D"]
  request = paper.parse([*argv, "--", "--dataset=image_folder", "--num_devices=1"])
  jobs = {job.workdir.name: job.config for job in paper.plan_study(request).jobs}
  assert list(jobs) == [
    *(f"cifar100-ssil-T10-M600-N16{epochs}-0" for epochs in ("-E2", "")),
    *(f"cifar100-ssil-T10-M600-N16-{epochs}-0" for epochs in ("E5", "E10")),
    *(f"cifar100-{name}-T10-M600-N16-0" for name in ("ft", "ft_ss", "ft_rp")),
  ]
  config = jobs["cifar100-ssil-T10-M600-N16-E10-0"]
  assert (config.epochs, config.width, config.milestones) == (10, 8, (4, 8))
  # CIFAR-100 as a folder of images, which only this scale knows.
  assert {(one.dataset, one.num_devices) for one in jobs.values()} == {("image_folder", 1)}


@pytest.mark.parametrize(
  ("scale", "given", "named"),
  [
    # A run of one epoch would stand at 20 in figure 6.
    ("digits", ["--epochs=1", "--width=4"], ["epochs", "width"]),
    # Runs would be of digits, under the name of ImageNet.
    ("paper", ["--dataset=digits"], ["dataset"]),
    ("paper", ["--dataset=image_folder"], ["dataset"]),
    ("small", ["--dataset=digits"], ["dataset"]),
    ("paper", ["--noreset_momentum", "--augment=none"], ["augment", "reset_momentum"]),
    ("paper", ["--il2m_scores=logits"], ["il2m_scores"]),
    ("paper", ["--classes=some.txt", "--seed=3"], ["classes", "seed"]),
    ("digits", ["--flagfile=quickstart.cfg"], ["num_states", "memory_size", "epochs"]),
  ],
)
def test_what_the_page_states_cannot_be_given_otherwise(scale, given, named):
  with pytest.raises(ConfigError) as error:
    paper.parse(["paper.py", "all", f"--scale={scale}", "--data_dir=D", "--", *given])
  (line,) = str(error.value).splitlines()
  assert all(f"--{name}" in line for name in named)


@pytest.mark.parametrize("scale", SCALES)
def test_all_that_a_scale_sets_is_its_own(scale):
  made = SCALES[scale]
  names = {name for one in made.cells([*protocol.PARTS]) for name in made.settings(one)}
  # What is recorded, and how often, is not what the page is about.
  assert names - {"log_every"} <= paper.stated_settings()


def test_how_and_where_runs_are_done_may_be_given():
  given = ["--checkpoint_minutes=1", "--log_every=5", "--precision=bfloat16"]
  argv = ["paper.py", "table2", "--scale=digits", "--", *given, "--num_devices=2"]
  config = paper.plan_study(paper.parse(argv)).jobs[0].config
  assert (config.log_every, config.precision) == (5, "bfloat16")


def test_parts_come_in_the_papers_order(tmp_path):
  assert paper.parse(["paper.py", "figure1", "table1", "--scale=digits"]).parts == [
    "table1",
    "figure1",
  ]
  assert LANDMARKS_10K not in {one.dataset for one in SCALES["digits"].cells(["table1"])}
