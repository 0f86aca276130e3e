"""What a decoder is spared: the same numbers, its blocks passed through once. Trusted: the model itself."""

import architectures
import pytest
import torch

from reptrace.models import remembering as module
from reptrace.models.decoders import text_decoder
from reptrace.models.eigendirections import projected, random_directions
from reptrace.models.remembering import remembering


@pytest.fixture(scope="module")
def model():
    return architectures.build("GPT-NeoX")


@pytest.fixture
def passes(model):
    counted = []
    handle = text_decoder(model).layers[0].register_forward_hook(lambda *args: counted.append(1))
    yield counted
    handle.remove()


def test_a_batch_passes_once_whatever_is_done_to_what_the_head_receives(model, passes):
    mean, kept = torch.zeros(model.config.hidden_size), {}
    batches = [torch.arange(3, 15).view(2, 6), torch.arange(3, 15).view(3, 4), torch.arange(4, 16).view(2, 6)]
    for seed, batch in [(seed, batch) for seed in (0, 1) for batch in batches]:
        columns = random_directions(model.config.hidden_size, seed)
        with projected(model, mean, columns, 3), torch.inference_mode():
            expected = model(input_ids=batch).logits
            before = len(passes)
            with remembering(model, kept):
                assert torch.equal(model(input_ids=batch).logits, expected)
            assert len(passes) - before == (seed == 0)
    mask = torch.ones(2, 6, dtype=torch.int64).tril(3)
    with torch.inference_mode(), remembering(model, kept):
        assert not torch.equal(model(input_ids=batches[0], attention_mask=mask).logits, model(batches[0]).logits)
    assert "forward" not in vars(text_decoder(model))


def test_no_more_is_kept_than_there_is_room_for(model, passes, monkeypatch):
    batch, kept = torch.arange(3, 15).view(2, 6), {}
    monkeypatch.setattr(module, "MOST", 2 * 6 * model.config.hidden_size * 4 - 1)  # bytes, float32
    with torch.inference_mode(), remembering(model, kept):
        assert torch.equal(model(input_ids=batch).logits, model(input_ids=batch).logits)
    assert len(passes) == 2 and not kept
