"""Suites by name, and the checkpoints that they stand for: which model, which revision, how many tokens seen.

The published suites are listed in suites.yaml beside this module; a file of the same form adds others. Their step lists
come from the hub's own branches where it can be asked, each with its commit, and from the listed steps otherwise.

A suite trained here is a repository in a hub cache of its own, one revision a step, exactly as a Pythia branch lies in
the cache after its download: the same `from_pretrained(repository, revision=...)` reads both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path

import yaml

from reptrace.checkpoints import hub
from reptrace.checkpoints.listing import Checkpoint, by_step, checkpoints, fault_of, read_steps
from reptrace.support.arguments import near

SUITES = Path(__file__).with_name("suites.yaml")
STAGE_KEYS = {"stage", "repository", "branch", "revision", "subfolder", "steps", "tokens_per_step", "tokens_before",
              "gated", "cache_dir"}
SUITE_KEYS = {"for", "about", "source", "unseen", "stages", "shape"} | STAGE_KEYS
SHAPE_NEEDS = {"parameters", "layers", "width", "vocabulary"}
SHAPE_KEYS = SHAPE_NEEDS | {"context", "bytes_per_weight", "tied"}
BRACES = re.compile(r"\{\w*\}")


@dataclass(frozen=True)
class Stage:
    """A part of a training whose checkpoints are branches of one repository, or folders in it (or one revision of it,
    or a folder of this machine).

    Parameters
    ----------
    repository : str
    stage : str, default "pretraining"
    branch : str, optional
        How its branches are named, with {step} and, where it is in the name, {tokens} for the tokens in units of 1e9
        rounded up; {any} stands for anything else. Without it, the stage is one revision.
    revision : str, optional
        Branch, tag or commit that is the stage's one checkpoint, or that holds its folders; default "main".
    subfolder : str, optional
        How the folders of its checkpoints are named ("step_{step}"), all of one revision, by the rules of `branch`.
    steps : str
        Published steps, "0 1 2 4 1000-143000/1000" or "TABLE.csv:MODEL" for a table of data/published; used where the
        hub cannot be asked. Empty: only the hub knows them.
    tokens_per_step, tokens_before : int
        Training tokens an optimizer step takes; those seen before the stage.
    gated : bool
        Whether a token with access is needed.
    cache_dir : str, optional
        Hub cache that holds the repository; default transformers' own.
    """

    repository: str
    stage: str = "pretraining"
    branch: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    steps: str = ""
    tokens_per_step: int | None = None
    tokens_before: int = 0
    gated: bool = False
    cache_dir: str | None = None

    def __post_init__(self):
        for name, optional in (("repository", False), ("stage", False), ("branch", True), ("revision", True),
                               ("subfolder", True), ("cache_dir", True)):
            value = getattr(self, name)
            if not isinstance(value, str) and not (optional and value is None):
                raise ValueError(f"{name} must be text, got {value!r}.")
            known = {"{step}", "{tokens}", "{any}"} if name in ("branch", "subfolder") else set()
            if left := set(BRACES.findall(value or "")) - known:
                raise ValueError(f"{name} {value!r} has {', '.join(sorted(left))}, which has no values under `for`.")
        for name, least in (("tokens_per_step", 1), ("tokens_before", 0)):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= least) and not (least and value is None):
                raise ValueError(f"{name} must be a whole number{' above 0' if least else ', 0 or above'}, "
                                 f"got {value!r}.")
        if not isinstance(self.gated, bool):
            raise ValueError(f"gated must be true or false, got {self.gated!r}.")
        if not isinstance(self.steps, (str, int)):
            raise ValueError(f"steps must be text, got {self.steps!r}.")
        if self.branch is not None and (self.revision or self.subfolder):
            raise ValueError("checkpoints are branches, or one revision, or folders in it: branch goes without "
                             "revision and subfolder.")
        self._check_names(bool(read_steps(self.steps)))

    def _check_names(self, listed: bool) -> None:
        """Whether branches or folders can be told, and built from the listed steps."""
        kind, named = ("subfolder", self.subfolder) if self.branch is None else ("branch", self.branch)
        parts = BRACES.findall(named or "")
        if named is not None and parts.count("{step}") != 1:
            raise ValueError(f"{kind} {named!r} must have {{step}} in it, once.")
        if listed and named is None:
            raise ValueError("steps are of branches, or of folders: say how these are named (branch: step{step}).")
        if listed and "{any}" in parts:
            raise ValueError(f"{kind} {named!r} has {{any}}, which the hub alone knows: it can have no steps.")
        if listed and "{tokens}" in parts and self.tokens_per_step is None:
            raise ValueError(f"{kind} {named!r} has {{tokens}}: its steps need tokens_per_step.")

    @property
    def holder(self) -> str | None:
        """The revision that holds the checkpoints' folders, where they are folders."""
        return None if self.subfolder is None else self.revision or "main"

    @property
    def names(self) -> str | None:
        """How the revisions of its checkpoints are named; None where it is one revision."""
        return self.branch if self.subfolder is None else hub.inside(self.holder, self.subfolder)

    @property
    def on_the_hub_alone(self) -> bool:
        """Whether it has checkpoints that no steps are listed of."""
        return self.names is not None and not str(self.steps) and not Path(self.repository).is_dir()

    @cached_property
    def pattern(self) -> re.Pattern:
        """What a revision of this stage looks like, with a group `step`."""
        parts = {"{step}": r"(?P<step>\d+)", "{tokens}": r"\d+", "{any}": ".+"}
        pieces = re.split(r"(\{\w+\})", self.names)
        return re.compile("".join(parts.get(piece, re.escape(piece)) for piece in pieces))

    def checkpoints(self, known: Mapping[str, str] | None) -> list[Checkpoint]:
        """In order of their steps; `known` maps the repository's branches, or the folders of one, to commits, None
        where it was not asked."""
        if Path(self.repository).is_dir():
            return [replace(point, stage=self.stage, tokens=None if point.step is None else self._tokens(point.step))
                    for point in checkpoints(self.repository)]
        if self.names is None:
            tokens = self.tokens_before or None
            return [Checkpoint(self.repository, self.revision, None, tokens, self.cache_dir, self.stage,
                               (known or {}).get(self.revision or "main"))]
        if known is None:
            steps = {self._name(step): step for step in read_steps(self.steps)}
        else:
            steps = {name: int(match["step"]) for name in known if (match := self.pattern.fullmatch(name))}
        return [Checkpoint(self.repository, name, step, self._tokens(step), self.cache_dir, self.stage,
                           (known or {}).get(name)) for name, step in sorted(steps.items(), key=lambda pair: pair[1])]

    def _tokens(self, step: int) -> int | None:
        return None if self.tokens_per_step is None else self.tokens_before + step * self.tokens_per_step

    def _name(self, step: int) -> str:
        return self.names.format(step=step, tokens=-(-step * (self.tokens_per_step or 0) // 10**9))


@dataclass(frozen=True)
class Suite:
    """A training by name: its stages in order, and the shape of its models (see SHAPE_KEYS; {} if not known).

    `source` says where the names of its checkpoints were read; `unseen`, whether that is all: no listing of the hub's
    own has been compared with them.
    """

    name: str
    stages: tuple[Stage, ...]
    shape: Mapping[str, int] = field(default_factory=dict)
    about: str = ""
    source: str = ""
    unseen: bool = False

    @property
    def on_the_hub_alone(self) -> bool:
        """Whether one of its stages has checkpoints that no steps are listed of."""
        return any(stage.on_the_hub_alone for stage in self.stages)

    def of_stages(self, names: Sequence[str]) -> Suite:
        """With these stages alone; none named: all. ValueError where it has none of them."""
        found = tuple(stage for stage in self.stages if not names or stage.stage in names)
        if not found:
            raise ValueError(f"{self.name!r} has no stage {', '.join(names)}; it has "
                             f"{', '.join(dict.fromkeys(stage.stage for stage in self.stages))}.")
        return replace(self, stages=found)

    def checkpoints(self, ask: bool = True) -> list[Checkpoint]:
        """Every checkpoint, stage by stage, in order of steps; known faults in `fault`.

        Parameters
        ----------
        ask : bool, default True
            Ask the hub (or the stage's cache) which branches there are and freeze their commits. Where it does not
            answer, or with False, the listed steps are taken, without commits.
        """
        listings = {place: self._listing(*place, ask) for place in dict.fromkeys(map(_place, self.stages))}
        found = []
        for stage in self.stages:
            known = listings[_place(stage)]
            if isinstance(known, hub.HubError):  # opening says what is wrong with the hub
                if stage.on_the_hub_alone:
                    raise known
                known = None
            found += stage.checkpoints(known)
        if not found:
            raise hub.HubError(f"no checkpoints of {self.name!r} are known: {self._why(listings)}.")
        return [replace(point, fault=fault_of(point)) for point in found]

    @staticmethod
    def _listing(repository: str, cache_dir: str | None, holder: str | None, ask: bool
                 ) -> dict[str, str] | hub.HubError | None:
        if cache_dir is None and not (ask and hub.reachable() and not Path(repository).is_dir()):
            return None
        try:
            return hub.folders(repository, holder, cache_dir) if holder else hub.branches(repository, cache_dir)
        except hub.HubError as error:
            return error

    def _why(self, listings: Mapping) -> str:
        stage = self.stages[0]
        known = listings[_place(stage)]
        if known is None:
            return f"the hub was not asked, and there are no steps of {stage.repository!r} to go by"
        return (f"{stage.repository!r} has no {'folder' if stage.holder else 'branch'} like {stage.names}; it has "
                f"{', '.join(by_step(known)[:8]) or 'none'}")


def _place(stage: Stage) -> tuple[str, str | None, str | None]:
    """What a listing of a stage's checkpoints is of."""
    return stage.repository, stage.cache_dir, stage.holder


def registered(*extra: str | Path) -> dict[str, Suite]:
    """Every suite by name: those of suites.yaml, then those of further files of the same form."""
    suites = dict(_shipped())
    for path in map(Path, extra):
        suites |= read_suites(path)
    return suites


@cache
def _shipped() -> dict[str, Suite]:
    return read_suites(SUITES)


def suite(name: str, *extra: str | Path) -> Suite:
    """A suite by its name; KeyError with names like it where there is none."""
    known = registered(*extra)
    if name not in known:
        raise KeyError(f"there is no suite {name!r}.{near(name, known)} `python -m reptrace suites` lists all; "
                       "--suites FILE adds your own.")
    return known[name]


def read_suites(path: Path) -> dict[str, Suite]:
    """Suites of one YAML file: name -> stages, or the keys of its one stage; `for` repeats an entry over values."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of suites {str(path)!r}.")
    content = _content(path)
    shapes, found = content.pop("shapes", {}), {}
    if not isinstance(shapes, dict):
        raise ValueError(f"{path}: `shapes` must be a mapping of shapes by name, got {shapes!r}.")
    for template, entry in content.items():
        try:
            for built in _built(str(template), entry, shapes):
                if built.name in found:
                    raise ValueError(f"{built.name!r} stands there twice: `for` needs its values in the name.")
                found[built.name] = built
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: suite {template!r}: {error}") from error
    return found


def _content(path: Path) -> dict:
    try:
        text = path.read_text()
        content, twice = yaml.safe_load(text), _twice(yaml.compose(text))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML (text with braces wants quotes): {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected suites by name (name: {{repository: ..., branch: step{{step}}}}), got "
                         f"{type(content).__name__}.")
    if twice:
        raise ValueError(f"{path}: {twice!r} stands there twice.")
    return content


def _twice(node: yaml.Node | None) -> str | None:
    """A key that a mapping has twice, of which YAML would take the last."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    keys = [key.value for key, _ in pairs]
    repeated = [key for k, key in enumerate(keys) if key in keys[:k] and key != "<<"]
    parts = [value for _, value in pairs] + (node.value if isinstance(node, yaml.SequenceNode) else [])
    return next(iter(repeated), None) or next(filter(None, map(_twice, parts)), None)


def _built(template: str, entry, shapes: dict) -> Iterator[Suite]:
    """The suites that an entry stands for."""
    if not isinstance(entry, dict):
        raise ValueError(f"it must be a mapping with a repository or stages, got {entry!r}.")
    values, stages = entry.get("for", {}), entry.get("stages")
    if not isinstance(values, dict) or not all(isinstance(each, list) for each in values.values()):
        raise ValueError(f"`for` must be a mapping like {{size: [1b, 7b]}}, got {values!r}.")
    own = STAGE_KEYS & set(entry)
    if stages is None:
        stages = [{key: entry[key] for key in own}]
    elif own:
        raise ValueError(f"{', '.join(sorted(own))} must stand in its stages.")
    if not (isinstance(stages, list) and stages and all(isinstance(stage, dict) for stage in stages)):
        raise ValueError(f"stages must be a list of mappings, got {stages!r}.")
    if unknown := (set(entry) - SUITE_KEYS).union(*(set(stage) - STAGE_KEYS for stage in stages)):
        raise ValueError(f"it has unknown keys {', '.join(sorted(map(str, unknown)))}; it may have "
                         f"{', '.join(sorted(SUITE_KEYS))}.")
    if any("repository" not in stage for stage in stages):
        raise ValueError("it has a stage without a repository.")
    for chosen in product(*values.values()):
        yield _filled(template, entry, stages, dict(zip(values, map(str, chosen), strict=True)), shapes)


def _filled(template: str, entry: dict, stages: list[dict], chosen: dict[str, str], shapes: dict) -> Suite:
    def filled(value):
        """With {size} and the like put in; {step} and {tokens} stay."""
        for key, word in chosen.items():
            value = value.replace(f"{{{key}}}", word) if isinstance(value, str) else value
        return value

    built = tuple(Stage(**{key: filled(value) for key, value in stage.items()}) for stage in stages)
    for k, stage in enumerate(built):
        if any((stage.repository, stage.stage) == (other.repository, other.stage) for other in built[:k]):
            raise ValueError(f"two stages are {stage.stage!r} of {stage.repository!r}: tell them apart by `stage`.")
    name, source, unseen = filled(template), filled(entry.get("source", "")), entry.get("unseen", False)
    if not isinstance(source, str):
        raise ValueError(f"source must be text, got {source!r}.")
    if not isinstance(unseen, bool):
        raise ValueError(f"unseen must be true or false, got {unseen!r}.")
    if left := BRACES.findall(name):
        raise ValueError(f"its name has {', '.join(left)}, which has no values under `for`.")
    shape, about = _shape(filled(entry.get("shape")), shapes), filled(entry.get("about", ""))
    return Suite(name, built, shape, about, source, unseen)


def _shape(shape, shapes: dict) -> dict[str, int]:
    if shape is None:
        return {}
    if isinstance(shape, str):
        if shape not in shapes:
            raise ValueError(f"it names shape {shape!r}, which stands under no `shapes`.")
        shape = shapes[shape]
    if not (isinstance(shape, dict) and SHAPE_NEEDS <= set(shape) <= SHAPE_KEYS
            and all(isinstance(value, (int, float)) and value > 0 for value in shape.values())):
        raise ValueError(f"a shape has {', '.join(sorted(SHAPE_NEEDS))} and may have "
                         f"{', '.join(sorted(SHAPE_KEYS - SHAPE_NEEDS))}, numbers above 0; got {shape!r}.")
    return shape


