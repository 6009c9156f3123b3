"""LwF: learning without forgetting, from new data alone.

Z. Li and D. Hoiem, *Learning without Forgetting*, ECCV 2016, arXiv:1606.09282. The loss
is L_old + L_new (the paper's lambda_o is 1): a softmax over the new classes only
(equation 1), and for every earlier state the cross-entropy with the teacher's softened
outputs among its classes (equations 2 and 3, T = 2), all on new images; no exemplars.

The paper knows at test time which task an image belongs to; here all classes seen compete.
It warms a new head up before it trains the rest, which is left out, as in most
class-incremental code. Such code also distils all old classes in one softmax (FACIL,
PyCIL), weighs distillation by 3 (PyCIL), or, as LwF.MC in the iCaRL paper, has a sigmoid
for every class. Epochs and learning rates are FT's.
"""

from ssil_jax.losses import interval_cross_entropy, task_wise_cross_entropy
from ssil_jax.methods.base import (
  Distillation,
  Method,
  one_phase,
  softmax_in_first_state,
  with_distillation,
)
from ssil_jax.sampling import NEW_ONLY


@softmax_in_first_state
def _new_softmax_loss(examples, config):
  classes, labels = examples.context.classes, examples.labels
  return interval_cross_entropy(
    examples.outputs.logits, labels, classes.num_old, classes.num_seen
  )


LWF = Method(
  title="LwF",
  phases=lambda config, t: one_phase(config, t, NEW_ONLY),
  loss=with_distillation(_new_softmax_loss, task_wise_cross_entropy),
  defaults={"epochs": 25},
  settings=Distillation,
  has_teacher=True,
  fewest_new=lambda config: 2,
)
