"""torchvision's ResNet-18 twice: in NumPy, written out by its names, and in PyTorch."""

import numpy as np

EPSILON = 1e-5


def _conv(x, kernel, stride, padding):
  x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
  windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))
  windows = windows[:, :, ::stride, ::stride]
  return np.einsum("nchwij,ocij->nohw", windows, kernel, optimize=True)


def _norm(x, tensors, name):
  def of_channels(part):
    return tensors[f"{name}.{part}"].astype(np.float64)[None, :, None, None]

  scale = of_channels("weight") / np.sqrt(of_channels("running_var") + EPSILON)
  return (x - of_channels("running_mean")) * scale + of_channels("bias")


def _relu(x):
  return np.maximum(x, 0)


def features(tensors, images, *, last_relu=True):
  """[N, d] of images [N, 3, S, S]; a 3x3 first convolution means no max-pool."""
  first = tensors["conv1.weight"]
  if first.shape[-1] == 3:
    x = _relu(_norm(_conv(images, first, 1, 1), tensors, "bn1"))
  else:
    x = _relu(_norm(_conv(images, first, 2, 3), tensors, "bn1"))
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    x = windows[:, :, ::2, ::2].max(axis=(-1, -2))
  for stage in (1, 2, 3, 4):
    for block in (0, 1):
      name = f"layer{stage}.{block}"
      stride = 2 if stage > 1 and block == 0 else 1
      y = _conv(x, tensors[f"{name}.conv1.weight"], stride, 1)
      y = _relu(_norm(y, tensors, f"{name}.bn1"))
      y = _norm(_conv(y, tensors[f"{name}.conv2.weight"], 1, 1), tensors, f"{name}.bn2")
      if stride == 2:
        x = _conv(x, tensors[f"{name}.downsample.0.weight"], 2, 0)
        x = _norm(x, tensors, f"{name}.downsample.1")
      x = x + y
      if last_relu or (stage, block) != (4, 1):
        x = _relu(x)
  return x.mean(axis=(2, 3))


def torch_resnet18(num_classes, *, width=64):
  """A PyTorch module as `torchvision.models.resnet18`, with the same names."""
  import torch
  from torch import nn

  class Block(nn.Module):
    def __init__(self, channels_in, channels, stride):
      super().__init__()
      self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
      self.bn1 = nn.BatchNorm2d(channels)
      self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
      self.bn2 = nn.BatchNorm2d(channels)
      self.downsample = None
      if stride != 1:
        shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))
      self.last = nn.ReLU()

    def forward(self, x):
      y = torch.relu(self.bn1(self.conv1(x)))
      y = self.bn2(self.conv2(y))
      return self.last(y + (x if self.downsample is None else self.downsample(x)))

  class ResNet18(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
      self.bn1 = nn.BatchNorm2d(width)
      self.maxpool = nn.MaxPool2d(3, 2, padding=1)
      channels_in = width
      for stage in range(4):
        channels = width * 2**stage
        first = Block(channels_in, channels, 2 if stage else 1)
        setattr(
          self, f"layer{stage + 1}", nn.Sequential(first, Block(channels, channels, 1))
        )
        channels_in = channels
      self.fc = nn.Linear(channels_in, num_classes)

    def forward(self, x):
      x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
      for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
        x = stage(x)
      return self.fc(x.mean(dim=(2, 3)))

  return ResNet18()
