"""A lean training loop: what transformers' Trainer does with small models, without what surrounds it there.

AdamW with the Trainer's two groups of weights, its clipping and its schedules, on batches in a fixed order: the losses
are the Trainer's but for float32 rounding. On a GPU the blocks and the head are compiled and run in bfloat16 (autocast;
the weights stay float32); on a CPU everything is float32, and a loop that goes on from a saved state ends with the
weights of one that was never stopped, bit for bit.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, pad
from transformers import GPTNeoXForCausalLM, get_scheduler

from reptrace.records.store import write_atomically
from reptrace.training import neox
from reptrace.training.runs import DECAYING, LOSSES, Run, block_order, blocks_of

IGNORED = -100  # a label that cross_entropy leaves out


@dataclass(frozen=True)
class Averaging:
    """An average of the weights, kept beside the run: their plain mean at first, an exponential average later.

    Parameters
    ----------
    weight : float
        Of the newest weights, in (0, 1]: the n-th addition weighs 1/n, but never less than this.
    every : int, default 1
        Steps between additions. The initial weights are not added.
    """

    weight: float
    every: int = 1

    def __post_init__(self):
        if not 0 < self.weight <= 1 or self.every < 1:
            raise ValueError(f"an average needs a weight in (0, 1] and a number of steps from 1, got {self!r}.")

    def __str__(self) -> str:
        return f"{self.weight} every {self.every}"


AVERAGING = Averaging(0.004, every=2)  # of all suites; a mean over some 500 steps


class Loop:
    """One run in training, at some step.

    Parameters
    ----------
    run : Run
        Its corpus is not looked at.
    ids : array of uint16, shape (tokens,)
        The training text, as `Suite.token_file` keeps it.
    averaging : Averaging, optional
    device : str or torch.device, default "cpu"

    Attributes
    ----------
    model : GPTNeoXForCausalLM, in float32
    average : list of tensors or None
        The averaged weights, in the order of `model.parameters()`.
    step : int
        Optimizer steps done.
    """

    def __init__(self, run: Run, ids: np.ndarray, averaging: Averaging | None = None,
                 device: str | torch.device = "cpu"):
        blocks = blocks_of(ids, run)
        self.run, self.averaging, self.device, self.step = run, averaging, torch.device(device), 0
        self.model = initial_model(run).to(self.device)
        self.parameters = list(self.model.parameters())
        self.average = [weights.detach().clone() for weights in self.parameters] if averaging else None
        # kept as 16 bits on the device, where a batch is picked without waiting
        self._blocks = torch.from_numpy(np.ascontiguousarray(blocks).view(np.int16)).to(self.device)
        self._order = torch.from_numpy(block_order(len(blocks), run)).to(self.device)
        self._optimizer = torch.optim.AdamW(_groups(self.model, run.weight_decay), lr=run.learning_rate,
                                            betas=(0.9, 0.95), eps=1e-8, fused=True)
        self._share_of_rate = rate_by_step(run, self._optimizer)
        if self.device.type == "cpu":
            self._forward = neox.Forward(self.model, run.context)
            self._head = {**HEADS, LOSSES[0]: neox.head_loss}[run.loss]
        else:
            for block in self.model.gpt_neox.layers:
                block.compile(dynamic=False)  # one piece of code for all: seconds, where a whole model takes a minute
            self._forward, self._head = self._by_transformers, torch.compile(HEADS[run.loss], dynamic=False)

    def advance(self, steps: int) -> dict[str, float]:
        """Train so many steps more, or up to the run's end.

        Returns
        -------
        dict: means of `loss` and of `gradient_norm` (before clipping) over these steps, and the last `learning_rate`.
        """
        steps = min(steps, self.run.steps - self.step)
        if steps < 1:
            raise ValueError(f"the run is at step {self.step} of {self.run.steps}: nothing is left to train.")
        sums = torch.zeros(2, device=self.device)
        for _ in range(steps):
            sums += torch.stack(self._one_step())
        loss, norm = (sums / steps).tolist()
        return {"loss": loss, "gradient_norm": norm, "learning_rate": self._optimizer.param_groups[0]["lr"]}

    def _one_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss before a step, and the norm of its gradient; neither is waited for."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.run.learning_rate * self._share_of_rate(self.step)
        loss = self._loss(self._batch(self.step))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.run.gradient_clip or math.inf)  # 0: none
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        if self.averaging and self.step % self.averaging.every == 0:
            weight = max(self.averaging.weight, self.averaging.every / self.step)
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, weight)
        return loss.detach(), norm

    def _batch(self, step: int) -> torch.Tensor:
        rows = self._order[step * self.run.batch : (step + 1) * self.run.batch]
        return self._blocks[rows].long() & 0xFFFF  # as unsigned

    def _loss(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self._head(self._forward(ids), self.model.get_output_embeddings().weight, ids)

    def _by_transformers(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.gpt_neox(input_ids=ids, use_cache=False).last_hidden_state

    def averaged_model(self) -> GPTNeoXForCausalLM:
        """A model of its own with the averaged weights."""
        model = initial_model(self.run).to(self.device)
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), self.average)
        return model

    def save(self, path: str | Path, beside: Sequence = ()) -> None:
        """Write all that a loop needs to go on, whole or not at all; `beside`: plain values that `load` gives back."""
        state = {"identity": self._identity, "step": self.step, "model": self.model.state_dict(),
                 "optimizer": self._optimizer.state_dict(), "average": self.average, "beside": list(beside)}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(path, buffer.getbuffer())

    def load(self, path: str | Path) -> list:
        """Go on from what `save` wrote, on any device; returns what was saved `beside` it.

        Raises
        ------
        ValueError
            It is the state of a run with other settings or on another text; the message names what differs. Or its file
            is damaged.
        """
        _check_whole(path)
        state = torch.load(path, map_location=self.device, weights_only=True)
        check_same(state["identity"], self._identity, f"the state in {str(path)!r}")
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]
        return state.get("beside", [])

    @property
    def _identity(self) -> dict:
        return {**self.run.identity, "averaging": self.averaging and str(self.averaging), "blocks": len(self._blocks)}


def check_same(found: Mapping, wanted: Mapping, what: str) -> None:
    """ValueError that names the settings in which two runs differ."""
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if keys:
        differ = ", ".join(f"{key} {found.get(key)!r}, not {wanted.get(key)!r}" for key in keys)
        raise ValueError(f"{what} is of a run with other settings: {differ}. Go on with those, or begin anew in "
                         "another folder.")


def _check_whole(path: str | Path) -> None:
    """ValueError where a saved state is cut short or altered; torch, which reads it, compares no checksums."""
    try:
        with zipfile.ZipFile(path) as file:
            wrong = file.testzip()
    except zipfile.BadZipFile as error:
        wrong = str(error)
    if wrong:
        raise ValueError(f"the state in {str(path)!r} is damaged ({wrong}): delete it, and its run begins anew.")


def initial_model(run: Run) -> GPTNeoXForCausalLM:
    """The model before its first step, the same for a seed wherever it is made; random states are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return GPTNeoXForCausalLM(run.config)


def rate_by_step(run: Run, optimizer: torch.optim.Optimizer) -> Callable[[int], float]:
    """Share of the peak rate at each step, by transformers' schedule of that name."""
    decay = {"num_decay_steps": run.decay_steps, "decay_type": "linear"} if run.schedule == DECAYING else None
    return get_scheduler(run.schedule, optimizer, run.warmup_steps, run.steps, decay).lr_lambdas[0]


def head_loss(states: torch.Tensor, unembedding: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token.

    Parameters
    ----------
    states : tensor, shape (batch, length, d); after the final norm
    unembedding : tensor, shape (V, d)
    ids : integer tensor, shape (batch, length)
    """
    following = pad(ids[:, 1:], (0, 1), value=IGNORED)
    logits = linear(states, unembedding).float()
    return cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=IGNORED)


def squared_error(states: torch.Tensor, unembedding: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Squared distance of the logits to the one-hot next token, summed over the vocabulary, mean over tokens.

    Parameters
    ----------
    as of `head_loss`
    """
    logits, following = linear(states[:, :-1], unembedding).float(), ids[:, 1:]
    # |z - e_y|^2 = |z|^2 - 2 z_y + 1, without the one-hot matrix
    hit = logits.gather(-1, following.unsqueeze(-1)).squeeze(-1)
    return (logits.square().sum(-1) - 2 * hit + 1).mean()


HEADS = dict(zip(LOSSES, (head_loss, squared_error), strict=True))


def _groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weights that decay, matrices, and those that don't, biases and norms: as the Trainer has it."""
    parameters = list(model.parameters())
    return [{"params": [each for each in parameters if each.ndim > 1], "weight_decay": weight_decay},
            {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0}]
