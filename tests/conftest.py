"""What the test files share: no network, one thread, fixed seeds, and a hub cache laid out by hand."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers whichever tests run, in whatever order."""
    torch.manual_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def hub_cache(tmp_path):
    """A function that lays out a repository as huggingface_hub keeps it: revision -> files by name (bytes)."""

    def lay_out(repository: str, revisions: dict[str, dict[str, bytes]]) -> Path:
        cache = tmp_path / "hub"
        root = cache / f"models--{repository.replace('/', '--')}"
        for number, (revision, files) in enumerate(revisions.items()):
            commit = f"{number:040x}"
            for name, content in {f"refs/{revision}": commit.encode(),
                                  **{f"snapshots/{commit}/{name}": content for name, content in files.items()}}.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return cache

    return lay_out
