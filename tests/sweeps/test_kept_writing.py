"""Text of checkpoints, written in pieces that survive whatever ends the process.

Trusted: transformers' own greedy `generate`, the checker of test_final_answers.py on the texts themselves, and a run
that nothing cut off.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from clusters import wait_until
from limits import SOON, in_background
from standin_hub import tiny_model, tiny_tokenizer

from reptrace.checkpoints.suites import suite
from reptrace.models.loading import load, load_tokenizer
from reptrace.records.store import Store
from reptrace.sweeps.dispatch import Means, run
from reptrace.sweeps.located import Opening
from reptrace.sweeps.writing import AnswersPart, SolvedPart
from reptrace.tasks import kept_writing
from reptrace.tasks.kept_writing import Writing
from reptrace.texts.final_answers import final_answer, right

REPOSITORY = "allenai/Llama-3.1-Tulu-3-8B-SFT"
PROMPTS = ["the quick brown fox", "the quick brown dog", "the quick brown jumps"]
DRAWN = Writing(tokens=20, samples=10, temperature=1.0, top_p=0.9, together=4, batch_size=3)


@pytest.fixture
def point(hub):
    hub.put(REPOSITORY, "main", tiny_model("llama", 1) | tiny_tokenizer())
    return suite("tulu3-8b").of_stages(["SFT"]).checkpoints()


@pytest.fixture
def done(point, tmp_path):
    """A function that has a part done, with the pieces in `folder`: the rows."""
    def rows(part, folder="pieces", store="records", **options):
        part = part if isinstance(part, AnswersPart) else AnswersPart(PROMPTS, part, tmp_path / folder, **options)
        store = Store(tmp_path / store)
        [[job]] = run([(point, [part])], store, Opening("cpu"), Means(progress=False))
        table = store.table([job.identity(part)])
        assert (table.status == "measured").all(), table.reason.tolist()
        return table

    return rows


def test_greedy_texts_are_transformers_own(done, point):
    table = done(Writing(tokens=8, together=2))
    model = load(REPOSITORY, head=True)
    tokenizer = load_tokenizer(REPOSITORY)
    for row in table.itertuples():
        ids = torch.tensor([tokenizer(PROMPTS[row.prompt])["input_ids"]])
        with torch.inference_mode():
            made = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)[0]
        assert row.text == tokenizer.decode(made[ids.shape[1]:], skip_special_tokens=True)
    assert table["prompt"].tolist() == [0, 1, 2] and not table["sample"].any()


def test_samples_are_all_different_draws_and_a_run_cut_off_goes_on_to_the_same_texts(done, monkeypatch):
    whole = done(DRAWN)
    assert whole[["prompt", "sample"]].values.tolist() == [[row, each] for row in range(3) for each in range(10)]
    assert whole.text.nunique() > 25  # twenty tokens of a model that knows nothing are hardly ever the same
    calls, most, write = [], [4], kept_writing.write

    def dying(*arguments, **options):
        if len(calls) == most[0]:
            raise KeyboardInterrupt
        calls.append(1)
        return write(*arguments, **options)

    monkeypatch.setattr(kept_writing, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        done(DRAWN, folder="cut", store="cut records")
    most[0] = 3 * 3  # parts of 4, 4 and 2 samples of each prompt
    resumed = done(DRAWN, folder="cut", store="cut records")
    assert len(calls) == 3 * 3
    pd.testing.assert_frame_equal(resumed[["prompt", "sample", "text", "tokens", "ended"]],
                                  whole[["prompt", "sample", "text", "tokens", "ended"]])
    assert done(DRAWN, folder="cut", store="other records").text.tolist() == whole.text.tolist()  # all is there


def test_what_another_process_writes_is_waited_for(done, tmp_path, monkeypatch):
    few = Writing(tokens=6, samples=4, temperature=1.0, together=2)
    whole = done(few)
    others, claimed = Store(tmp_path / "shared"), []
    claim = Store.claim

    def first_is_taken(self, identity):
        if self.folder == others.folder and not claimed:
            claimed.append(claim(self, identity))
        return claim(self, identity)

    monkeypatch.setattr(Store, "claim", first_is_taken)
    waiting = in_background(done, few, folder="shared", store="others")
    wait_until(lambda: len(list(others.folder.glob("*.parquet"))) == 5, "all but the one are written")
    assert not waiting.done()
    claimed[0].release()
    assert waiting.result(SOON).text.tolist() == whole.text.tolist()


def test_right_answers_are_counted_by_problem(done, tmp_path):
    texts = done(DRAWN).groupby("prompt").text.agg(list)
    found = [[each for each in map(final_answer, group) if each] for group in texts]
    answers = [group[0] if group else "1" for group in found]
    table = done(SolvedPart(PROMPTS, DRAWN, tmp_path / "pieces", answers))
    expected = [sum(right(final_answer(text), answer) for text in group)
                for group, answer in zip(texts, answers, strict=True)]
    assert table["right"].tolist() == expected and sum(expected) > 0
    assert table.samples.tolist() == [10] * 3 and table.problem.tolist() == [0, 1, 2]
    assert table.distinct.tolist() == [len({final_answer(text) for text in group}) for group in texts]
    assert np.isclose(table.cut_off, 1 - done(DRAWN).groupby("prompt").ended.mean()).all()


def test_problems_without_a_number_for_an_answer_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="must be a number, got 'x'"):
        SolvedPart(PROMPTS, DRAWN, tmp_path, ["1", "2", "x"])
    with pytest.raises(ValueError, match="each problem has an answer: got 3 and 2"):
        SolvedPart(PROMPTS, DRAWN, tmp_path, ["1", "2"])
    with pytest.raises(ValueError, match="together"):
        Writing(tokens=8, together=0)
