"""ER: experience replay, each batch of new images beside one of exemplars, one softmax.

A. Chaudhry, M. Rohrbach, M. Elhoseiny, T. Ajanthan, P. Dokania, P. Torr and M. Ranzato, *On
Tiny Episodic Memories in Continual Learning*, 2019, arXiv:1902.10486. The loss is the mean
cross-entropy over both parts of the batch, which is FT w/ RP of the SS-IL paper: the two
share all of training, and this is another name for it. Of the paper's ways to keep
exemplars, `--selection=ring`, the default, keeps equally many of each class.

Differences: the original sees each image once, and has as many exemplars as new images in a
batch; here epochs, rates and batches are those of FT w/ RP.
"""

from ssil_jax.methods.ablations import FT_RP

ER = FT_RP._replace(title="ER", trains_as="ft_rp")
