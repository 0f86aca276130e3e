"""RankMe and alpha during anybody's training with transformers' Trainer."""

from __future__ import annotations

import time
from collections.abc import Sequence

from transformers import TrainerCallback
from transformers.utils import logging

from reptrace.hidden_states import FINAL, last_token_states
from reptrace.spectra import geometry

logger = logging.get_logger("reptrace")


class GeometryCallback(TrainerCallback):
    """Logs the geometry of a probe to the Trainer's own log, so that TensorBoard, W&B and the others show it.

    `trainer.add_callback(GeometryCallback(trainer, probe.sequences, every=500))`. Logged: `geometry/rankme`,
    `geometry/rankme_stderr`, `geometry/alpha`, `geometry/alpha_stderr` (per layer, `geometry/3/rankme`, if several are
    asked for) and `geometry/time_share`, the share of the training time so far that measuring took.

    Parameters
    ----------
    trainer : transformers.Trainer
        Its `log` is called, as TRL's callbacks do: one given to Trainer(callbacks=...) would come after the reporters.
    sequences : M lists of token ids, without padding, or the Probe that holds them
        M well above the width; a thousand or two costs little and moves RankMe by a few percent against 15,000.
    every : int, optional
        Measure every so many steps, and at step 0. Give this or `steps`.
    steps : list of int, optional
        Measure at these steps, or at one; 0 is before the first one.
    layers, batch_size : see `hidden_states.last_token_states`
    ranks : (int, int), default (12, 100), shortened where the spectrum is shorter; None: RankMe alone.

    A measurement that fails (NaN in the weights, features that do not vary) is a warning with its reason; training goes
    on. With several processes the first one measures; models sharded over processes (FSDP, ZeRO-3) cannot be measured.
    """

    def __init__(self, trainer, sequences: Sequence[Sequence[int]], every: int | None = None,
                 steps: Sequence[int] | None = None, layers: Sequence[int | str] | str = (FINAL,),
                 batch_size: int = 16, ranks: tuple[int, int] | None = (12, 100)):
        if (every is None) == (steps is None):
            raise ValueError("say when to measure: every=N steps, or steps=[...], one of the two.")
        if every is not None and every < 1:
            raise ValueError(f"every must be a positive number of steps, got {every}.")
        if isinstance(steps, str):
            raise TypeError(f"steps are whole numbers, got {steps!r}.")
        sequences = getattr(sequences, "sequences", sequences)
        if isinstance(sequences, str) or any(isinstance(sequence, str) for sequence in sequences):
            raise TypeError("sequences are lists of token ids, got text. Pass probe(corpus, tokenizer, M).sequences "
                            "(reptrace.corpora).")
        if len(sequences) < 2:
            raise ValueError(f"a spectrum needs at least 2 sequences, got {len(sequences)}.")
        self.sequences, self.every = sequences, every
        self.steps = None if steps is None else {steps} if isinstance(steps, int) else set(steps)
        one = isinstance(layers, (str, int)) and layers != "all"
        self.layers, self.batch_size, self.ranks = (layers,) if one else layers, batch_size, ranks
        self.trainer, self.seconds = trainer, 0.0
        self._started = time.perf_counter()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._started, self.seconds = time.perf_counter(), 0.0
        if state.global_step == 0:
            self._measure_if_due(state.global_step, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self._measure_if_due(state.global_step, model)

    def on_train_end(self, args, state, control, **kwargs):
        share = self.seconds / max(time.perf_counter() - self._started, 1e-9)
        logger.warning(f"geometry took {self.seconds:.1f} s, {share:.1%} of the training time")

    def _measure_if_due(self, step: int, model) -> None:
        due = step % self.every == 0 if self.steps is None else step in self.steps
        if not due or not self.trainer.is_world_process_zero():
            return
        started = time.perf_counter()
        logs = {}
        try:
            features = last_token_states(model, self.sequences, self.layers, self.batch_size)
            for layer, matrix in features.items():
                prefix = "geometry/" if len(features) == 1 else f"geometry/{layer}/"
                found = geometry(matrix, self.ranks, shorten=True)
                logs |= {f"{prefix}rankme": found.rankme, f"{prefix}rankme_stderr": found.rankme_stderr}
                if found.alpha:
                    logs |= {f"{prefix}alpha": found.alpha.alpha, f"{prefix}alpha_stderr": found.alpha_stderr}
        except ValueError as error:
            logger.warning(f"no geometry at step {step}: {error}")
        self.seconds += time.perf_counter() - started
        logs["geometry/time_share"] = self.seconds / (time.perf_counter() - self._started)
        self.trainer.log(logs)
