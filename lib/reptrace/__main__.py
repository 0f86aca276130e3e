"""The command line: `python -m reptrace trace ...` and `python -m reptrace report ...`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPILOG = """examples:
  python -m reptrace trace --model EleutherAI/pythia-70m --revision step3000 --text probe.jsonl \\
      --max-length 512 --sequences 15000 --out traces
  python -m reptrace trace --model EleutherAI/pythia-70m --revision 'step*' --tokens-per-step 2097152 \\
      --text hub:HuggingFaceFW/fineweb:sample-10BT --sequences 15000 --out traces
  python -m reptrace trace --model my_run --tokenizer my_tokenizer --text docstrings --out traces
"""


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    main = argparse.ArgumentParser(prog="python -m reptrace",
                                   description="Trace the representation geometry of language models through training.",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = main.add_subparsers(dest="command", required=True, metavar="trace | report")
    trace = commands.add_parser(
        "trace", help="measure a checkpoint, or every checkpoint of a run",
        description="Measure spectrum, RankMe and alpha of a model's last-token states; records, a table (table.csv) "
                    "and, for a run, a picture (trajectory.svg) go to --out. What is done is not done again.")
    add = trace.add_argument
    add("--model", required=True, help="hub repository; folder with a model; or folder of checkpoint-N folders (all)")
    add("--revision", help='branch, tag or commit of the repository, or a pattern over its branches ("step*")')
    add("--cache-dir", help="hub cache to read offline (default: transformers' own, filled from the hub as needed)")
    add("--tokenizer", help="repository or folder of the tokenizer (default: the model's)")
    add("--text", required=True, help='.txt (blank lines between documents) or .jsonl (field "text"); docstrings; or '
                                      "hub:REPOSITORY[:CONFIG[:SPLIT[:FIELD]]]")
    add("--max-length", type=int, default=512, help="tokens a sequence at most (default 512)")
    add("--min-length", type=int, default=32, help="shorter documents are passed over (default 32)")
    add("--sequences", type=int, default=15_000, help="M (default 15000); keep it well above the model's width")
    add("--batch-size", type=int, default=16, help="sequences of full length a batch (default 16)")
    add("--layers", nargs="+", default=["final"], metavar="L",
        help='0 (embeddings) to the number of blocks, before any final norm; "final": after it (default); or "all"')
    add("--ranks", nargs=2, type=int, default=[12, 100], metavar=("FIRST", "LAST"),
        help="alpha's window of 1-based ranks (default 12 100), shortened where the spectrum is shorter")
    add("--tokens-per-step", type=int, help="training tokens an optimizer step took, for the axis of the picture")
    add("--device", help="default: the GPU if there is one")
    add("--dtype", choices=["float32", "bfloat16", "float64"], help="default: bfloat16 on a GPU, float32 on the CPU")
    add("--seed", type=int, default=0, help="which documents are drawn (default 0)")
    add("--out", required=True, type=Path, help="folder for the records")
    report = commands.add_parser("report", help="train the suite, run the notebooks, build the book (make report)",
                                 description="Make the report; what is done already is not done again.")
    report.add_argument("--params", type=Path, default=Path("notebooks/params/tiny.yaml"),
                        help="parameters file (default notebooks/params/tiny.yaml)")
    main.epilog = f"{trace.format_help()}\n{report.format_help()}\n{EPILOG}"
    return main


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors that a user can mend are one line on standard error, and code 1."""
    options = parser().parse_args(arguments)
    try:
        return _trace(options) if options.command == "trace" else _report(options)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"reptrace: {message}", file=sys.stderr)
        return 1


def _report(options) -> int:
    from reptrace.report import make_report

    if not options.params.is_file():
        raise FileNotFoundError(f"there is no parameters file {str(options.params)!r}: run in the project's folder, or "
                                "name one with --params.")
    print(f"report: {make_report(options.params)}")
    return 0


def _trace(options) -> int:
    from reptrace import corpora, suites, sweep
    from reptrace.hidden_states import load_tokenizer
    from reptrace.records import Store

    checkpoints = suites.checkpoints(options.model, options.revision, options.cache_dir, options.tokens_per_step)
    last = checkpoints[-1]
    tokenizer = (load_tokenizer(options.tokenizer) if options.tokenizer
                 else load_tokenizer(last.model, last.revision, last.cache_dir))
    store = Store(options.out / "records")
    corpus = corpora.open_text(options.text, 4 * options.sequences, cache=options.out / "corpora")
    probe = corpora.probe(corpus, tokenizer, options.sequences, options.max_length,
                          min(options.min_length, options.max_length), options.seed)
    layers = "all" if options.layers == ["all"] else [int(name) if name.isdigit() else name for name in options.layers]
    table = sweep.trace(checkpoints, probe, store, layers, tuple(options.ranks), options.batch_size,
                        device=options.device, dtype=options.dtype)
    for row in table.itertuples():
        print(_summary(row))
    _write_out(table, options.out)
    return int((table.status == "failed").any())


def _summary(row) -> str:
    name = f"{row.model}@{row.revision}" if row.revision else row.model
    if row.status == "failed":
        return f"{name}: failed: {row.reason}"
    window = f"ranks {row.alpha_first_rank:.0f}..{row.alpha_last_rank:.0f}, " if row.alpha == row.alpha else ""
    return (f"{name} layer {row.layer}: RankMe {row.rankme:.2f} +- {row.rankme_stderr:.2f} (covariance eigenvalues, "
            f"centred), alpha {row.alpha:.3f} +- {row.alpha_stderr:.3f} ({window}R2 {row.alpha_r2:.3f}), "
            f"M = {row.sequences}, d = {row.width:.0f}")


def _write_out(table, folder: Path) -> None:
    """The table beside the records and, where there are steps to draw along, the trajectory of RankMe and alpha."""
    from reptrace.records import write_atomically

    plain = table.drop(columns="eigenvalues", errors="ignore")
    write_atomically(folder / "table.csv", plain.to_csv(index=False).encode())
    axis = next((name for name in ("tokens", "step") if table[name].notna().all()), None)
    if axis is None or "rankme" not in table or table[axis].nunique() < 3:
        return
    from reptrace import figures
    from reptrace.phases import find_phases

    phases = {}
    for layer, rows in table[table.status == "measured"].groupby("layer", sort=False):
        enough = len(rows) >= 3 and table.layer.nunique() == 1 and table[axis].is_unique
        phases[layer] = find_phases(table[axis], table.rankme, table.rankme_stderr) if enough else None
    figures.save(figures.run_picture(table, phases, axis), folder / "trajectory.svg")


if __name__ == "__main__":
    sys.exit(main())
