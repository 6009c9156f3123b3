"""EWC, SI, RWalk: importances by loops and by hand. That they, VCL and UCL forget less."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished_states import config_of, context_of, finished_of, memory_of
from small_runs import small_config

from ssil_jax.data.dataset import Batch
from ssil_jax.data.images.augment import Augmentation, to_float
from ssil_jax.errors import ConfigError
from ssil_jax.methods import METHODS
from ssil_jax.methods.base import Sizes, Step
from ssil_jax.methods.ewc import squared_gradient
from ssil_jax.resnet import Outputs
from ssil_jax.sampling import Pool
from ssil_jax.training.plan import make_plan
from ssil_jax.training.run_state import with_own
from ssil_jax.training.step import (
  AXIS,
  Model,
  TrainState,
  elastic_energy,
  make_optimizer,
  train_step,
)

EWC, SI, RWALK = (METHODS[name] for name in ("ewc", "si", "rwalk"))
NAMES = ("ewc", "si", "rwalk")


def finished(config, num_old, num_seen, *, stats, params, records=(), **values):
  pool = Pool(np.asarray(records, np.int64), np.zeros(0, np.int64))
  return finished_of(
    config,
    num_old=num_old,
    num_seen=num_seen,
    labels=(),
    memory=memory_of([]),
    pool=pool,
    stats=stats,
    params=params,
    **values,
  )


def tree_of(rng):
  """Parameters of 5 numbers, in two leaves."""
  return {
    name: np.float32(rng.standard_normal(shape))
    for name, shape in (("a", (2, 2)), ("b", (1,)))
  }


def numbers(tree):
  """The numbers of such a tree, float64 [5]."""
  return np.concatenate([np.ravel(tree["a"]), tree["b"]]).astype(np.float64)


def stats_before(method, params, config=None):
  return method.init_stats(Sizes(2, 1, 1, 1, params, 8, config))


@pytest.mark.parametrize("name", NAMES)
def test_the_penalty_is_the_sum_of_weighted_squares(name):
  rng = np.random.default_rng(0)
  params, anchor = tree_of(rng), tree_of(rng)
  importance = jax.tree.map(np.abs, tree_of(rng))
  config = config_of(name, penalty_strength=3.5)
  context = context_of(1, 2, stats={"importance": importance, "anchor": anchor})
  energy = elastic_energy(params, METHODS[name].elastic(context, config))
  expected = 0.0
  for theta, weight, old in zip(*map(numbers, (params, importance, anchor)), strict=True):
    expected += 3.5 * weight * (theta - old) ** 2
  assert float(energy) == pytest.approx(expected, rel=1e-5)
  start = stats_before(METHODS[name], params)
  np.testing.assert_array_equal(numbers(start["importance"]), 0)
  np.testing.assert_array_equal(numbers(start["anchor"]), numbers(params))


# EWC -------------------------------------------------------------------------------------


def linear(params, pixels):
  """A network of nothing but a head."""
  features = pixels.mean((1, 2))
  return Outputs(features=features, logits=features @ params["W"] + params["b"][None])


@pytest.mark.parametrize("replay", [False, True])
def test_the_fisher_information_of_a_softmax_model(replay):
  # By its gradients in closed form: d log p(y) / d W = x (e_y - p), / d b = e_y - p.
  rng = np.random.default_rng(0)
  params = {
    "W": np.float32(rng.standard_normal((3, 6))),
    "b": np.float32(rng.standard_normal(6)),
  }
  pixels = np.float32(rng.standard_normal((5, 1, 2, 2, 3)))
  labels = np.array([2, 4, 3, 2, 4], np.int32)
  context, config = context_of(2, 5), config_of("ewc", replay=replay)

  def of_image(image, label):
    return squared_gradient(linear, params, image, label, context, config)

  found = jax.jit(jax.vmap(of_image))(pixels, labels)
  for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
    x = image.astype(np.float64).mean((0, 1, 2))
    scores = x @ params["W"] + params["b"]
    classes = range(5) if replay else range(2, 5)
    total = sum(np.exp(scores[c]) for c in classes)
    for c in range(6):
      wrong = (c == label) - (np.exp(scores[c]) / total if c in classes else 0.0)
      assert float(found["b"][i, c]) == pytest.approx(wrong**2, rel=1e-4, abs=1e-9)
      for j in range(3):
        expected = (x[j] * wrong) ** 2
        assert float(found["W"][i, j, c]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_the_fisher_information_by_hand():
  # Two classes of equal scores: p = 1/2, and F of w_jc is (x_j / 2)^2 whatever the label.
  params = {"W": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)}
  pixels = np.float32([2, 4, -6]).reshape(1, 1, 1, 3)
  found = squared_gradient(
    linear, params, pixels, jnp.int32(1), context_of(0, 2), config_of("ewc")
  )
  np.testing.assert_allclose(found["W"], [[1, 1], [4, 4], [9, 9]])
  np.testing.assert_allclose(found["b"], [0.25, 0.25])


def ewc_states(config, fishers, ends):
  """The statistics after states that end so, with that Fisher information of 8 images."""
  stats = stats_before(EWC, ends[0])
  for fisher, end in zip(fishers, ends, strict=True):

    def total(records, image_fn, like, fisher=fisher):
      assert image_fn is squared_gradient
      np.testing.assert_array_equal(records, [10, 12, 14, 16])  # 4 of 8, evenly
      return jax.tree.map(lambda x: 4 * x.astype(np.float64), fisher)

    state = finished(
      config, 1, 2, stats=stats, params=end, records=range(10, 18), total=total
    )
    stats = EWC.stats(state, config)
  return stats


@pytest.mark.parametrize("online", [False, True])
def test_penalties_of_several_states_are_one(online):
  rng = np.random.default_rng(1)
  fishers = [jax.tree.map(np.square, tree_of(rng)) for _ in range(3)]
  fishers[0]["b"], fishers[1]["b"] = 2 * [
    np.zeros(1, np.float32)
  ]  # where nothing was known
  ends = [tree_of(rng) for _ in range(3)]
  config = config_of("ewc", ewc_images=4, ewc_online=online, ewc_decay=0.5)
  stats = ewc_states(config, fishers, ends)

  def of_states(theta):
    """A penalty for each state; or one around the last parameters."""
    total = 0.0
    for age, (fisher, end) in enumerate(
      zip(*(map(numbers, trees[::-1]) for trees in (fishers, ends)), strict=True)
    ):
      weight, anchor = (0.5**age, numbers(ends[-1])) if online else (1.0, end)
      for f, x, a in zip(fisher, theta, anchor, strict=True):
        total += weight * f * (x - a) ** 2
    return total

  def as_one(theta):
    importance, anchor = numbers(stats["importance"]), numbers(stats["anchor"])
    return float(np.sum(importance * (theta - anchor) ** 2))

  # They differ by a constant, which is 0 for the one around the last parameters.
  one, other = (numbers(tree_of(rng)) for _ in range(2))
  difference = of_states(one) - of_states(other)
  assert as_one(one) - as_one(other) == pytest.approx(difference, rel=1e-4)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(stats))


# SI --------------------------------------------------------------------------------------


def walked(method, config, carried, path, gradients):
  """What steps along a path carry along."""
  for before, after, gradient in zip(path[:-1], path[1:], gradients, strict=True):
    carried = method.carry(carried, Step(before, after, gradient), context_of(0, 2), config)
  return jax.device_get(carried)


def test_the_path_integral_over_three_steps_by_hand():
  # From 1 to 0 to 2 to 1.5, with gradients 2, -1 and 4: omega is
  # -(2 * -1) - (-1 * 2) - (4 * -0.5) = 6. Over ((1.5 - 1)^2 + 0.75) = 1 it is 6.
  config = config_of("si", si_damping=0.75)

  def one(x):
    return {"w": np.float32([x])}

  path, gradients = list(map(one, (1, 0, 2, 1.5))), list(map(one, (2, -1, 4)))
  carried = walked(SI, config, SI.init_carried(path[0]), path, gradients)
  assert carried["w"].tolist() == [6]
  before = stats_before(SI, path[0])
  first = SI.stats(
    finished(config, 0, 2, stats=before, params=path[-1], carried=carried), config
  )
  assert (first["importance"]["w"].tolist(), first["anchor"]["w"].tolist()) == ([6], [1.5])
  # A state that goes from 1.5 to 2 against its gradient: 6 - 2 / ((2 - 1.5)^2 + 0.75) = 4;
  # and one that would make it -4, which becomes 0.
  for omega, expected in ((-2, 4), (-10, 0)):
    second = finished(config, 2, 4, stats=first, params=one(2), carried=one(omega))
    assert SI.stats(second, config)["importance"]["w"].tolist() == [expected]


# RWalk -----------------------------------------------------------------------------------


def rwalk_loop(paths, gradients, *, share, interval, epsilon):
  """Importance after states with these paths and gradients, lists of float64 [5]."""
  score = None
  for path, of_steps in zip(paths, gradients, strict=True):
    fisher, walked_score, steps = np.zeros(5), np.zeros(5), len(of_steps)
    for first in range(0, steps, interval):
      last = min(first + interval, steps)
      for i in range(5):
        squares, saved = 0.0, 0.0
        for n in range(first, last):
          squares += of_steps[n][i] ** 2
          saved -= of_steps[n][i] * (path[n + 1][i] - path[n][i])
        fisher[i] = share * squares / (last - first) + (1 - share) * fisher[i]
        distance = fisher[i] * (path[last][i] - path[first][i]) ** 2 / 2
        walked_score[i] += max(saved, 0.0) / (distance + epsilon)
    score = walked_score if score is None else (score + walked_score) / 2
  return fisher / fisher.max() + score / score.max()


def test_rwalk_is_its_loop():
  rng = np.random.default_rng(2)
  own = {"share": 0.7, "interval": 3}
  config = config_of(
    "rwalk", rwalk_damping=0.05, **{f"rwalk_{name}": x for name, x in own.items()}
  )
  paths, gradients = [], []
  # Of whole intervals, with a rest, and less than one.
  for steps in (6, 8, 2):
    paths.append([tree_of(rng) for _ in range(steps + 1)])
    gradients.append([tree_of(rng) for _ in range(steps)])
  stats = stats_before(RWALK, paths[0][0])
  for t, (path, of_steps) in enumerate(zip(paths, gradients, strict=True)):
    carried = walked(RWALK, config, RWALK.init_carried(path[0]), path, of_steps)
    state = finished(config, t, t + 1, stats=stats, params=path[-1], carried=carried)
    stats = RWALK.stats(state, config)
    expected = rwalk_loop(
      *(
        [list(map(numbers, trees)) for trees in what[: t + 1]]
        for what in (paths, gradients)
      ),
      epsilon=0.05,
      **own,
    )
    np.testing.assert_allclose(numbers(stats["importance"]), expected, rtol=1e-4)
    np.testing.assert_array_equal(numbers(stats["anchor"]), numbers(path[-1]))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(stats))


def test_no_path_leaves_no_importance():
  params = {"w": np.ones(3, np.float32)}
  for name in ("si", "rwalk"):
    method, config = METHODS[name], config_of(name)
    still = finished(
      config,
      0,
      2,
      stats=stats_before(method, params),
      params=params,
      carried=method.init_carried(params),
    )
    assert method.stats(still, config)["importance"]["w"].tolist() == [0, 0, 0]


# What it is for --------------------------------------------------------------------------


class TwoLayers:
  """A network of a layer that all classes share, and a head."""

  def apply(self, variables, pixels, *, train, mutable=()):
    params = variables["params"]
    features = jnp.tanh((4 * pixels.mean((1, 2)) - 2) @ params["stem_conv"]["kernel"])
    outputs = Outputs(features=features, logits=features @ params["head"]["kernel"])
    return (outputs, {"batch_stats": {}}) if mutable else outputs


def small_task(rng):
  """40 images, uint8 [40, 1, 1, 3], of two classes that a plane divides."""
  pixels, plane = rng.integers(256, size=(40, 3)), rng.standard_normal(3)
  return np.uint8(pixels[:, None, None]), (pixels - 127.5) @ plane > 0


CONTEXTS = [(0, 2), (2, 4)]  # classes old and seen


def network(params, pixels):
  return TwoLayers().apply({"params": params}, pixels, train=False)


@functools.cache
def trainer(name, **settings):
  """(state, batch, context) -> the state after 60 steps."""
  config = config_of(name, batch_size_new=40, **settings)
  model = Model(
    network=TwoLayers(),
    method=METHODS[name],
    optimizer=make_optimizer(momentum=config.momentum, weight_decay=0.0),
    augmentation=Augmentation(max_shift=0, flip=False),
    normalization=None,
    config=config,
    state_of_class=(0, 0, 1, 1),
  )

  def train(state, batch, context):
    def step(state, _):
      return train_step(state, batch, context, jnp.float32(0.05), None, model=model)

    return jax.lax.scan(step, state, length=60)[0]

  mapped = jax.jit(jax.vmap(train, axis_name=AXIS, in_axes=(0, None, None)))

  def on_one_device(state, batch, context):
    after = mapped(jax.tree.map(lambda x: jnp.asarray(x)[None], state), batch, context)
    return jax.device_get(jax.tree.map(lambda x: x[0], after))

  return config, model, on_one_device


def losses_of_two_tasks(seed, name, **settings):
  """The mean loss of the first task before and after the second is learnt, and of that."""
  config, model, train = trainer(name, **settings)
  method, rng = model.method, np.random.default_rng(seed)
  params = {
    "stem_conv": {"kernel": np.float32(rng.standard_normal((3, 4)))},
    "head": {"kernel": np.float32(0.1 * rng.standard_normal((4, 4)))},
  }
  state = TrainState(np.int32(0), params, {}, model.optimizer.init(params))
  stats, batches, found = stats_before(method, params, config), [], []
  for classes in CONTEXTS:
    pixels, is_second = small_task(rng)
    places = np.arange(len(pixels), dtype=np.int32)
    batches.append(Batch(pixels, np.int32(classes[0] + is_second), places, places))
    context = context_of(*classes, stats=stats)._replace(
      seed=jnp.uint32(0), class_images=jnp.float32([len(pixels)])
    )
    state = with_own(state, method, stats, config)
    state = train(state, batches[-1], context)

    def total(records, image_fn, like, state=state, batch=batches[-1], context=context):
      of_image = functools.partial(image_fn, network, state.params)
      values = jax.vmap(lambda x, y: of_image(x[None], y, context, config))(
        to_float(batch.inputs, None)[records], batch.labels[records]
      )
      return jax.tree.map(lambda x: np.sum(np.float64(x), axis=0), values)

    stats = method.stats(
      finished(
        config,
        *classes,
        stats=stats,
        params=state.params,
        carried=state.carried,
        own=state.own,
        records=places,
        total=total,
      ),
      config,
    )
    for (low, high), batch in zip(CONTEXTS, batches, strict=False):
      scores = np.float64(network(state.params, to_float(batch.inputs, None)).logits)[
        :, low:high
      ]
      own = np.take_along_axis(scores, batch.labels[:, None] - low, 1)[:, 0]
      found.append(np.mean(np.log(np.exp(scores).sum(axis=1)) - own))
  return found


@pytest.mark.parametrize(("name", "strength"), [("ewc", 50.0), ("si", 5.0), ("rwalk", 1.0)])
def test_less_is_forgotten_than_by_plain_training(name, strength):
  for seed in range(5):
    first, plain, _ = losses_of_two_tasks(seed, "ewc", penalty_strength=0.0)
    same, penalized, second = losses_of_two_tasks(seed, name, penalty_strength=strength)
    assert same == pytest.approx(first, rel=1e-4)
    # Half of the rise at most, and the second task is learnt all the same: below log 2.
    assert penalized - first < (plain - first) / 2
    assert first < 0.1
    assert second < 0.4


GAUSSIAN = [
  ("vcl", 1.0, {"vcl_layers": "all", "sigma_rate": 0.03}),
  ("ucl", 50.0, {"sigma_rate": 0.03}),
]


@pytest.mark.parametrize(("name", "strength", "settings"), GAUSSIAN)
def test_less_is_forgotten_than_without_what_holds_the_means(name, strength, settings):
  for seed in range(5):
    (first, plain, _), (held_first, held, second) = (
      losses_of_two_tasks(seed, name, penalty_strength=x, **settings)
      for x in (0.0, strength)
    )
    assert held - held_first < (plain - first) / 2
    assert max(first, held_first) < 0.15
    assert second < 0.5


@pytest.mark.parametrize("name", [*NAMES, "vcl", "ucl"])
def test_a_class_alone_can_be_learnt_beside_exemplars(name, tmp_path):
  alone = {"method": name, "num_classes": 3, "num_states": 3}
  plan = make_plan(small_config(tmp_path, **alone, replay=True))
  assert [state.num_seen for state in plan.states] == [1, 2, 3]
  with pytest.raises(ConfigError, match="would learn nothing of"):
    make_plan(small_config(tmp_path, **alone))
