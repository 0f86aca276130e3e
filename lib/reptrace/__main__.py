"""The command line: `python -m reptrace suites | sweep | trace | tasks | report | book | verify`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from numbers import Real
from pathlib import Path

EPILOG = """examples:
  python -m reptrace suites
  python -m reptrace sweep pythia-1b olmo2-1b --text hub:HuggingFaceFW/fineweb:sample-10BT --checkpoints 40 --dry-run
  python -m reptrace sweep pythia-1b olmo2-1b --text hub:HuggingFaceFW/fineweb:sample-10BT --checkpoints 40 --out traces
  python -m reptrace trace --model EleutherAI/pythia-70m --revision step3000 --text probe.jsonl \\
      --max-length 512 --sequences 15000 --out traces
  python -m reptrace trace --model EleutherAI/pythia-70m --revision 'step*' --tokens-per-step 2097152 \\
      --text hub:HuggingFaceFW/fineweb:sample-10BT --sequences 15000 --out traces
  python -m reptrace trace --model my_run --tokenizer my_tokenizer --text docstrings --out traces
  python -m reptrace tasks pythia-1b --tasks sciq lambada_openai --checkpoints 20 --out traces
  python -m reptrace tasks --model EleutherAI/pythia-70m --revision 'step*' --tasks sciq lambada_openai --out traces
"""


OF_SUITES = ("suites", "checkpoints", "stages", "dry_run")  # options of `tasks` that only these have a use for
UNSEEN = "not yet seen"
OF_UNSEEN = ("what public text says; the hub's own listing has not been compared with it. Where the hub can be asked, "
             "its branches and folders count.")
OF_A_MODEL = ("revision", "cache_dir", "tokens_per_step")
TEXT = ("a file, .txt or .md (blank lines between documents), .jsonl, .json, .csv, .tsv or .parquet, each also with "
        ".gz or .zst; docstrings, code, readmes or catalogues; or hub:REPOSITORY[:CONFIG[:SPLIT[:FIELD]]], also for a "
        "folder of data files")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    main = argparse.ArgumentParser(prog="python -m reptrace",
                                   description="Trace the representation geometry of language models through training.",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("suites", help="list the registered suites",
                                  description="List the suites that can be swept by name, and what they consist of.")
    listing.add_argument("--suites", nargs="+", default=[], metavar="FILE", help="YAML files with suites of your own")
    sweep = commands.add_parser(
        "sweep", help="measure registered suites",
        description="Measure checkpoints of registered suites on one text or several, and on tasks. Weights are "
                    "fetched ahead, checked and deleted once measured. Records, a table (table.csv; with --tasks, "
                    "tasks.csv too) and a picture a suite go to --out. What is done is not done again; several calls "
                    "may share one --out.")
    add = sweep.add_argument
    add("names", nargs="+", metavar="SUITE", help="names, as `python -m reptrace suites` lists them")
    add("--text", required=True, nargs="+", help=TEXT)
    add("--refine", type=int, default=0, metavar="N", help="so many more of each suite, where its RankMe bends")
    add("--tasks", nargs="+", default=[], metavar="TASK",
        help="names, as lm-eval knows them, or loss: asked too (16 requests a batch, or --batch-size)")
    add("--limit", type=int, metavar="N", help="only the first so many items of each task (default: all)")
    _suites_options(add)
    _measuring(add)
    trace = commands.add_parser(
        "trace", help="measure a checkpoint, or every checkpoint of a run",
        description="Measure spectrum, RankMe and alpha of a model's last-token states; records, a table (table.csv) "
                    "and, for a run, a picture (trajectory.svg) go to --out. What is done is not done again.")
    add = trace.add_argument
    _model(add, required=True)
    add("--text", required=True, help=TEXT)
    _planning(add)
    _measuring(add)
    tasks = commands.add_parser(
        "tasks", help="run lm-eval's tasks on registered suites, on a checkpoint, or on every checkpoint of a run",
        description="Run lm-eval's tasks; records and a table (tasks.csv) go to --out. What is done is not done again; "
                    "several calls may share one --out.")
    add = tasks.add_argument
    add("names", nargs="*", metavar="SUITE", help="names, as `python -m reptrace suites` lists them; or --model")
    _model(add, required=False)
    add("--tasks", required=True, nargs="+", metavar="TASK", help="names, as lm-eval knows them")
    add("--limit", type=int, metavar="N", help="only the first so many items of each (default: all)")
    add("--batch-size", type=int, default=16, help="requests a batch (default 16)")
    _suites_options(add)
    _placing(add)
    report = commands.add_parser("report", help="train the suite, run the notebooks, build the book (make report)",
                                 description="Make the report; what is done already is not done again.")
    report.add_argument("--params", type=Path, default=Path("notebooks/params/tiny.yaml"),
                        help="parameters file (default notebooks/params/tiny.yaml)")
    book = commands.add_parser(
        "book", help="build the same pages from tracked records, with no training (make book)",
        description="Build the pages of the default suite from data/archive: nothing is trained, no model is opened.")
    verify = commands.add_parser(
        "verify", help="train runs of the default suite anew and compare them with data/archive (make verify)",
        description="Train the first run of the default suite anew, measure it, and compare with data/archive; exits "
                    "with 1 where a number is out of its tolerance. Interrupted, the next call goes on.")
    verify.add_argument("--every-run", action="store_true", help="all runs of the suite, not the first one alone")
    helps = "\n".join(command.format_help() for command in (listing, sweep, trace, tasks, report, book, verify))
    main.epilog = f"{helps}\n{EPILOG}"
    return main


def _suites_options(add) -> None:
    """Options of every command that sweeps registered suites."""
    add("--suites", nargs="+", default=[], metavar="FILE", help="YAML files with suites of your own")
    add("--checkpoints", type=int, metavar="N", help="of each suite, spread on a log scale (default: all)")
    add("--stages", nargs="+", default=[], metavar="STAGE", help='only these ("pretraining", "RLVR"; default: all)')
    add("--faulty", action="store_true", help="measure checkpoints with a known fault too")
    _planning(add)
    add("--workers", type=int, default=1, help="checkpoints side by side on this machine, one a GPU (default 1)")
    add("--scheduler", metavar="ADDRESS",
        help="of a Dask cluster whose workers are to measure (tcp://HOST:PORT, or the path of a scheduler file)")
    add("--disk", type=float, metavar="GB", help="of fetched weights at once, a worker (default: two checkpoints)")
    add("--keep", action="store_true", help="keep the weights once they were measured")


def _planning(add) -> None:
    add("--dry-run", action="store_true", help="print what would be done, with bytes, operations and hours; do nothing")
    add("--gpu", default="H100", help="that the hours of a dry run are for (default H100)")


def _model(add, required: bool) -> None:
    add("--model", required=required,
        help="hub repository; folder with a model; GGUF file; or folder of checkpoint-N folders (all)")
    add("--revision", help='branch, tag or commit of the repository, or a pattern over its branches ("step*"); '
        'behind a colon a folder in it, or a pattern over its folders ("main:step-*")')
    add("--cache-dir", help="hub cache to read offline (default: transformers' own, filled from the hub as needed)")
    add("--tokenizer", help="repository or folder of the tokenizer (default: the model's)")
    add("--tokens-per-step", type=int, help="training tokens an optimizer step took, for the axis of the picture")


def _measuring(add) -> None:
    """Options of every command that measures."""
    add("--field", default="text", help="which field or column holds the text (default text)")
    add("--max-length", type=int, default=512, help="tokens a sequence at most (default 512)")
    add("--min-length", type=int, default=32, help="shorter documents are passed over (default 32)")
    add("--sequences", type=int, default=15_000, help="M (default 15000); keep it well above the model's width")
    add("--batch-size", type=_batch_size, default="auto",
        help="sequences of full length a batch (default auto: as memory allows)")
    add("--layers", nargs="+", default=["final"], metavar="L",
        help='0 (embeddings) to the number of blocks, before any final norm; "final": after it (default); or "all"')
    add("--ranks", nargs=2, type=int, default=[12, 100], metavar=("FIRST", "LAST"),
        help="alpha's window of 1-based ranks (default 12 100), shortened where the spectrum is shorter")
    add("--measures", nargs="+", default=["rankme", "alpha"], metavar="NAME",
        help="what is read off the states besides the spectrum: rankme alpha (default) anisotropy cka readout weights "
             "spikes prompt_entropy curvature sentence_erank intrinsic_dimension; what other calls with this --out "
             "measured stands in the same table")
    add("--seed", type=int, default=0, help="which documents are drawn (default 0)")
    _placing(add)


def _placing(add) -> None:
    """Options of every command that opens a model."""
    add("--device", help="default: the GPU if there is one; auto: a model spread over all GPUs")
    add("--dtype", choices=["float32", "bfloat16", "float64"], help="default: bfloat16 on a GPU, float32 on the CPU")
    add("--trust", nargs="+", default=[], metavar="NAME",
        help="repositories or folders whose own Python code may run; read it first (default: none)")
    add("--out", type=Path, help="folder for the records")


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors that a user can mend are one line on standard error, and code 1."""
    options = parser().parse_args(arguments)
    try:
        return {"suites": _suites, "sweep": _sweep, "trace": _trace, "tasks": _tasks,
                "report": _report, "book": _book, "verify": _verify}[options.command](options)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, MemoryError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"reptrace: {message}", file=sys.stderr)
        return 1


def _report(options) -> int:
    from reptrace.report.making import make_report

    if not options.params.is_file():
        raise FileNotFoundError(f"there is no parameters file {str(options.params)!r}: run in the project's folder, or "
                                "name one with --params.")
    print(f"report: {make_report(options.params)}")
    return 0


def _book(options) -> int:
    from reptrace.report.making import DEFAULT, make_book

    print(f"book: {make_book(DEFAULT)}")
    return 0


def _verify(options) -> int:
    from reptrace.report import verifying
    from reptrace.report.making import ARCHIVE, DEFAULT

    table = verifying.verify(DEFAULT, ARCHIVE, options.every_run)
    print(verifying.shown(table))
    return int(not table.within.all())


def _suites(options) -> int:
    from reptrace.checkpoints import suites

    known = suites.registered(*options.suites)
    wide = max(map(len, known))
    for name, suite in known.items():
        shape = suite.shape
        size = f"{shape['parameters'] / 1e6:,.0f} M weights, {shape['layers']} x {shape['width']}" if shape else ""
        count = f"{_count(suite):>18}  {UNSEEN if suite.unseen else '':{len(UNSEEN)}}"
        stages = ", ".join(dict.fromkeys(stage.repository + (" (gated)" if stage.gated else "")
                                         for stage in suite.stages))
        print(f"{name:{wide}}  {count}  {size:32}  {stages}{': ' + suite.about if suite.about else ''}")
    if any(suite.unseen for suite in known.values()):
        print(f"{UNSEEN}: {OF_UNSEEN}")
    return 0


def _count(suite) -> str:
    """How many checkpoints a suite has, as far as that is known without asking the hub."""
    from reptrace.checkpoints.hub import HubError

    try:
        count = f"{len(suite.checkpoints(ask=False)):,}"
    except HubError:
        return "steps: see the hub"
    return f"{count}, more: the hub" if suite.on_the_hub_alone else f"{count} checkpoints"


def _sweep(options) -> int:
    from reptrace.records.store import Store
    from reptrace.sweeps import sweep
    from reptrace.sweeps.evaluation import Asked

    probes = [_probe_spec(text, options) for text in options.text]
    if options.dry_run:
        return _dry_run(probes, options, _settings(options))
    if options.limit and not options.tasks:
        raise ValueError("--limit says how many items of tasks: name some with --tasks.")
    size = {} if options.batch_size == "auto" else {"batch_size": options.batch_size}
    asked = Asked(options.tasks, limit=options.limit, **size) if options.tasks else None
    geometry, tasks = _swept(probes, asked, options, options.refine, _settings(options))
    _print(geometry)
    for suite, rows in geometry.groupby("suite", sort=False):
        for number, (_, part) in enumerate(rows.groupby("probe_fingerprint", sort=False)):
            _draw(part, options.out / f"{suite}{f'-{number + 1}' if number else ''}.svg")
    geometry = sweep.with_others(geometry, Store(options.out / "records"))
    return max(_write_out(geometry, options.out), 0 if tasks is None else _show_tasks(tasks, options.out))


def _swept(probes, asked, options, refine: int = 0, settings=None):
    """What `measure_suites` finds for the suites that were named."""
    from reptrace.sweeps.measurement import Settings
    from reptrace.sweeps.sweep import SuiteSpec, measure_suites

    which = SuiteSpec(options.names, options.checkpoints, refine, options.suites, options.stages, options.faulty)
    out = _out(options)
    with _client(options.scheduler) if options.scheduler else nullcontext() as client:
        return measure_suites(which, probes, out, asked, settings or Settings(), _opening(options),
                              _means(options, client))


def _means(options, client):
    from reptrace.sweeps.dispatch import Means

    return Means(options.workers, client, options.disk and int(options.disk * 1e9), options.keep)


def _probe_spec(text: str, options):
    from reptrace.texts.corpora import ProbeSpec

    return ProbeSpec(text, options.sequences, options.max_length, min(options.min_length, options.max_length),
                     options.seed, options.field)


def _client(scheduler: str):
    from distributed import Client

    if "://" in scheduler:
        return Client(scheduler)
    if not Path(scheduler).is_file():
        raise FileNotFoundError(f"there is no scheduler file {scheduler!r}. A scheduler is tcp://HOST:PORT, or a file "
                                "that `dask scheduler --scheduler-file` wrote.")
    return Client(scheduler_file=scheduler)


def _dry_run(probes, options, settings=None) -> int:
    from reptrace.checkpoints import suites
    from reptrace.records.store import Store
    from reptrace.sweeps.plan import estimate

    chosen = [suites.suite(name, *options.suites).of_stages(options.stages) for name in options.names]
    refined = getattr(options, "refine", 0)
    table = estimate(chosen, probes, options.checkpoints, options.tasks, options.gpu, options.workers,
                     store=Store(options.out / "records") if options.out else None, faulty=options.faulty,
                     **({"measures": settings.measures, "layers": settings.layers} if settings else {}))
    print(table.to_string(index=False, float_format="{:,.1f}".format))
    print(_basis(options.workers, options.gpu)
          + (" What the tasks compute is not counted: it depends on their items." if options.tasks else "")
          + (f" Nor are up to {refined} more of each suite, by --refine." if refined else "")
          + (f" {UNSEEN}: {OF_UNSEEN}" if UNSEEN in set(table.names) else ""))
    for suite, names in zip(chosen, table.names, strict=True):
        if suite.on_the_hub_alone and names != "seen":
            print(f"Of {suite.name} the hub alone knows more checkpoints: these are not counted.")
    return 0


def _basis(workers: int, gpu: str) -> str:
    return (f"On {workers} {gpu} at 40 % of its peak, downloading 200 MB/s; gb_disk: fetched weights at once. "
            "Estimates: measure yours with make bench.")


def _trace_dry_run(checkpoints, options) -> int:
    """What `trace` would measure and what that takes, by the configuration of the last checkpoint."""
    from reptrace.records.store import Store
    from reptrace.sweeps.plan import by_measure, estimate, suite_of
    from reptrace.sweeps.tokenizers import configuration_of_run

    settings, probe = _settings(options), _probe_spec(options.text, options)
    suite = suite_of(options.model, configuration_of_run(checkpoints, options.max_length, options.trust))
    table = estimate(suite, [probe], gpu=options.gpu, store=Store(options.out / "records") if options.out else None,
                     measures=settings.measures, layers=settings.layers, points=checkpoints)
    print(table.drop(columns="names").rename(columns={"suite": "model", "published": "checkpoints"}).to_string(
        index=False, float_format="{:,.1f}".format, na_rep="not known"))
    left = int(table.chosen.item() - table.done.item())
    costs = by_measure(suite, probe, left, settings.measures, settings.layers)
    print(f"Of that the measures take, of {left} checkpoint{'' if left == 1 else 's'} still to measure:")
    print(costs.to_string(index=False, float_format="{:,.3g}".format, na_rep="not known"))
    unknown = {"parameters": "how many weights it has, and so what a forward pass takes",
               "width": "its width, and so what the measures take"}
    for what, words in unknown.items():
        if what not in suite.shape:
            print(f"Not known from the configuration of {options.model}: {words}.")
    print(_basis(1, options.gpu) + " Done are those that were measured for the same, on whatever text. The text is not "
          "read: whether it has so many sequences is not known.")
    return 0


def _trace(options) -> int:
    from reptrace.checkpoints import listing
    from reptrace.records.store import Store
    from reptrace.sweeps import sweep
    from reptrace.sweeps.dispatch import Means
    from reptrace.sweeps.tokenizers import tokenizer_of
    from reptrace.texts import corpora

    checkpoints = listing.checkpoints(options.model, options.revision, options.cache_dir, options.tokens_per_step)
    if options.dry_run:
        return _trace_dry_run(checkpoints, options)
    out, spec = _out(options), _probe_spec(options.text, options)
    tokenizer = _tokenizer(options) or tokenizer_of(checkpoints, options.max_length, options.trust)
    corpus = spec.corpus(out / "corpora")
    corpora.report_passed_over(corpus)
    (table,) = sweep.trace_groups([(checkpoints, spec.probe(corpus, tokenizer))], Store(out / "records"),
                                  _settings(options), _opening(options), Means())
    _print(table)
    for line in _draw(table, out / "trajectory.svg"):
        print(line)
    return _write_out(sweep.with_others(table, Store(out / "records")), out)


def _tasks(options) -> int:
    from reptrace.checkpoints import listing
    from reptrace.records.store import Store
    from reptrace.sweeps.evaluation import Asked, evaluate_checkpoints

    if bool(options.names) == (options.model is not None):
        raise ValueError("tasks are asked of suites by name, or of one --model: name one or the other.")
    _check_options_of(options, "suites by name" if options.model is not None else "a --model",
                      OF_SUITES if options.model is not None else OF_A_MODEL)
    if options.names and options.dry_run:
        return _dry_run([], options)
    out = _out(options)
    if options.names:
        asked = Asked(options.tasks, options.batch_size, options.limit, tokenizer=_tokenizer(options))
        return _show_tasks(_swept((), asked, options).tasks, out)
    checkpoints = listing.checkpoints(options.model, options.revision, options.cache_dir, options.tokens_per_step)
    with _client(options.scheduler) if options.scheduler else nullcontext() as client:
        table = evaluate_checkpoints(checkpoints, options.tasks, Store(out / "records"), options.batch_size,
                                     options.limit, tokenizer=_tokenizer(options), device=options.device,
                                     dtype=options.dtype, trust=options.trust, faulty=options.faulty,
                                     **vars(_means(options, client)))
    return _show_tasks(table, out)


def _check_options_of(options, what: str, names) -> None:
    """ValueError where one of these options was given: it would be passed over."""
    if given := [name for name in names if getattr(options, name)]:
        raise ValueError(f"--{given[0].replace('_', '-')} is for {what}: leave it out.")


def _show_tasks(table, out: Path) -> int:
    """Print and write what tasks found; 1 where there are failures."""
    from reptrace.records.store import write_atomically

    for row in table.itertuples():
        name = f"{row.model}@{row.revision}" if row.revision else row.model
        print(f"{name} {row.task} {row.metric}: {row.value:.4f} +- {row.stderr:.4f} ({row.samples:.0f} items)"
              if row.status == "measured" else f"{name} {row.task}: {row.status}: {row.reason}")
    write_atomically(out / "tasks.csv", table.drop(columns="items", errors="ignore").to_csv(index=False).encode())
    return int((table.status == "failed").any())


def _tokenizer(options):
    """The tokenizer that was named, or None."""
    from reptrace.models.loading import load_tokenizer
    from reptrace.support.arguments import is_trusted

    name = options.tokenizer
    return load_tokenizer(name, trust_remote_code=is_trusted(name, options.trust)) if name else None


def _settings(options):
    from reptrace.sweeps.measurement import Settings

    layers = "all" if options.layers == ["all"] else [int(name) if name.isdigit() else name for name in options.layers]
    return Settings(layers, options.ranks, options.batch_size, options.measures)


def _opening(options):
    from reptrace.sweeps.located import Opening

    return Opening(options.device, options.dtype, options.trust)


def _out(options) -> Path:
    if options.out is None:
        raise ValueError("--out FOLDER is needed: where the records go.")
    return options.out


def _print(table) -> None:
    for row in table.itertuples():
        print(_summary(row))


def _summary(row) -> str:
    name = f"{row.model}@{row.revision}" if row.revision else row.model
    if row.status != "measured":
        return f"{name}: {row.status}: {row.reason}"
    return (f"{name} layer {row.layer}: {''.join(_measured(row))}M = {row.sequences}, d = {row.width:.0f}{_stored(row)}"
            f"{_few(row)}")


def _measured(row) -> Iterator[str]:
    """What a row holds: RankMe and alpha with how they were read, of others what has an error; of a measure that gives
    no errors, all of its numbers."""
    from reptrace.measures.registry import DEFAULT, REGISTRY

    if row.rankme == row.rankme:
        yield f"RankMe {row.rankme:.2f} +- {row.rankme_stderr:.2f} (covariance eigenvalues, centred), "
    if hasattr(row, "alpha_first_rank"):  # it was asked for
        window = f"ranks {row.alpha_first_rank:.0f}..{row.alpha_last_rank:.0f}, " if row.alpha == row.alpha else ""
        yield f"alpha {row.alpha:.3f} +- {row.alpha_stderr:.3f} ({window}R2 {row.alpha_r2:.3f}), "
    for entry in REGISTRY.values():
        for name, stderr in entry.columns.items():
            value = getattr(row, name, math.nan)
            if name in DEFAULT or not isinstance(value, Real) or value != value:
                continue
            if stderr:
                yield f"{name} {value:.3g} +- {getattr(row, stderr):.2g}, "
            elif not any(entry.columns.values()):
                yield f"{name} {value:.3g}, "


def _stored(row) -> str:
    """How the weights of a GGUF file are quantized; nothing of other models."""
    stored = getattr(row, "quantization", None)
    return f", {stored}" if isinstance(stored, str) else ""


def _few(row) -> str:
    """A warning where a few sequences decide the number."""
    from reptrace.measures.spectra import dominated, few_in_words

    numbers = row.half_variance, row.largest_influence, row.sequences
    return f"; beware: {few_in_words(*numbers)}" if dominated(*numbers, row.rankme_stderr / row.rankme) else ""


def _write_out(table, folder: Path) -> int:
    """The table beside the records; 1 where it has failures."""
    from reptrace.records.store import write_atomically

    plain = table.drop(columns=["eigenvalues", "sentence_entropy_parts"], errors="ignore")  # lists
    write_atomically(folder / "table.csv", plain.to_csv(index=False).encode())
    return int((table.status == "failed").any())


def _draw(table, path: Path) -> list[str]:
    """Where there are steps to draw along, the trajectory of RankMe and alpha; a line to print on RankMe's phases. What
    has no step is named."""
    table = _without_gaps_of_some(table)
    axis = "tokens" if table.tokens.notna().equals(table.step.notna()) else "step"
    rows, others = table[table[axis].notna()].astype({axis: float}), table[table[axis].isna()]
    if len(rows) and len(others):
        names = ", ".join(dict.fromkeys(Path(name).name for name in others.model))
        print(f"without a step, so not in the picture: {names}", file=sys.stderr)
    if "rankme" not in table or rows[axis].nunique() < 3:
        return []
    from reptrace.measures.phases import find_phases
    from reptrace.report import figures

    phases = {}
    for layer, found in rows[rows.status == "measured"].groupby("layer", sort=False):
        enough = len(found) >= 3 and found.rankme.notna().all() and rows.layer.nunique() == 1 and rows[axis].is_unique
        phases[layer] = find_phases(rows[axis], rows.rankme, rows.rankme_stderr) if enough else None
    if rows.layer.nunique() == 1 and not rows[axis].is_unique:
        print(f"several checkpoints state the same {axis[:-1] if axis == 'tokens' else axis}: no phases are looked for",
              file=sys.stderr)
    if phases:
        figures.save(figures.run_picture(rows, phases, axis), path)
    return [f"phases (RankMe): {_in_words(found, axis)}" for found in phases.values() if found]


def _without_gaps_of_some(table):
    """Without what failed of a checkpoint or a layer of which the rest was measured."""
    places = table[["model", "revision", "layer"]].astype(object)
    places = list(places.where(places.notna(), "").itertuples(index=False, name=None))
    there = {place for place, status in zip(places, table.status, strict=True) if status == "measured"}
    there |= {(model, revision, "") for model, revision, _ in there}  # of no layer: known before the forward pass
    return table[[status != "failed" or place not in there for place, status in zip(places, table.status, strict=True)]]


def _in_words(phases, axis: str) -> str:
    """Sizes of the phases as ratios, the turns between them, how many wiggles there are and the largest."""
    words = []
    for name, turn in (("collapse", phases.collapse_end), ("expansion", phases.turn), ("compression", None)):
        change = getattr(phases, name)
        words.append(f"{name} x {change.ratio:.3g}" if change else f"{name} not seen")
        if turn:
            at = f"{turn.tokens:,.0f} tokens" if axis == "tokens" else f"step {turn.tokens:,.0f}"
            words[-1] += f" to {turn.value:.2f} at {at}"
    many, largest = len(phases.wiggles), phases.largest_wiggle
    return (f"{', '.join(words)}; {many} wiggle{'' if many == 1 else 's'}"
            + (f", the largest x {largest.ratio:.3g}" if largest else ""))


if __name__ == "__main__":
    sys.exit(main())
