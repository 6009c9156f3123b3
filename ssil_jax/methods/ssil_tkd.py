"""SS-IL with task-wise knowledge distillation (TKD), its conference version.

H. Ahn, J. Kwak, S. Lim, H. Bang, H. Kim and T. Moon, *SS-IL: Separated Softmax for
Incremental Learning*, ICCV 2021. To the separated softmax (equation 3 of the first
version) it adds, for every earlier state, T^2 KL between teacher and student among the
classes of that state alone, on all samples of a batch. Every state has 100 epochs.
"""

from ssil_jax.losses import task_wise_distillation
from ssil_jax.methods.base import Distillation, Method, one_phase, with_distillation
from ssil_jax.methods.ssil import separated_softmax_loss
from ssil_jax.sampling import RATIO_PRESERVING

SSIL_TKD = Method(
  title="SS-IL + TKD",
  phases=lambda config, t: one_phase(config, t, RATIO_PRESERVING),
  loss=with_distillation(separated_softmax_loss, task_wise_distillation),
  defaults={"epochs": 100},
  settings=Distillation,
  has_teacher=True,
)
