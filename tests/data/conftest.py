"""What tests of data count."""

import pytest

from ssil_jax.data.images import decode


@pytest.fixture
def decoded(monkeypatch):
  """The images that are decoded, as bytes."""
  images, read = [], decode.EncodedImage.read

  def reading(image, *args, **options):
    images.append(image.data)
    return read(image, *args, **options)

  monkeypatch.setattr(decode.EncodedImage, "read", reading)
  return images
