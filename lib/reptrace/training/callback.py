"""RankMe and alpha during anybody's training with transformers' Trainer, or one of TRL's, which are made of it."""

from __future__ import annotations

import gc
import random
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from reptrace.measures.spectra import alpha_req, geometry
from reptrace.models.batches import check_batch_size, is_out_of_memory
from reptrace.models.decoders import adapters
from reptrace.models.hidden_states import FINAL, check_sequences, last_token_states

logger = logging.get_logger("reptrace")


class ShardedModelError(TypeError):
    """The model's weights are spread over processes, so that no single one can measure it."""


class GeometryCallback(TrainerCallback):
    """Logs the geometry of a probe to the Trainer's own log, so that TensorBoard, W&B and the others show it.

    `trainer.add_callback(GeometryCallback(trainer, probe.sequences, every=500))`. Logged: `geometry/rankme`,
    `geometry/rankme_stderr`, `geometry/alpha`, `geometry/alpha_stderr` (per layer, `geometry/3/rankme`, if several are
    asked for), `geometry/time_share`, the share of the training time so far that measuring took, and, by its name, each
    adapter of PEFT that was part of the model: `geometry/adapter/default`, 1.

    A measurement that fails, for whatever reason (out of memory, NaN in the weights, a model that cannot be measured),
    is a warning, and training goes on as if nothing had been asked: `geometry/time_share` is then all that is logged.
    What fails for the same reason later is counted, and said at the end of training. Measuring leaves random states,
    training modes, gradients and hooks as they were, so that the trained weights are the same, bit for bit, with and
    without it. Errors of a reporter, which the Trainer's log calls, are not caught.

    It works alike in TRL's trainers, where the model is the policy: the reference model is not touched, and a step is
    an update of the weights, whatever was generated or accumulated for it.

    The model is measured without dropout and in the dtype of its weights, outside of autocast. Where PEFT has put an
    adapter such as LoRA into it, the active adapters are part of it; so they are under torch.compile and
    DistributedDataParallel, where the first process measures and the others wait. Not measured, with a warning: float16
    weights, adapters that put learned tokens before the text (prompt and prefix tuning), and models sharded over
    processes (FSDP, ZeRO-3, tensor parallelism), of which the first process holds a part.

    Parameters
    ----------
    trainer : transformers.Trainer, or of a class made of it
        What is measured goes to its log by hand: a callback given to Trainer(callbacks=...) comes after the reporters.
    sequences : M lists of token ids, without padding, or the Probe that holds them; or a dict of several such, by name
        M well above the width; a thousand or two costs little and moves RankMe by a few percent against 15,000. Of a
        dict, the names are logged: {"text": ..., "prompts": ...} gives `geometry/text/rankme`.
    every : int, optional
        Measure every so many steps, and at step 0. Give this or `steps`.
    steps : list of int, optional
        Measure at these steps, or at one; 0 is before the first one.
    layers, batch_size : see `hidden_states.last_token_states`
    ranks : (int, int), default (12, 100), shortened where the spectrum is shorter; None: RankMe alone.

    Raises
    ------
    ValueError, TypeError
        Before training starts, where the call itself is wrong: sequences that are not lists of token ids, or do not fit
        the trainer's model (ids outside of its vocabulary, longer than its context), unknown layers, impossible ranks.
    """

    def __init__(self, trainer, sequences: Sequence | Mapping[str, Sequence], every: int | None = None,
                 steps: Sequence[int] | None = None, layers: Sequence[int | str] | str = (FINAL,),
                 batch_size: int | str = 16, ranks: tuple[int, int] | None = (12, 100)):
        if (every is None) == (steps is None):
            raise ValueError("say when to measure: every=N steps, or steps=[...], one of the two.")
        if every is not None and (int(every) != every or every < 1):
            raise ValueError(f"every must be a positive number of steps, got {every}.")
        if isinstance(steps, str):
            raise TypeError(f"steps are whole numbers, got {steps!r}.")
        steps = [steps] if isinstance(steps, int) else steps
        if steps is not None and (len(steps) == 0 or any(int(step) != step or step < 0 for step in steps)):
            raise ValueError(f"steps must be whole numbers, 0 or more, and at least one, got {list(steps)}.")
        probes = {name: getattr(each, "sequences", each) for name, each in _by_name(sequences).items()}
        for each in probes.values():
            if len(each) < 2:
                raise ValueError(f"a spectrum needs at least 2 sequences, got {len(each)}.")
        check_batch_size(batch_size)
        if ranks is not None:
            alpha_req(np.arange(max(3, *ranks), 0, -1), ranks)  # of a spectrum that is long enough
        layers = (layers,) if isinstance(layers, (str, int)) and layers != "all" else layers
        for each in probes.values():
            _check_call(getattr(trainer, "model", None), each, layers)
        self.probes, self.every, self.steps = probes, every, None if steps is None else set(steps)
        self.layers, self.batch_size, self.ranks = layers, batch_size, ranks
        self.trainer = trainer
        self._begin()

    def _begin(self) -> None:
        self._started, self.seconds, self._measured = time.perf_counter(), 0.0, 0
        self._told_of_few: set[str] = set()  # probes
        self._failed: Counter[tuple] = Counter()  # by kind of error and where it was raised
        self._first: dict[tuple, int] = {}  # step

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._begin()
        if state.global_step == 0:
            self._measure_if_due(state.global_step, model, control)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self._measure_if_due(state.global_step, model, control)

    def on_train_end(self, args, state, control, **kwargs):
        if not self.trainer.is_world_process_zero():
            return
        share = self.seconds / max(time.perf_counter() - self._started, 1e-9)
        missed = self._failed.total()
        told = f"; {missed} of {self._measured + missed} measurements failed: " + ", ".join(
            f"{count} {kind} (first at step {self._first[kind, place]})"
            for (kind, place), count in self._failed.items()) if missed else ""
        logger.warning(f"geometry took {self.seconds:.1f} s, {share:.1%} of the training time{told}")

    def _measure_if_due(self, step: int, model, control) -> None:
        due = step % self.every == 0 if self.steps is None else step in self.steps
        if not due or not self.trainer.is_world_process_zero():
            return
        started = time.perf_counter()
        logs, ran_out = {}, False
        try:
            logs = self._measure(model)
            self._measured += 1
        except Exception as error:
            ran_out = is_out_of_memory(error)
            self._miss(step, error)
        if ran_out:  # only here: the exception, which held the activations, is gone
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        self.seconds += time.perf_counter() - started
        logs["geometry/time_share"] = self.seconds / (time.perf_counter() - self._started)
        # The Trainer takes any log for its own of this step: it would leave out the loss, in this process alone, and
        # the others would wait for ever for theirs to be added.
        should_log = control.should_log
        # Not the trainer's own `log`: TRL's puts the means of what was counted since the last row (reward, entropy,
        # margins) into whatever row comes next, and begins them anew; they would be missing in the row of the loss.
        Trainer.log(self.trainer, logs)
        control.should_log = self.trainer.control.should_log = should_log

    def _measure(self, model: nn.Module) -> dict[str, float]:
        _check_whole(model)
        logs = {}
        with _as_if_nothing_happened(model):
            for name, sequences in self.probes.items():
                features = last_token_states(model, sequences, self.layers, self.batch_size)
                for layer, matrix in features.items():
                    parts = ["geometry", *[name] * bool(name), *[str(layer)] * (len(features) > 1)]
                    logs |= self._logs("/".join(parts), name, layer, matrix)
        return logs | {f"geometry/adapter/{name}": 1.0 for name in adapters(model)}  # reporters take numbers alone

    def _logs(self, prefix: str, probe: str, layer: int | str, matrix: torch.Tensor) -> dict[str, float]:
        found = geometry(matrix, self.ranks, shorten=True)
        if found.dominated and probe not in self._told_of_few:
            self._told_of_few.add(probe)
            logger.warning(f"{probe and f'{probe}, '}layer {layer}: {found.few}. Not told again.")
        logs = {f"{prefix}/rankme": found.rankme, f"{prefix}/rankme_stderr": found.rankme_stderr}
        if found.alpha:
            logs |= {f"{prefix}/alpha": found.alpha.alpha, f"{prefix}/alpha_stderr": found.alpha_stderr}
        return logs

    def _miss(self, step: int, error: Exception) -> None:
        """Count a failure; warn of the first of its kind, whatever numbers the later ones name."""
        raised, no_memory = traceback.extract_tb(error.__traceback__)[-1], is_out_of_memory(error)
        kind = type(error).__name__, "" if no_memory else f"{raised.filename}:{raised.lineno}"  # memory ends anywhere
        self._failed[kind] += 1
        if self._failed[kind] > 1:
            return
        self._first[kind] = step
        ours = Path(__file__).parents[1] in Path(raised.filename).parents  # then it says what to do
        advice = (" Try a smaller batch_size, or fewer or shorter sequences." if no_memory else "" if ours
                  else f" It was raised in {Path(raised.filename).name}, line {raised.lineno}; to see it whole, call "
                       "reptrace.models.hidden_states.last_token_states(model, sequences).")
        told = str(error).strip().split("\n")[0].rstrip(".")
        logger.warning(f"no geometry at step {step}, training goes on: {kind[0]}{told and ': '}{told}.{advice} Further "
                       "failures of this kind are counted and not told until the end.")


def _by_name(sequences) -> Mapping:
    """Probes by name; the name of a single one is empty, and not logged."""
    if isinstance(sequences, Mapping) and "input_ids" in sequences:
        raise TypeError("sequences are the lists of token ids alone: of what a tokenizer gives, its [\"input_ids\"].")
    if isinstance(sequences, Mapping) and not sequences:
        raise ValueError("name at least one probe, or give its sequences.")
    if isinstance(sequences, Mapping) and not all(isinstance(name, str) and name for name in sequences):
        raise TypeError(f"the names of probes are texts, not empty, got {', '.join(map(repr, sequences))}.")
    return sequences if isinstance(sequences, Mapping) else {"": sequences}


def _check_call(model: nn.Module | None, sequences: Sequence[Sequence[int]], layers) -> None:
    """ValueError or TypeError for sequences and layers that can never be measured.

    Nothing is said of the model itself: that it cannot be measured is a warning when it is to be.
    """
    for row, sequence in enumerate(sequences):
        if np.ndim(sequence) != 1 or len(sequence) == 0 or np.asarray(sequence).dtype.kind not in "iu":
            raise TypeError(f"sequence {row} is not a list of token ids, which are whole numbers. Of texts: "
                            "probe(corpus, tokenizer, M).sequences (reptrace.texts.corpora).")
    try:
        _check_whole(model)
        check_sequences(model, [[0]])
    except Exception:
        return
    check_sequences(model, sequences, layers)


def _check_whole(model: nn.Module) -> None:
    """ShardedModelError where this process holds a part of the model: its forward pass would wait for the others."""
    kinds = {base.__name__ for module in model.modules() for base in type(module).__mro__}
    by = "FSDP" if kinds & {"FullyShardedDataParallel", "FSDPModule"} else None
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            by = "DeepSpeed's ZeRO-3"
        elif "DTensor" in {base.__name__ for base in type(parameter).__mro__}:
            by = by or "tensor parallelism"
        elif not parameter.numel():
            by = by or "something that leaves empty tensors here"
    if by:
        raise ShardedModelError(f"the model is spread over processes by {by}, and one of them alone cannot run it. "
                                "Measure the checkpoints that training saves instead: python -m reptrace trace --model "
                                "FOLDER.")


@contextmanager
def _as_if_nothing_happened(model: nn.Module) -> Iterator[None]:
    """Measuring in the weights' own dtype, uncompiled; random states are put back.

    Training modes, hooks and frequencies of rotations are put back by the measurement itself.
    """
    modules, devices = list(model.modules()), {parameter.device for parameter in model.parameters()}
    python, numpy = random.getstate(), np.random.get_state()
    # accelerate's mixed precision turns autocast on in the model's own forward
    forwards = [(module, module.forward) for module in modules if "_original_forward" in vars(module)]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([gpu for gpu in devices if gpu.type == "cuda"], device_type="cuda"))
        for kind in {device.type for device in devices} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if any(module._compiled_call_impl or hasattr(module, "_orig_mod") for module in modules):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would not call our hooks
        try:
            for module, _ in forwards:
                module.forward = module._original_forward
            yield
        finally:
            for module, forward in forwards:
                module.forward = forward
            random.setstate(python)
            np.random.set_state(numpy)
