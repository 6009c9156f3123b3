"""ImageNet from its official tars."""

import dataclasses
import io
import pathlib
import tarfile

import archives
import pytest
from archives import GOLDFISH, PARTIAL, SHARK, TENCH, image, report_of, validation_name

from ssil_jax.data import builders
from ssil_jax.data.builders.found import Deviations
from ssil_jax.data.builders.imagenet import _check_train
from ssil_jax.errors import DataError

TARS = ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"]


@pytest.fixture
def folder(tmp_path):
  return archives.imagenet(tmp_path / "archives")


def prepare(folder, options=PARTIAL):
  return archives.prepare("imagenet", folder, folder.parent / "data", options)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A builder; not to be changed."""
  return prepare(archives.imagenet(tmp_path_factory.mktemp("prepared") / "archives"))


def test_the_order_of_records(prepared):
  assert prepared.info.features["label"].names == [TENCH, GOLDFISH]  # sorted
  train, validation = (
    [(r["label"], r["file_name"].decode()) for r in archives.encoded(prepared, split)]
    for split in ("train", "validation")
  )
  # Of classes and then of the archive.
  assert train == [
    *((0, f"{TENCH}_{i}.JPEG") for i in (10, 2, 7, 22, 23)),
    *((1, f"{GOLDFISH}_{i}.JPEG") for i in (10, 2, 7, 20, 21)),
  ]
  # Of their numbers.
  label_of = dict.fromkeys(archives.validation_numbers(TENCH, 2), 0)
  label_of |= dict.fromkeys(archives.validation_numbers(GOLDFISH, 1), 1)
  assert validation == [(label_of[n], validation_name(n)) for n in sorted(label_of)]


def test_bytes_are_untouched_but_for_some(prepared):
  given = {}
  for images in archives.imagenet_train().values():
    given |= images
  converted = {f"{TENCH}_22.JPEG", f"{GOLDFISH}_20.JPEG"}
  for record in archives.encoded(prepared, "train"):
    name = record["file_name"].decode()
    assert (record["image"] == given[name]) == (name not in converted)
  remarks = {
    "CMYK, made RGB": f"{GOLDFISH}_20.JPEG",
    "no JPEG, made one": f"{TENCH}_22.JPEG",
    "kept, though libjpeg warns of its bytes": f"{TENCH}_23.JPEG",
  }
  assert report_of(prepared)["remarks"] == {
    "train": {
      remark: {"count": 1, "first": [f"ILSVRC2012_img_train.tar: {name}"]}
      for remark, name in remarks.items()
    },
    "validation": {},
  }


def test_the_report_says_what_is_not_official(prepared):
  report = report_of(prepared)
  (shark,) = archives.validation_numbers(SHARK, 1)
  assert report["left_out"] == {
    "class is not in the training archive": {"count": 1, "first": [validation_name(shark)]}
  }
  contents = [split.pop("content") for split in report["splits"].values()]
  assert len(set(contents)) == 2
  assert report["splits"] == {
    "train": {"images": 10, "classes": 2, "shards": 1},
    "validation": {"images": 3, "classes": 2, "shards": 1},
  }
  folder = pathlib.Path(prepared.data_dir).parents[2] / "archives"
  assert report["archives"] == [
    {"name": name, "bytes": (folder / name).stat().st_size} for name in TARS
  ]
  assert report["options"] == dataclasses.asdict(PARTIAL)
  differences = "\n".join(report["differences"])
  assert "lacks 998 classes, first" in differences
  assert "has 10 images instead of 1,281,167" in differences
  assert f"class {TENCH} has 5 images instead of 732 to 1300 (2 such" in differences
  assert "has 4 images instead of 50,000" in differences
  assert f"class {TENCH} has 2 images instead of 50 (2 such" in differences


# Bad archives.


@pytest.mark.parametrize("name", TARS)
def test_an_archive_that_is_cut_off(folder, name):
  path = folder / name
  content = path.read_bytes()
  with tarfile.open(path) as tar:
    end = max(member.offset_data + member.size for member in tar)
  for kept in [1, 300, 512, 700, *range(1024, end + 512, 1280), end]:
    path.write_bytes(content[:kept])
    with pytest.raises(DataError, match=f"{name}.* is cut off or damaged .*again"):
      prepare(folder)


def test_an_inner_tar_that_is_cut_off(folder):
  inner, reasons = archives.tar_of(archives.imagenet_train()[TENCH]), []
  for kept in (0, 600, 2048, 2800, len(inner) - 10240):
    outer = archives.tar_of({f"{TENCH}.tar": inner[:kept], "z.tar": inner})
    (folder / "ILSVRC2012_img_train.tar").write_bytes(outer)
    with pytest.raises(DataError, match=f"train.tar: {TENCH}.tar is cut off") as error:
      prepare(folder)
    reasons.append(str(error.value))
  assert "no end of the tar at byte 2048" in reasons[2]
  assert "ends behind the end of the file" in reasons[3]


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (b"<html>not found</html>" * 100, "is cut off or damaged"),
    (archives.tar_of({"a.JPEG": image(1)}), "is not a tar of one tar for each class"),
    (archives.tar_of({"a.tar": b"", "b/a.tar": b""}), "is not a tar of one tar for each"),
    (archives.tar_of({"a.tar": archives.tar_of({})}), "a.tar has no images"),
  ],
)
def test_a_training_tar_without_images_in_class_tars(folder, content, reason):
  (folder / "ILSVRC2012_img_train.tar").write_bytes(content)
  with pytest.raises(DataError, match=f"img_train.tar.* {reason}"):
    prepare(folder)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_are_not_passed_over(folder, kind):
  content = io.BytesIO((folder / "ILSVRC2012_img_val.tar").read_bytes())
  with tarfile.open(fileobj=content, mode="a") as tar:
    info = tarfile.TarInfo(validation_name(1))
    info.type, info.linkname = kind, validation_name(2)
    tar.addfile(info)
  (folder / "ILSVRC2012_img_val.tar").write_bytes(content.getvalue())
  with pytest.raises(DataError, match=f"img_val.tar has {validation_name(1)} as a link or"):
    prepare(folder)


def test_hidden_files_and_other_names(tmp_path):
  train, validation = archives.imagenet_train(), archives.imagenet_validation()
  train[TENCH][f"._{TENCH}_2.JPEG"] = b"of macOS"
  twice = f"again/{list(validation)[-1]}"
  strange = {"readme.txt": b"", validation_name(50_001): image(1), twice: image(2)}
  folder = archives.imagenet(tmp_path / "archives", train, validation | strange)
  report = report_of(prepare(folder))
  assert report["splits"]["train"]["images"] == 10
  assert {reason: found["count"] for reason, found in report["left_out"].items()} == {
    "class is not in the training archive": 1,
    "not the name of a validation image": 3,
  }
  assert "has 3 files that are no ILSVRC2012_val_NUMBER" in "\n".join(report["differences"])


def test_no_validation_image_of_the_classes(tmp_path):
  name = validation_name(archives.validation_numbers(SHARK, 1)[0])
  folder = archives.imagenet(tmp_path / "archives", validation={name: image(1)})
  with pytest.raises(DataError, match="has no images of the classes in"):
    prepare(folder)


def test_the_counts_of_classes():
  wnids = archives.official("labels.txt")
  # As the official ones: 895 classes of 1300, and the others share the rest.
  counts = dict.fromkeys(wnids, 1300)
  for i, wnid in enumerate(wnids[895:]):
    counts[wnid] = 1120 + (i < 67)
  counts[wnids[-1]] -= sum(counts.values()) - 1_281_167
  _check_train(counts, counts, Deviations(builders.Options()))
  last = counts[wnids[-1]]
  for changed, devkit, message in (
    ({TENCH: 1299}, counts, "1,281,166 images instead of 1,281,167"),
    (
      {TENCH: 1299, wnids[-1]: last + 1},
      counts,
      f"class {TENCH} has 1299 images instead of 1300",
    ),
    (
      {TENCH: 1301, wnids[-1]: last - 1},
      {},
      f"class {TENCH} has 1301 images instead of 732 to 1300",
    ),
    ({"n99999999": 1}, counts, "should not have 1 classes, first n99999999"),
  ):
    with pytest.raises(DataError, match=message):
      _check_train(counts | changed, devkit, Deviations(builders.Options()))


# The devkit.


def test_the_devkit_confirms_labels_and_counts(folder):
  archives.devkit(folder, counts={TENCH: 5, GOLDFISH: 4})
  report = report_of(prepare(folder))
  assert len(report["archives"]) == 3
  differences = "\n".join(report["differences"])
  assert f"class {GOLDFISH} has 5 images instead of 4 (2 such classes)" not in differences
  assert (
    f"class {TENCH} has 5 images instead of 732 to 1300 (2 such classes)" in differences
  )


def test_a_devkit_with_other_labels(folder):
  truth = archives.official("validation_labels.txt")
  archives.devkit(folder, truth=[truth[1], truth[0], *truth[2:]])
  with pytest.raises(DataError, match="has other validation labels than"):
    prepare(folder)


@pytest.mark.parametrize(
  "damage",
  [
    lambda c: c[:5000],
    lambda c: b"no tar" * 99,
    lambda c: c[:-8] + bytes(8),  # SciPy crashes by some bytes: the checksum comes first
  ],
)
def test_a_damaged_devkit(folder, damage):
  archives.devkit(folder)
  path = folder / "ILSVRC2012_devkit_t12.tar.gz"
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(DataError, match=f"{path} is damaged"):
    prepare(folder)


@pytest.mark.parametrize("meta", [b"", b"text", bytes(200), None])
def test_a_damaged_meta_mat(folder, meta):
  archives.devkit(folder, meta=meta)
  reason = "meta.mat is missing" if meta is None else "meta.mat cannot be read"
  with pytest.raises(DataError, match=f"t12.tar.gz is damaged .*{reason}") as error:
    prepare(folder)
  assert "\n" not in str(error.value)
