"""Names -> models and tokenizers, as transformers opens them, with errors that say what was looked for.

A name is a repository on the hub or in a cache of it, with a revision, a folder, or a GGUF file. What is opened is
checked against what lies there: tensors that would be random, or that would be left out, are an error and never a
number.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from reptrace.checkpoints import gguf_files, hub, weights
from reptrace.models import batches, gguf_models
from reptrace.models.batches import AUTO, TooLittleMemoryError
from reptrace.models.decoders import text_decoder
from reptrace.models.positions import text_config
from reptrace.support.arguments import near_folders

# transformers changes torch's default dtype, its own verbosity and progress bars while it loads: one thread at a time.
_LOADING = threading.Lock()
HEADLESS = (", or a model saved without its LM head? Tasks, the loss and the measures readout and weights read it: "
            "leave these out.")
OWN_CODE = "transformers_modules"  # the package in which transformers runs Python code that comes with a model


class CodeElsewhereError(ValueError):
    """A model's code lies in another repository."""


def placement(device: str | None = None, dtype: str | None = None) -> tuple[str, str]:
    """Device and dtype of the forward pass: bfloat16 on a GPU where there is one, float32 on the CPU, unless given.

    The device "auto" is all of them: accelerate spreads the model over the GPUs, then the CPU, then the disk.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpu = torch.cuda.is_available() if device == AUTO else torch.device(device).type == "cuda"
    dtype = dtype or ("bfloat16" if gpu else "float32")
    if dtype not in ("float32", "bfloat16", "float64"):
        raise TypeError(f"dtype must be float32, bfloat16 or float64, got {dtype!r}: float16 overflows in Pythia and "
                        "others.")
    return device, dtype


def load(name: str, revision: str | None = None, cache_dir: str | None = None, device: str | None = None,
         dtype: str | None = None, *, trust_remote_code: bool = False, head: bool = False) -> nn.Module:
    """Open a decoder, without its LM head unless asked for: a hub repository at a revision, a local folder, or a GGUF
    file (always with its LM head, and with its quantized weights turned back into plain ones).

    Weights are read from safetensors or, where there are none, from .bin files as bare tensors: a pickle that holds
    anything else is refused, and nothing in it is run.

    Parameters
    ----------
    name : str
        Repository ("EleutherAI/pythia-1b"), folder, or GGUF file.
    revision : str, optional
        Branch, tag or commit of the repository, with a folder in it behind a colon ("main:step-20"). A plain folder has
        none.
    cache_dir : str, optional
        Hub cache to read, default transformers' own. A suite trained here lives in one of its own (`pretrain`).
    device, dtype : str, see `placement`; float16 is refused: it overflows.
    trust_remote_code : bool, default False
        Run Python code that comes with this one repository. Read it first.
    head : bool, default False
        With its LM head (AutoModelForCausalLM), for tasks and losses; hidden states do not need it.

    Raises
    ------
    FileNotFoundError
        No such model or revision; says which revisions, or folders with names like it, there are.
    TooLittleMemoryError
        The weights alone are more than the device's free memory (of the CPU's, where Linux tells it).
    ImportError
        A package that the model needs is not installed: gguf for a GGUF file, for instance.
    TypeError
        float16.
    WeightsError, GGUFError, ValueError
        Weights that are damaged, incomplete, of other shapes than the configuration says, or not bare tensors; tensors
        that the model does not take (scales of quantized weights, an adapter, more blocks than configured); a
        repository with code of its own, which it was not allowed to run; a model that has no LM head, if asked for.
    """
    from transformers import AutoConfig, AutoModel

    device, dtype = placement(device, dtype)
    source = _source(name, revision, cache_dir)
    gguf = os.path.isfile(source[0])
    kind, trust = getattr(torch, dtype), {"trust_remote_code": trust_remote_code}
    config = from_pretrained(AutoConfig, *source, **trust)
    opener = _opener_with_head(name, config) if head or gguf else AutoModel
    _check_files(*source)
    if device != AUTO and not trust_remote_code:  # a repository's own code may not build on the device "meta"
        batches.check_memory(_bytes(name, opener, config, kind), torch.device(device), f"the model {name!r} in {dtype}")
    # Straight to the GPU, so that the CPU's memory need not hold the model.
    spread = {} if device == "cpu" else {"device_map": AUTO if device == AUTO else torch.device(device)}
    model, report = from_pretrained(opener, *source, dtype=kind, output_loading_info=True, weights_only=True,
                                    **spread, **trust)
    absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    tied = getattr(text_config(config), "tie_word_embeddings", False)
    if absent and not head and tied and "lm_head.weight" in report["unexpected_keys"]:
        # the embeddings, stored under the head's name
        return load(name, revision, cache_dir, device, dtype, trust_remote_code=trust_remote_code, head=True)
    if absent:
        raise ValueError(f"the weights of {name!r} lack {len(absent)} tensors ({', '.join(absent[:3])}, ...), which "
                         f"would be random: an incomplete download or save{HEADLESS if head else '?'}")
    if gguf:
        gguf_models.finish(source[0], model, report["unexpected_keys"], head)
        return model.eval() if device == AUTO else model.to(device).eval()
    decoded = _decoded(config)
    with _said_of(name):
        folder = _path(weights.CONFIG, *source).parent
        weights.check_taken(weights.weight_paths(folder), report["unexpected_keys"], model, head, decoded)
    model = model.to(kind) if decoded else model  # transformers leaves weights that it decodes on a CPU in float32
    return model.eval() if device == AUTO else model.to(device).eval()


def load_tokenizer(name: str, revision: str | None = None, cache_dir: str | None = None, *,
                   trust_remote_code: bool = False):
    """The tokenizer stored with a model; of a model in a folder of a repository, there or in the nearest folder above.

    Raises
    ------
    FileNotFoundError
        There is none; transformers would make one up for some models, with an empty vocabulary.
    ImportError
        It needs a package that is not installed; the message names it.
    ValueError
        Its files are damaged, or it comes with code of its own, see `load`.
    """
    branch, folder = hub.parted(revision)
    try:
        return _tokenizer_at(name, revision, cache_dir, trust_remote_code)
    except FileNotFoundError:
        for place in hub.upwards(folder)[1:]:
            with suppress(FileNotFoundError):
                return _tokenizer_at(name, hub.inside(branch, place), cache_dir, trust_remote_code)
        raise


def _tokenizer_at(name: str, revision: str | None, cache_dir: str | None, trust_remote_code: bool):
    from transformers import AutoTokenizer

    source = _source(name, revision, cache_dir)
    found = from_pretrained(AutoTokenizer, *source, trust_remote_code=trust_remote_code)
    in_files = found.vocab_files_names and not os.path.isfile(source[0])
    if in_files and not _has_vocabulary(found.vocab_files_names.values(), *source):
        raise FileNotFoundError(_no_tokenizer(name, revision))
    if not set(found.get_vocab()) - set(found.get_added_vocab()):
        raise ValueError(f"the tokenizer of {name!r} has an empty vocabulary: its files are not whole.")
    return found


def from_pretrained(loader, name: str, revision: str | None, cache_dir: str | None = None, **options):
    """`loader.from_pretrained`, quiet, with an error that says what was looked for and what there is.

    Threads may call it side by side: they take turns.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    if not isinstance(options.get("trust_remote_code", False), bool):  # a name would count as yes
        raise TypeError(f"trust_remote_code is True or False, got {options['trust_remote_code']!r}.")
    name, revision, cache_dir = _source(name, revision, cache_dir)
    at = f" at revision {revision!r}" if revision else ""
    try:
        if options.get("trust_remote_code"):
            _check_code(name, revision, cache_dir)
            if _what(loader) != "model":  # a model is opened after its configuration, by the same code
                _forget_own_code()
        with _LOADING, _quiet():
            if os.path.isfile(name):
                return gguf_models.opened(loader, name, **options)
            return loader.from_pretrained(name, **_where(name, revision, cache_dir), **options)
    except (CodeElsewhereError, gguf_files.GGUFError):
        raise
    except UnpicklingError as error:
        raise ValueError(f"the weights of {name!r}{at} are a pickle that holds more than tensors, or a damaged one. "
                         "Nothing in it was run. Ask for safetensors, or convert it where you trust it.") from error
    except ImportError as error:
        raise ImportError(f"{name!r}{at} needs a package that is not installed: {_first_line(error)}") from error
    except (OSError, ValueError) as error:
        raise _not_opened(loader, name, revision, cache_dir, error) from error
    except (SafetensorError, RuntimeError) as error:
        if batches.is_out_of_memory(error):
            raise TooLittleMemoryError(f"memory ran out while {name!r}{at} was loaded: try dtype=\"bfloat16\", or "
                                       f"device=\"auto\" ({_first_line(error)}).") from error
        raise ValueError(f"the weights of {name!r}{at} cannot be read: cut short, damaged, or of another shape than "
                         f"the configuration says ({_first_line(error)}).") from error
    except Exception as error:  # of whatever class: tokenizers raises bare ones, a wrong configuration a TypeError
        raise ValueError(f"the {_what(loader)} of {name!r}{at} cannot be opened: damaged files, or ones of another "
                         f"version of transformers ({type(error).__name__}: {_first_line(error)}).") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without messages and progress bars, for the whole process: not for two threads at once."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def _said_of(name: str) -> Iterator[None]:
    """What is wrong with weights, with the name of the model before it."""
    try:
        yield
    except weights.WeightsError as error:
        raise weights.WeightsError(f"{name!r}: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"cannot open model {name!r}: {error}") from error


def _source(name: str, revision: str | None, cache_dir: str | None) -> tuple[str, str | None, str | None]:
    """Where to look for a model, once its name can be one."""
    name = hub.checked_name(str(name))
    weights.check_revision(name, revision)
    return name, revision, cache_dir


def _where(name: str, revision: str | None, cache_dir: str | None) -> dict:
    if weights.is_here(name):
        return {}
    branch, folder = hub.parted(revision)
    return {"revision": branch, "cache_dir": cache_dir, "local_files_only": cache_dir is not None,
            **({"subfolder": folder} if folder else {})}


def _path(file: str, name: str, revision: str | None, cache_dir: str | None) -> Path | None:
    """Where a small file of a model now lies, fetched if need be; None where it has no such file."""
    from transformers.utils import cached_file

    with suppress(OSError), _LOADING, _quiet():  # opening says what is wrong with the repository
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False,
                            _raise_exceptions_for_connection_errors=False, **_where(name, revision, cache_dir))
        return Path(found) if found else None
    return None


def _check_files(name: str, revision: str | None, cache_dir: str | None) -> None:
    """What can be known of the weights before they are opened: of a folder, and of an adapter anywhere."""
    with _said_of(name):
        if os.path.isfile(name):
            gguf_files.header(name)
        elif os.path.isdir(name):
            weights.weight_paths(name)
        elif _path(weights.ADAPTER, name, revision, cache_dir):
            weights.weight_files([weights.ADAPTER], dict)


def _check_code(name: str, revision: str | None, cache_dir: str | None) -> None:
    """CodeElsewhereError where a model or its tokenizer takes code from another repository: no state of that is
    recorded. Before any of it is run."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    where, references = _where(name, revision, cache_dir), []
    for read in (PreTrainedConfig.get_config_dict, get_tokenizer_config):
        with suppress(OSError, ValueError), _LOADING, _quiet():  # opening says what is wrong with it
            found = read(name, **where)
            references.append((found[0] if isinstance(found, tuple) else found).get("auto_map"))
    while references:
        reference = references.pop()
        if isinstance(reference, str) and "--" in reference:
            raise CodeElsewhereError(
                f"{name!r} takes its code from another repository ({reference}), at a state that nothing records: copy "
                "the Python files into the folder, and their names without the repository into auto_map.")
        if not isinstance(reference, str):
            references += list(reference.values() if isinstance(reference, Mapping) else reference or [])


def _forget_own_code() -> None:
    """Have transformers find own code anew: of classes by the same name it would take the first that it met, another
    folder's, or an older state of this one's. The modules stay, for models that are in use."""
    from transformers.models.auto import auto_factory, configuration_auto, modeling_auto, tokenization_auto

    with _LOADING:
        for module in (auto_factory, configuration_auto, modeling_auto, tokenization_auto):
            for mapping in vars(module).values():
                extra = mapping._extra_content if type(mapping).__name__.startswith("_Lazy") else {}
                for key in [key for key, value in extra.items() if _is_own_code(key) or _is_own_code(value)]:
                    del extra[key]


def _is_own_code(value) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_is_own_code, value))
    return str(getattr(value, "__module__", "")).split(".")[0] == OWN_CODE


def _has_vocabulary(names: Iterable[str], name: str, revision: str | None, cache_dir: str | None) -> bool:
    """Whether a model has one of the files that hold a tokenizer's vocabulary."""
    known = weights.VOCABULARIES.union(names)
    return any(_path(file, name, revision, cache_dir) for file in sorted(known))


def _no_tokenizer(name: str, revision: str | None) -> str:
    at = f" at revision {revision!r}" if revision else ""
    return (f"cannot open a tokenizer of {name!r}{at}: it has none. Name one that gives the ids that the model was "
            "trained on (tokenizer=..., --tokenizer).")


def _not_opened(loader, name: str, revision: str | None, cache_dir: str | None, error: Exception) -> Exception:
    """The error that says what was looked for under a name, and what there is."""
    from reptrace.checkpoints.listing import revisions

    at, said = f" at revision {revision!r}" if revision else "", " ".join(str(error).split())[:300]
    if "trust_remote_code" in str(error):
        return ValueError(f"{name!r}{at} comes with Python code of its own, which is not run unless you say so. Read "
                          f"it; then allow it for this one repository: trust_remote_code=True, --trust {name}.")
    if _what(loader) == "tokenizer" and _has_vocabulary((), name, revision, cache_dir):
        return ValueError(f"cannot open the tokenizer of {name!r}{at}: damaged files, or a package that reads them is "
                          f"missing ({said}).")
    if _what(loader) == "tokenizer" and _path(weights.CONFIG, name, revision, cache_dir):
        return FileNotFoundError(_no_tokenizer(name, revision))
    if os.path.isdir(name):
        inside = sorted(str(path.parent) for path in Path(name).glob("*/**/config.json"))
        hint = f" Models lie in {', '.join(inside[:4])}{' ...' if len(inside) > 4 else ''}." if inside else ""
        return FileNotFoundError(f"cannot open model {name!r}: the folder holds no configuration and weights that "
                                 f"transformers can read.{hint} ({said})")
    known = revisions(name, cache_dir)
    hint = f" It has {', '.join(known[:6])}{' ...' if len(known) > 6 else ''}." if known else ""
    return FileNotFoundError(f"cannot open model {name!r}{at}: not a folder with a config and weights, and not a "
                             f"repository in {cache_dir or 'the hub cache or on the hub'}.{hint}"
                             f"{near_folders(name)} ({said})")


def _what(loader) -> str:
    kinds = {"Tokenizer": "tokenizer", "Config": "configuration"}
    return next((kind for part, kind in kinds.items() if part in loader.__name__), "model")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _opener_with_head(name: str, config):
    """The class that opens a model with its LM head; a multimodal one predicts text, too."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    own = getattr(config, "auto_map", None) or {}
    encoder = getattr(config, "is_encoder_decoder", False)
    for opener in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        if opener.__name__ in own or (type(config) in opener._model_mapping and not encoder):
            return opener
    raise ValueError(f"{name!r} has no LM head: {type(config).__name__} describes no causal language model, so it "
                     "predicts no next token. Tasks, the loss and the measures readout and weights need one; Pythia, "
                     "OLMo-2 and Llama have it.")


def _decoded(config) -> bool:
    """Whether transformers acts on the quantization that a configuration states (of a method unknown to it, it only
    warns)."""
    from transformers.quantizers import AutoHfQuantizer

    stated = [getattr(each, "quantization_config", None) for each in (config, config.get_text_config(decoder=True))]
    found = next(filter(None, stated), None)
    with _quiet():
        return found is not None and AutoHfQuantizer.supports_quant_method(found)


def parameters(name: str, config) -> int:
    """How many weights a model's text decoder has by a configuration, without its LM head; errors as of `load`."""
    from transformers import AutoModel

    return text_decoder(_on_meta(name, AutoModel, config, torch.float32)).num_parameters()


def _bytes(name: str, opener, config, dtype: torch.dtype) -> int:
    """Size of a model's weights, from its shape."""
    return sum(each.numel() for each in _on_meta(name, opener, config, dtype).parameters()) * dtype.itemsize


def _on_meta(name: str, opener, config, dtype: torch.dtype) -> nn.Module:
    """A model of this shape on the device "meta", which takes no memory."""
    try:
        with _LOADING, torch.device("meta"):
            return opener.from_config(config, dtype=dtype, trust_remote_code=False)
    except ImportError:
        raise
    except Exception as error:  # of whatever class: an unknown kind of rotary embedding is a KeyError
        raise ValueError(f"no model can be built by the configuration of {name!r}: damaged, or of another version of "
                         f"transformers ({type(error).__name__}: {_first_line(error)}).") from error
