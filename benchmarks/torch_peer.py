"""SS-IL's training step in plain PyTorch, as fast as we can write it, for `step.py`.

The network is torchvision's ResNet-18, with the stem for small images where they are, and
the loss is the separated softmax. channels_last, the fused SGD of PyTorch, autocast for
bfloat16, images on the device as uint8 that are augmented there, `torch.compile` if asked,
and nothing that the host waits for. Written for these benchmarks; it knows no ssil_jax.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WARM_UP = 4  # calls, after which all is compiled and recorded


class Block(nn.Module):
  """Two 3x3 convolutions and a shortcut."""

  def __init__(self, num_in: int, num_out: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(num_out)
    self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(num_out)
    self.downsample = None
    if stride > 1 or num_in != num_out:
      project = nn.Conv2d(num_in, num_out, 1, stride, bias=False)
      self.downsample = nn.Sequential(project, nn.BatchNorm2d(num_out))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(self.bn1(self.conv1(x)), inplace=True)
    y = self.bn2(self.conv2(y))
    if self.downsample is not None:
      x = self.downsample(x)
    return F.relu(x + y, inplace=True)


class ResNet18(nn.Module):
  """ResNet-18 with torchvision's names of parameters."""

  def __init__(self, num_classes: int, width: int, *, small_images: bool):
    super().__init__()
    stem = (3, 1, 1) if small_images else (7, 2, 3)
    self.conv1 = nn.Conv2d(3, width, *stem, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.pool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
    num_in = width
    for stage in range(4):
      num_out, stride = width * 2**stage, 2 if stage else 1
      blocks = Block(num_in, num_out, stride), Block(num_out, num_out, 1)
      setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
      num_in = num_out
    self.fc = nn.Linear(num_in, num_classes)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = self.pool(F.relu(self.bn1(self.conv1(x)), inplace=True))
    for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
      x = stage(x)
    return self.fc(x.mean((2, 3)))


def separated_softmax(
  logits: torch.Tensor, labels: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
  """Returns the loss [B]: softmaxes over the old and the new classes, each by itself.

  `ends` holds the numbers of old classes and of all seen.
  """
  classes = torch.arange(logits.shape[1], device=logits.device)
  is_old = classes < ends[0]
  mine = torch.where((labels < ends[0])[:, None], is_old, ~is_old & (classes < ends[1]))
  masked = logits.float().masked_fill(~mine, -torch.inf)
  return F.cross_entropy(masked, labels, reduction="none")


class Trainer:
  """A network in training, with its images on the device if they fit there."""

  def __init__(
    self,
    *,
    num_classes: int,
    width: int,
    size: int,
    bfloat16: bool,
    compiled: str | None,
    images: np.ndarray | None,
    pad: int,
    weights: Mapping[str, np.ndarray],
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
  ):
    """Args: what `step.py` says; compiled: mode of torch.compile, None for eager.

    images: uint8 [N, S, S, 3], of which batches hold records; None if they hold images.
    pad: pixels of zeros on each side, from which a random crop is cut.
    weights: of the network, by their names.
    """
    torch.backends.cudnn.benchmark = True  # tries cuDNN's algorithms, as XLA does
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self._type = torch.bfloat16 if bfloat16 else None
    self._pad, self._size = pad, size
    self._images = None
    if images is not None:
      padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
      self._images = self.put(padded)
      if compiled:  # else CUDA graphs would copy them in each step
        torch._dynamo.mark_static_address(self._images)
    self.network = ResNet18(num_classes, width, small_images=size <= 64)
    self.network.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    self.network.to(self.device, memory_format=torch.channels_last)
    self._optimizer = torch.optim.SGD(
      self.network.parameters(),
      lr=0.1,
      momentum=momentum,
      weight_decay=weight_decay,
      nesterov=True,
      fused=True,
    )
    # Not with sizes left open: batches come in two sizes, each worth a program.
    compile_ = torch.compile(mode=compiled, dynamic=False) if compiled else lambda f: f
    self._loss, self._scores = compile_(self._loss_of_batch), compile_(self._predict)

  def put(self, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

  def _autocast(self):
    enabled = self._type is not None
    return torch.autocast(self.device.type, dtype=self._type, enabled=enabled)

  def _floats(self, pixels: torch.Tensor) -> torch.Tensor:
    """Turns uint8 [B, S, S, 3] to float [B, 3, S, S], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).to(self._type or torch.float32) / 255

  def _augmented(self, inputs: torch.Tensor) -> torch.Tensor:
    """Draws crops of padded images, and mirrors every second."""
    count, size = len(inputs), self._size
    place = torch.arange(size, device=self.device).expand(count, size)
    flip = torch.rand(count, 1, device=self.device) < 0.5
    columns = torch.where(flip, size - 1 - place, place)
    if self._images is None:
      return self._floats(inputs.gather(2, _spread(columns, inputs)))
    shifts = torch.randint(2 * self._pad + 1, (2, count, 1), device=self.device)
    rows, columns = place + shifts[0], columns + shifts[1]
    which = inputs[:, None, None], rows[:, :, None], columns[:, None, :]
    return self._floats(self._images[which])

  def _forward(self, pixels, labels, ends):
    with self._autocast():
      logits = self.network(pixels)
    return separated_softmax(logits, labels, ends).mean(), logits

  def _loss_of_batch(self, inputs, labels, ends):
    # In one program with the augmentation: CUDA graphs would overwrite what another drew.
    loss, logits = self._forward(self._augmented(inputs), labels, ends)
    return loss, logits.detach()

  def step(
    self, inputs: torch.Tensor, labels: torch.Tensor, ends: torch.Tensor
  ) -> tuple[torch.Tensor, torch.Tensor]:
    """Trains on a batch of records, or of images; returns its loss and accuracy."""
    self.network.train()
    torch.compiler.cudagraph_mark_step_begin()  # what the last step returned is used up
    loss, logits = self._loss(inputs, labels, ends)
    loss.backward()
    self._optimizer.step()
    self._optimizer.zero_grad(set_to_none=True)
    top1 = (logits.argmax(1) == labels).float().mean()
    return loss.detach(), top1

  def compile(self, batches, images: torch.Tensor, labels: torch.Tensor, scored) -> None:
    """Compiles the step and the evaluation; trains nothing.

    Running each a few times does it: CUDA graphs are first recorded by the second.

    Args:
      batches: of records, int [B], one of each size.
      images: to be evaluated.
      labels: of the images on the device, which batches are of.
      scored: records, int [n], one for each number of images to be evaluated.
    """
    before = {name: value.clone() for name, value in self.network.state_dict().items()}
    ends = torch.tensor([1, self.network.fc.out_features], device=self.device)
    for records in batches:
      for _ in range(WARM_UP):
        self.step(records, labels[records], ends)
    for records in scored:
      for _ in range(WARM_UP):
        self.accuracy(images, labels, records, 1)
    self.network.load_state_dict(before)
    self.forget_momentum()
    self.wait()

  def set_learning_rate(self, rate: float) -> None:
    for group in self._optimizer.param_groups:
      group["lr"] = rate

  def loss_of(self, pixels: np.ndarray, labels: torch.Tensor, ends: torch.Tensor) -> float:
    """Returns the training loss of images as they are; changes running statistics.

    Without TF32: it is compared with another program's.
    """
    self.network.train()
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
      return float(self._forward(self._floats(self.put(pixels)), labels, ends)[0])

  def forget_momentum(self) -> None:
    self._optimizer.state.clear()

  def accuracy(
    self, images: torch.Tensor, labels: torch.Tensor, records: np.ndarray, num_seen: int
  ) -> float:
    """Returns the accuracy on records of images, among the classes seen."""
    self.network.eval()
    correct = torch.zeros((), device=self.device)
    with torch.no_grad():
      for part in self.put(records).split(1000):
        torch.compiler.cudagraph_mark_step_begin()
        scores = self._scores(self._floats(images[part]))[:, :num_seen]
        correct += (scores.argmax(1) == labels[part]).sum()
    return float(correct) / len(records)

  def _predict(self, pixels):
    with self._autocast():
      return self.network(pixels).float()

  def wait(self) -> None:
    if self.device.type == "cuda":
      torch.cuda.synchronize()


def _spread(columns: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
  """Views int [B, S] as [B, S, S, 3], for `gather` along the columns of images."""
  return columns[:, None, :, None].expand(images.shape)
