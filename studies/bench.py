"""Speed, as ratios within one run and as shares of what the processor can do; memory beside it.

    make bench
    .venv/bin/python studies/bench.py gpu
    .venv/bin/python studies/bench.py spectrum intervals training

The spectrum is compared with scikit-learn's PCA and the bare calls, the extraction of hidden states with two plain
loops, on models of random weights; the infinity-gram model with its authors' engine; the training loop with
transformers' Trainer; descents of the toy model, many at once, with one after the other. What is compared runs in turn,
several times, and medians are taken. Writes data/results/bench.csv, and bench_gpu.csv where there is a GPU, and
README's tables from them; with "cpu" or "gpu", the one alone; with "spectrum", "intervals" or "training", the rows
of bench.csv about it, and the others stay.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import bench_tables
import numpy as np
import pandas as pd
import torch
from bench_infgram import default_tokens
from bench_infgram import rows as infinity_gram
from bench_training import rows as training
from peak import matmul_peak, wait
from torch import nn

from reptrace.measures.spectra import alpha_req, eigenspectrum, geometry, rankme
from reptrace.models.hidden_states import extract
from reptrace.records.store import provenance, write_atomically
from reptrace.theory.descent import descend
from reptrace.theory.starts import start

RESULTS = Path(__file__).parents[1] / "data" / "results"
COLUMNS = ("what", "against", "seconds", "against_seconds", "ratio", "required", "required_seconds",
           "tokens_per_second", "peak_tflops", "peak_share", "required_peak_share", "memory_gb", "against_memory_gb",
           "token_budget", "repeats", "device", "note")
REPEATS, SPECTRUM_REPEATS = 3, 5

# Width, blocks and heads of three models of Pythia, and of the default suite's largest.
SHAPES = {"default": (64, 2, 2), "70m": (512, 6, 8), "1b": (2048, 16, 8), "6.9b": (4096, 32, 32)}
SINGLE = "loop over single sequences"
HEADLESS = "loop over single sequences, head replaced by nn.Identity"
PADDED = "padded unsorted batches of 16, output_hidden_states"
WHOLE = "toy.descend, 1024 seeds, 10000 steps"


@dataclass(frozen=True)
class Case:
    """Sequences through a model; `required` is the ratio that must be reached against each loop."""

    shape: str
    device: str
    dtype: torch.dtype
    sequences: int
    lengths: tuple[int, int]
    batch_size: int | str
    required: Mapping[str, float] = field(default_factory=dict)
    required_share: float | None = None

    @property
    def name(self) -> str:
        shortest, longest = self.lengths
        tokens = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
        return f"last_token_states, {self.shape} shape, {self.sequences} sequences of {tokens} tokens"


CASES = [
    Case("70m", "cpu", torch.float32, 48, (40, 512), 16, {SINGLE: 2.5, HEADLESS: 0, PADDED: 2.5}),
]
GPU_CASES = [
    Case(shape, "cuda", torch.bfloat16, 512, lengths, "auto", {HEADLESS: 5, PADDED: 2}, 0.5)
    for shape in ("1b", "6.9b") for lengths in ((64, 512), (512, 512))
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=["cpu", "gpu", *PARTS], metavar=" | ".join(["cpu", "gpu", *PARTS]),
                        default=["cpu", "gpu"] if torch.cuda.is_available() else ["cpu"])
    kinds = parser.parse_args().kinds
    if "cpu" in kinds:
        rows = spectrum() + intervals() + [row for case in CASES for row in extraction(case)]
        rows += [{"device": "cpu", **row} for row in infinity_gram(default_tokens())]
        write("bench", table_of(rows + lean_training() + toy_model()))
    else:
        for part in (PARTS[name] for name in PARTS if name in kinds):
            new, old = table_of(part()), pd.read_csv(RESULTS / "bench.csv")
            write("bench", pd.concat([new, old[~old.what.isin(new.what)]]))
    if "gpu" in kinds:
        rows = gpu_spectrum() + [row for case in GPU_CASES for row in extraction(case)]
        write("bench_gpu", table_of(rows + gpu_toy_model()))
    bench_tables.rewrite()


def table_of(rows: list[dict]) -> pd.DataFrame:
    table = pd.DataFrame([{"threads": torch.get_num_threads(), **row, **provenance()} for row in rows])
    return table[[*COLUMNS, *table.columns.difference(COLUMNS, sort=False)]]


def write(name: str, table: pd.DataFrame) -> None:
    write_atomically(RESULTS / f"{name}.csv", table.to_csv(index=False).encode())
    shown = ["what", "against", "seconds", "ratio", "required", "tokens_per_second", "peak_share", "memory_gb", "note"]
    print(table[shown].to_string(index=False, na_rep=""))


def medians(tasks: Mapping[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each task; they run in turn, so that whatever slows the machine slows all of them."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            wait()
            started = time.perf_counter()
            task()
            wait()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def row(what: str, against: str = "", seconds: float | None = None, against_seconds: float | None = None,
        **more) -> dict:
    ratio = against_seconds / seconds if seconds and against_seconds else None
    facts = {"what": what, "against": against, "seconds": seconds, "against_seconds": against_seconds, "ratio": ratio,
             "repeats": REPEATS if seconds else None, **more}
    return dict.fromkeys(COLUMNS) | {
        key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in facts.items()}


def gpu_name() -> str:
    return torch.cuda.get_device_name()


def decaying(samples: int, width: int, device: str = "cpu") -> torch.Tensor:
    """Features in float32 whose covariance has eigenvalues s_i ~ 1/i, in random directions."""
    generator = torch.Generator(device).manual_seed(0)
    scale = torch.arange(1, width + 1, device=device) ** -0.5
    directions, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, device=device))
    return torch.randn(samples, width, generator=generator, device=device) * scale @ directions


def spectrum() -> list[dict]:
    """Eigenvalues of 15,000 x 2048 on the CPU against PCA and the bare calls, and what standard errors cost."""
    from sklearn.decomposition import PCA

    features = decaying(15_000, 2048).numpy()

    def bare():
        centred = features - features.mean(0)
        return np.linalg.eigvalsh(centred.T @ centred / np.float32(len(features)))[::-1]

    def pca(solver: str):
        fitted = PCA(svd_solver=solver).fit(features)
        return fitted.explained_variance_ * (len(features) - 1) / len(features)

    theirs = {"sklearn PCA(svd_solver='covariance_eigh')": (partial(pca, "covariance_eigh"), 1.5),
              "numpy: centred product and eigvalsh in float32": (bare, 0.67),
              "sklearn PCA(svd_solver='full')": (partial(pca, "full"), 0)}
    top = eigenspectrum(features)[:1000]
    apart = {name: np.abs(task()[:1000] / top - 1).max() for name, (task, _) in theirs.items()}
    seconds = medians({"ours": lambda: eigenspectrum(features), "geometry": lambda: geometry(features),
                       **{name: task for name, (task, _) in theirs.items()}}, SPECTRUM_REPEATS)
    size, facts = "15000 x 2048 float32", {"device": "cpu", "repeats": SPECTRUM_REPEATS}
    return [*(row(f"eigenspectrum, {size}", name, seconds["ours"], seconds[name], required=required, **facts,
                  note=f"eigenvalues agree to {apart[name]:.1e} relative over the top 1000")
              for name, (_, required) in theirs.items()),
            row(f"geometry with standard errors, {size}", "eigenspectrum alone", seconds["geometry"], seconds["ours"],
                required=0.5, **facts)]


def intervals() -> list[dict]:
    """A checkpoint of the default suite's largest width, forward pass included, with standard errors and without."""
    case = Case("default", "cpu", torch.float32, 4096, (32, 64), 128)
    model, rng = random_model(case), np.random.default_rng(0)
    sequences = [rng.integers(0, 50_000, n).tolist() for n in rng.integers(32, 65, case.sequences)]
    features, ranks = extract(model, sequences, batch_size=case.batch_size).features["final"], (4, 31)

    def plain():
        found = eigenspectrum(features)
        return rankme(found), alpha_req(found, ranks)

    seconds = medians({"forward": lambda: extract(model, sequences, batch_size=case.batch_size), "plain": plain,
                       "geometry": lambda: geometry(features, ranks)}, SPECTRUM_REPEATS)
    return [row("a checkpoint with intervals, width 64, 2 blocks, 4096 sequences of 32 to 64 tokens",
                "without: forward pass, spectrum, RankMe and alpha alone", seconds["forward"] + seconds["geometry"],
                seconds["forward"] + seconds["plain"], required=0.8, device="cpu", repeats=SPECTRUM_REPEATS,
                note=f"forward pass {seconds['forward']:.2f} s, with intervals {1e3 * seconds['geometry']:.1f} ms, "
                     f"without {1e3 * seconds['plain']:.1f} ms")]


def lean_training() -> list[dict]:
    return [row(device="cpu", **each) for each in training(np.fromfile(default_tokens(), np.uint16))]


def gpu_spectrum() -> list[dict]:
    """Covariance and eigenvalues of 15,000 x 4096 features that are on the GPU, against the bare calls in float32."""
    size, facts = "15000 x 4096 float32", {"device": gpu_name()}
    features = decaying(15_000, 4096, "cuda")

    def bare():
        centred = features - features.mean(0)
        return torch.linalg.eigvalsh(centred.T @ centred / len(features))

    tasks = {"ours": lambda: eigenspectrum(features), "geometry": lambda: geometry(features), "bare": bare}
    taken = {name: memory("cuda", task)[1] for name, task in tasks.items()}  # and a first call, which takes longer
    seconds = medians(tasks)
    difference = np.abs(bare().flip(0).double().cpu().numpy()[:1000] / eigenspectrum(features)[:1000] - 1).max()
    return [row(f"eigenspectrum, {size}", "torch: centred product and eigvalsh in float32", seconds["ours"],
                seconds["bare"], required=0, required_seconds=2, memory_gb=taken["ours"],
                against_memory_gb=taken["bare"], **facts,
                note=f"theirs are off by up to {difference:.0e} relative over the top 1000"),
            row(f"geometry with standard errors, {size}", "eigenspectrum alone", seconds["geometry"], seconds["ours"],
                required=0, memory_gb=taken["geometry"], **facts)]


def descent(seeds, steps: int, device: str = "cpu"):
    """Of b = 15, d = 2, V = 4."""
    return descend(start((7, 4, 2, 2), 2, seeds=seeds), rate=0.02, steps=steps, record=2, device=device)


def toy_model() -> list[dict]:
    """Many seeds at once against one after the other, and the whole of a study."""
    seconds = medians({"ours": lambda: descent(256, 200),
                       "loop": lambda: [descent([seed], 200) for seed in range(256)]})
    found, single = descent(256, 200).loss, descent([255], 200).loss
    return [row("toy.descend, 256 seeds, 200 steps", "loop over single seeds", seconds["ours"], seconds["loop"],
                required=10, device="cpu", note=f"losses agree to {np.abs(found[-1] / single[0] - 1).max():.0e}"),
            row(WHOLE, seconds=medians({WHOLE: lambda: descent(1024, 10_000)}, 1)[WHOLE], device="cpu",
                repeats=1, required_seconds=60)]


def gpu_toy_model() -> list[dict]:
    return [row(WHOLE, seconds=medians({WHOLE: lambda: descent(1024, 10_000, "cuda")})[WHOLE], device=gpu_name(),
                required_seconds=60)]


def extraction(case: Case) -> list[dict]:
    """A row for each loop that `last_token_states` is compared with."""
    model, rng = random_model(case), np.random.default_rng(0)
    shortest, longest = case.lengths
    sequences = [rng.integers(0, 50_000, n).tolist() for n in rng.integers(shortest, longest + 1, case.sequences)]

    def ours():
        return extract(model, sequences, batch_size=case.batch_size)

    tasks = {name: loop for name, loop in loops(model, sequences).items() if name in case.required}
    found, taken = memory(case.device, ours)
    theirs = {name: memory(case.device, loop) for name, loop in tasks.items()}
    peak = matmul_peak(case.device, case.dtype)
    seconds = medians({"ours": ours, **tasks})
    common = {"tokens_per_second": round(sum(map(len, sequences)) / seconds["ours"]), "peak_tflops": peak / 1e12,
              "peak_share": operations(model, sequences) / seconds["ours"] / peak, "memory_gb": taken,
              "required_peak_share": case.required_share, "token_budget": found.token_budget,
              "device": gpu_name() if case.device == "cuda" else "cpu"}
    precision = str(case.dtype).removeprefix("torch.")
    return [row(case.name, name, seconds["ours"], seconds[name], required=case.required[name], **common,
                against_memory_gb=their_memory,
                note=f"states agree to {worst(states, found.features['final']):.0e}; peak: {precision} matmul")
            for name, (states, their_memory) in theirs.items()]


def random_model(case: Case) -> nn.Module:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    width, blocks, heads = SHAPES[case.shape]
    config = GPTNeoXConfig(vocab_size=50_304, hidden_size=width, num_hidden_layers=blocks, num_attention_heads=heads,
                           intermediate_size=4 * width, max_position_embeddings=2048)
    torch.manual_seed(0)
    with torch.device(case.device):
        return AutoModelForCausalLM.from_config(config, dtype=case.dtype).eval()


def loops(model: nn.Module, sequences: list[list[int]]) -> dict[str, Callable[[], torch.Tensor]]:
    """What one would write first: states of the last tokens, shape (M, d)."""
    device = model.device

    @torch.inference_mode()
    def single():
        return torch.stack([model(torch.tensor([s], device=device), output_hidden_states=True).hidden_states[-1][0, -1]
                            for s in sequences])

    @torch.inference_mode()
    def headless():
        head = model.get_output_embeddings()
        model.set_output_embeddings(nn.Identity())
        try:
            return torch.stack([model(torch.tensor([s], device=device)).logits[0, -1].clone() for s in sequences])
        finally:
            model.set_output_embeddings(head)

    @torch.inference_mode()
    def padded():
        rows = []
        for first in range(0, len(sequences), 16):
            batch = sequences[first : first + 16]
            ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for number, s in enumerate(batch):
                ids[number, : len(s)], mask[number, : len(s)] = torch.tensor(s), 1
            ids, mask = ids.to(device), mask.to(device)
            hidden = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
            rows.append(hidden[torch.arange(len(batch), device=device), mask.sum(1) - 1])
        return torch.cat(rows)

    return {SINGLE: single, HEADLESS: headless, PADDED: padded}


def worst(states: torch.Tensor, reference: torch.Tensor) -> float:
    return float((states.cpu().float() - reference).abs().max() / reference.abs().max())


def operations(model: nn.Module, sequences: list[list[int]]) -> float:
    """Floating-point operations of the decoder on these sequences, without padding.

    Two for each parameter but the embeddings and each token; and for the causal attention of n tokens, in every block,
    n^2 / 2 pairs, with a product of width d for the score and one for the value: 2 n^2 d. The last block is counted in
    full, though its MLP is run on one token a sequence: 2 to 11 % of the whole that were not done (32 to 6 blocks).
    """
    decoder = model.base_model
    parameters = sum(p.numel() for p in decoder.parameters()) - decoder.get_input_embeddings().weight.numel()
    lengths = np.array([len(sequence) for sequence in sequences], float)
    attention = 2 * decoder.config.hidden_size * decoder.config.num_hidden_layers * (lengths**2).sum()
    return float(2 * parameters * lengths.sum() + attention)


def memory(device: str, task: Callable[[], object]) -> tuple[object, float | None]:
    """A task's result, and the most memory it took at once beyond what there was already (the weights, say), in GB.

    On a GPU that of tensors; on the CPU that of the process, which Linux alone tells: None elsewhere.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return task(), (torch.cuda.max_memory_allocated() - before) / 1e9
    try:
        ctypes.CDLL(None).malloc_trim(0)  # hand back what earlier tasks left free, or it would be used unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
    except (OSError, AttributeError):
        return task(), None
    return task(), (resident("VmHWM") - before) / 1e9


def resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


PARTS = {"spectrum": spectrum, "intervals": intervals, "training": lean_training}  # what can be asked for by itself

if __name__ == "__main__":
    main()
