"""States of the checkpoints that others are compared with: kept on the disk within a budget, made where missing.

A file holds one checkpoint's states of one probe, under a hash of all that they depend on; those not used for longest
are removed where new ones would be beyond the budget. Each names the probe that it was made of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from reptrace.checkpoints.downloads import weights_cache
from reptrace.checkpoints.listing import Checkpoint
from reptrace.records.store import name_of, write_atomically
from reptrace.sweeps.jobs import Opened, fetched
from reptrace.sweeps.located import Located, identity_of, open_at

BUDGET = 4 * 2**30  # bytes a folder: a width of 2048 and 15,000 sequences take 123 MB a layer
FOLDER = ".states"


class ComparisonError(RuntimeError):
    """A checkpoint that another one is compared with cannot be measured."""


class Kept:
    """States in a folder, by what they depend on.

    Parameters
    ----------
    folder : Path; made when the first are kept
    budget : int, default BUDGET; bytes
    """

    def __init__(self, folder: Path, budget: int = BUDGET):
        self.folder, self.budget = Path(folder), budget

    def path(self, identity: Mapping) -> Path:
        return self.folder / f"{name_of(identity)}.safetensors"

    def get(self, identity: Mapping) -> dict | None:
        """Layer, as a string -> states, shape (M, d); None where there are none that can be read.

        Raises
        ------
        ValueError
            The file is of another probe: rows would be compared with those of other sequences.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path(identity)
        try:
            with safe_open(path, "pt") as file:
                came = json.loads(file.metadata()["identity"])
                if came["probe"] != identity["probe"]:
                    raise ValueError(f"a comparison takes the same sequences of both checkpoints: expected states of "
                                     f"probe {identity['probe']}, and {str(path)!r} holds those of probe "
                                     f"{came['probe']}. Delete it: they are made anew.")
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except OSError:
            return None
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError):  # damaged: makes room for new ones
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            path.touch()  # used last
        return found if came == identity else None

    def put(self, identity: Mapping, states: Mapping) -> None:
        """Keep them if the budget and the disk allow it: nothing is lost if not."""
        from safetensors.torch import save

        size = sum(each.nbytes for each in states.values())
        if size > self.budget or self.path(identity).exists():
            return
        with suppress(OSError):
            self._make_room(size)
            content = save({str(layer): each.contiguous() for layer, each in states.items()},
                           {"identity": json.dumps(identity)})
            write_atomically(self.path(identity), content)

    def _make_room(self, size: int) -> None:
        by_use = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self.folder.glob("*.safetensors"))
        total = sum(each for _, each, _ in by_use)
        for _, each, path in by_use:
            if total + size <= self.budget:
                return
            path.unlink(missing_ok=True)
            total -= each


def kept_of(records: Path | None) -> Kept:
    """Those of a store's folder; where a worker doesn't see that, those in reptrace's own cache."""
    return Kept((records if records and records.is_dir() else weights_cache()) / FOLDER)


def keep(opened: Opened, part, states: Mapping) -> None:
    """A job's own states: its checkpoint is the previous one of the next."""
    kept_of(opened.job.records).put(_identity(opened, part, opened.job.checkpoint, opened.job.at), states)


def states_of_reference(name: str, opened: Opened, part, progress: bool) -> Mapping | None:
    """What a part compares with, layer, as a string -> states; None where there is no such checkpoint, and a part's own
    states are told by an empty mapping.

    Parameters
    ----------
    name : str, one of REFERENCES
    """
    job = opened.job
    reference = job.references.get(name)
    if reference is None:
        return None
    identity = _identity(opened, part, *reference)
    if identity == _identity(opened, part, job.checkpoint, job.at):
        return {}
    return opened.once(("states", json.dumps(identity)), lambda: _named(opened, part, *reference, identity, progress))


def _named(opened: Opened, part, point: Checkpoint, *rest) -> Mapping:
    """As `_states`; an error says that it is about another checkpoint than the one whose record it stands in."""
    try:
        return _states(opened, part, point, *rest)
    except OSError:  # of the disk or a file, which it names
        raise
    except Exception as error:
        raise ComparisonError(f"{point.label}, which this one is compared with: {type(error).__name__}: {error}"
                              ) from error


def _states(opened: Opened, part, point: Checkpoint, at: Located, identity: Mapping, progress: bool) -> Mapping:
    """Kept ones, or made now.

    By the downloads that fetch the job's own weights: others would wait for ever where the two are one, or this one is
    on its way as the next.
    """
    from reptrace.models.hidden_states import extract

    job, kept = opened.job, kept_of(opened.job.records)
    found = kept.get(identity)
    if found is None:
        with ExitStack() as held:
            model = open_at(point, at, job.opening, fetched(at, job.at, opened.downloads, held))
            made = extract(model, part.probe.sequences, part.settings.layers, part.settings.batch_size, progress)
        found = {str(layer): each for layer, each in made.features.items()}
        kept.put(identity, found)
    return found


def _identity(opened: Opened, part, point: Checkpoint, at: Located) -> dict:
    """All that a checkpoint's states depend on, as JSON would hold it."""
    opening, settings = opened.job.opening, part.settings.identity
    return json.loads(json.dumps({**identity_of(point, at, opening), "probe": part.probe.fingerprint,
                                  "layers": settings["layers"], "batch_size": settings["batch_size"],
                                  "device": opening.device, "dtype": opening.dtype}))
