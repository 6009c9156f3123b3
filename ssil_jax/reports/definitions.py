"""Says what the measures of a report mean."""

DEFINITIONS = (
  (
    "states, old and new",
    "Classes arrive in T states. In a state, the classes that it adds are new and those of "
    "all earlier states are old. Every measure is taken after the training of a state, on "
    "images of all classes seen so far that were not trained on. A dash stands where a "
    "measure is not defined or, in results of earlier versions, not known.",
  ),
  ("T, |M|", "Number of states; number of exemplars of old classes that are kept in all."),
  (
    "top-1, top-5",
    "Share of the images whose class is the best prediction, or among the five best. With "
    "five classes seen or fewer, top-5 is 100 %.",
  ),
  (
    "e(p,n), e(n,p)",
    "Share of old-class images that are predicted as a new class (of any, right or wrong); "
    "share of new-class images that are predicted as an old class.",
  ),
  (
    "imbalance",
    "Mean of e(p,n) and e(n,p). It is not defined in the first state, which has no old "
    "classes.",
  ),
  (
    "ECE",
    "Expected calibration error (Guo et al. 2017): images are put into 15 equal intervals "
    "by the probability of their best prediction; the distance of its mean from the share "
    "of right predictions, averaged over the intervals by their images.",
  ),
  (
    "own-state, state-specific top-1",
    "Accuracy when only the classes of the image's own state compete, averaged over the "
    "states seen, each with the same weight.",
  ),
  (
    "forgetting",
    "Of the classes of each state but the last: their highest top-1 after any earlier "
    "state less that after the last one, averaged over the states (Chaudhry et al. 2018). "
    "Lower is better.",
  ),
  (
    "backward transfer",
    "Of the classes of each state but the last: their top-1 after the last state less that "
    "right after they were learnt, averaged over the states (Lopez-Paz and Ranzato 2017). "
    "Negative where they were forgotten.",
  ),
  (
    "mean output, score gap",
    "The network's output (logit) averaged over the old or the new classes and over all "
    "images; the gap is new minus old.",
  ),
  ("average", "Mean over the finished states in which the measure is defined."),
  ("last", "After the last finished state."),
  (
    "seconds, training time",
    "Time spent on training: of a state, and summed over the finished states.",
  ),
)
