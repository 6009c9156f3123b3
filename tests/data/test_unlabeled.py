"""Images without labels: how a folder of them is read, and how they get into batches."""

import numpy as np
import pytest
from folders import BLUE, GREEN, RED, config_of, folder_of, noise, open_folder, save

from ssil_jax.data import fingerprint, loader
from ssil_jax.data.images import crop
from ssil_jax.data.unlabeled import open_unlabeled
from ssil_jax.errors import DataError
from ssil_jax.sampling import SHUFFLED, Key, Pool, Purpose, with_unlabeled


@pytest.fixture
def unlabeled_dir(tmp_path):
  folder = tmp_path / "unlabeled"
  save(folder / "b.png", GREEN)
  save(folder / "a.PNG", RED)
  save(folder / "more" / "of it" / "a.jpg", BLUE)
  save(folder / ".hidden" / "c.png", BLUE)
  (folder / "notes.txt").write_text("none")
  return folder


@pytest.fixture
def dataset(tmp_path):
  return open_folder(folder_of(tmp_path / "images"))


def opened(dataset, folder, **values):
  return open_unlabeled(dataset, str(folder), config_of(**values))


def test_files_are_read_in_the_order_of_their_names(dataset, unlabeled_dir):
  found = opened(dataset, unlabeled_dir)
  assert found._replace(unlabeled=None, notes=()) == dataset._replace(notes=())
  assert found.notes == (
    *dataset.notes,
    f"3 images without labels from {unlabeled_dir}; ignored beside them: 1 (other files, "
    "linked folders)",
  )
  images = found.unlabeled.images
  assert (images.shape, images.dtype) == ((3, 8, 8, 3), np.uint8)
  np.testing.assert_allclose(images[:, 4, 4], [RED, GREEN, BLUE], atol=2)
  assert found.unlabeled.labels.tolist() == [-1] * 3


def test_large_ones_stay_files(tmp_path, unlabeled_dir):
  large = open_folder(folder_of(tmp_path / "large", shape=(70, 70)), image_size=70)
  for verify_data in (True, False):
    found = opened(large, unlabeled_dir, verify_data=verify_data).unlabeled
    assert not found.on_device
    assert [found.images.name(n) for n in range(3)] == [
      str(unlabeled_dir / name) for name in ("a.PNG", "b.png", "more/of it/a.jpg")
    ]
    assert (found.images.contents is not None) == verify_data
    assert (found.images.store.stamps(found.images.numbers) != 0).all()


def test_what_cannot_be_read_is_named(dataset, tmp_path, unlabeled_dir):
  bad = unlabeled_dir / "more" / "bad.png"
  bad.write_bytes(b"text")
  with pytest.raises(DataError, match=f"cannot read image {bad}: not a JPEG"):
    opened(dataset, unlabeled_dir)
  found = opened(dataset, unlabeled_dir, skip_bad_records=True)
  assert len(found.unlabeled.images) == len(found.unlabeled.labels) == 3
  assert "1 of 4 images are left out as bad" in found.notes[-1]
  for path in unlabeled_dir.rglob("*.*"):
    if path.is_file():
      path.write_bytes(b"text")
  with pytest.raises(DataError, match="none of 4 images can be read; the first one is"):
    opened(dataset, unlabeled_dir, skip_bad_records=True)


def test_their_pixels_belong_to_the_data(dataset, unlabeled_dir):
  before = fingerprint.parts(dataset)
  now = fingerprint.parts(opened(dataset, unlabeled_dir))
  assert {name: now[name] for name in before} == before
  assert now["unlabeled images"] == 3
  save(unlabeled_dir / "b.png", BLUE)
  later = fingerprint.parts(opened(dataset, unlabeled_dir))
  lines = fingerprint.differences(later, now)
  assert lines == ["pixels of unlabeled images: different"]


def batches_of(dataset, **changes):
  """Batches of four of the first two classes, and four without labels, on two devices."""
  count = len(dataset.train.labels)
  pool = Pool(
    new=np.arange(4),
    memory=np.arange(4, count),
    unlabeled=count + np.arange(len(dataset.unlabeled.labels)),
  )
  values = {
    "sampling": with_unlabeled(SHUFFLED),
    "key": Key(seed=1, state=2, phase=0),
    "batch_size_new": 4,
    "batch_size_memory": 2,
    "num_devices": 2,
    "num_steps": 50,
    **changes,
  }
  return loader.TrainBatches(dataset=dataset, pool=pool, **values)


def test_batches_end_in_images_without_labels(dataset, unlabeled_dir):
  dataset = opened(dataset, unlabeled_dir)
  batches, labels = batches_of(dataset), dataset.train.labels
  counts = np.zeros(3, int)
  plain = batches_of(dataset, sampling=SHUFFLED)
  for step in range(50):
    batch = batches[step]
    assert batch.records.shape == batch.positions.shape == (2, 4)
    assert (batch.inputs == batch.records).all()
    np.testing.assert_array_equal(batch.positions, [[0, 1, 4, 5], [2, 3, 6, 7]])
    # The others are those that there would be without.
    np.testing.assert_array_equal(batch.records[:, :2], plain[step].records)
    np.testing.assert_array_equal(batch.labels, labels[batch.records[:, :2]])
    np.add.at(counts, batch.records[:, 2:] - len(labels), 1)
  # 200 draws of three images; a deviation is 6.7.
  assert counts.sum() == 200
  assert (abs(counts - 200 / 3) < 4 * 6.7).all()
  assert len({batches[step].records[:, 2:].tobytes() for step in range(50)}) > 25


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_streamed_ones_are_cropped_as_training_images_are(tmp_path, augment):
  for n in range(3):
    save(tmp_path / "unlabeled" / f"{n}.png", noise(80, 70, seed=n))
  large = open_folder(
    folder_of(tmp_path / "large", shape=(70, 70)), image_size=70, augment=augment
  )
  dataset = opened(large, tmp_path / "unlabeled")
  batches = batches_of(dataset, num_devices=1)
  batch, count = batches[3], len(large.train.labels)
  assert batch.inputs.shape == (1, 8, 70, 70, 3)
  draws = batches.key.rng(Purpose.CROP, 3).random((8, *crop.DRAWS_SHAPE))
  for place in range(8):
    record = int(batch.records[0, place])
    unlabeled = place >= 4
    images = dataset.unlabeled.images if unlabeled else dataset.train.images
    record -= count * unlabeled
    expected = (
      loader.central_crop(images, record, 70)
      if augment == "none"
      else loader.random_crop(images, record, 70, draws[place])
    )
    np.testing.assert_array_equal(batch.inputs[0, place], expected)
