"""A small text and a small run on it, for the tests of training."""

import numpy as np

from reptrace.texts.corpora import Corpus
from reptrace.training.runs import Run

WORDS = np.random.default_rng(0).choice(["sun", "rain", "wind", "snow", "fog", "hail", "and", "then", "."], 6000)
CORPUS = Corpus("weather", [" ".join(WORDS[k : k + 60]) for k in range(0, 6000, 60)])


def a_run(**changes) -> Run:
    setting = {"width": 16, "layers": 1, "steps": 24, "seed": 0, "vocabulary": 300, "context": 16, "batch": 4,
               "learning_rate": 4e-3, "warmup_steps": 4, "schedule": "cosine", "weight_decay": 0.01,
               "corpus": CORPUS.fingerprint}
    return Run(**setting | changes)
