"""Speed as ratios within one run: the spectrum against scikit-learn's PCA, extraction against two plain loops.

    make bench

Each pair is timed alternately, several times, and the ratio is that of the medians. Writes data/results/bench.csv.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from reptrace.hidden_states import last_token_states
from reptrace.records import provenance, write_atomically
from reptrace.spectra import eigenspectrum, geometry

OUT = Path(__file__).parents[1] / "data" / "results" / "bench.csv"


def main() -> None:
    rows = [*spectrum(), *extraction()]
    table = pd.DataFrame([{**row, "threads": torch.get_num_threads(), **provenance()} for row in rows])
    write_atomically(OUT, table.to_csv(index=False).encode())
    print(table[["what", "against", "seconds", "against_seconds", "ratio", "required", "note"]].to_string(index=False))


def compare(what: str, against: str, ours, theirs, required: float, repeats: int, note: str = "") -> dict:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for task, taken in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            task()
            taken.append(time.perf_counter() - started)
    seconds, against_seconds = (statistics.median(taken) for taken in times)
    return {"what": what, "against": against, "seconds": round(seconds, 3),
            "against_seconds": round(against_seconds, 3), "ratio": round(against_seconds / seconds, 2),
            "required": required, "repeats": repeats, "note": note}


def spectrum() -> list[dict]:
    """15,000 x 2048 float32 features with s_i ~ 1/i: eigenvalues, and geometry with its standard errors."""
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.standard_normal((2048, 2048)))
    features = (rng.standard_normal((15_000, 2048)) * np.arange(1, 2049) ** -0.5 @ directions).astype(np.float32)
    ours = eigenspectrum(features)
    pca = PCA(svd_solver="full").fit(features)
    theirs = pca.explained_variance_ * (len(features) - 1) / len(features)
    difference = np.abs(ours[:1000] / theirs[:1000] - 1).max()
    note = f"eigenvalues agree to {difference:.1e} relative over the top 1000"
    fit = lambda: PCA(svd_solver="full").fit(features)  # noqa: E731
    size = "15000 x 2048 float32"
    return [compare(f"eigenspectrum, {size}", "sklearn PCA(svd_solver='full')", lambda: eigenspectrum(features), fit,
                    10, 3, note),
            compare(f"geometry with standard errors, {size}", "eigenspectrum alone", lambda: geometry(features),
                    lambda: eigenspectrum(features), 0, 3)]


def extraction() -> list[dict]:
    """GPT-NeoX of pythia-70m's shape, random weights, 48 sequences of 40 to 512 tokens, float32."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(vocab_size=50_304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8,
                           intermediate_size=2048, max_position_embeddings=2048)
    model = GPTNeoXForCausalLM(config).eval()
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 50_000, length).tolist() for length in rng.integers(40, 513, 48)]
    tokens = sum(map(len, sequences))

    @torch.inference_mode()
    def single():
        return torch.stack([model(torch.tensor([s]), output_hidden_states=True).hidden_states[-1][0, -1]
                            for s in sequences])

    @torch.inference_mode()
    def single_without_head():
        return torch.stack([model.base_model(torch.tensor([s]), use_cache=False).last_hidden_state[0, -1]
                            for s in sequences])

    @torch.inference_mode()
    def padded():
        rows = []
        for start in range(0, len(sequences), 16):
            batch = sequences[start : start + 16]
            ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, s in enumerate(batch):
                ids[row, : len(s)], mask[row, : len(s)] = torch.tensor(s), 1
            hidden = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
            rows.append(hidden[torch.arange(len(batch)), mask.sum(1) - 1])
        return torch.cat(rows)

    def ours():
        return last_token_states(model, sequences)["final"]

    reference, rows = ours(), []
    for name, loop, required in (("loop over single sequences", single, 2.5),
                                 ("loop over single sequences, without LM head", single_without_head, 0),
                                 ("padded unsorted batches of 16, output_hidden_states", padded, 2.5)):
        worst = float((loop() - reference).abs().max() / reference.abs().max())
        row = compare("last_token_states, 70m shape", name, ours, loop, required, 3, f"states agree to {worst:.0e}")
        rows.append(row | {"note": f"{tokens / row['seconds']:,.0f} tokens a second; {row['note']}"})
    return rows


if __name__ == "__main__":
    main()
