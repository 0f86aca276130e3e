"""What a sweep would take: bytes, operations and hours.

Trusted: arithmetic done here by hand from published numbers of weights (the table in Pythia's README has them with and
without embeddings), torch's own counter of operations on a real forward pass, and the stand-in hub for sizes of files.
Sums of a few products in double precision agree to 1e-12; looser tolerances say why.
"""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from reptrace.checkpoints.listing import Checkpoint
from reptrace.checkpoints.suites import Stage, Suite, read_suites, registered
from reptrace.records.store import Store
from reptrace.sweeps.plan import GPUS, by_measure, estimate, suite_of
from reptrace.sweeps.references import BUDGET
from reptrace.texts.corpora import ProbeSpec

PROBE = ProbeSpec("any.txt", 15_000, 512)
PYTHIA_1B = 1_011_781_632, 805_736_448  # weights, and those outside the embeddings


def plan(name, **options):
    """The row of one registered suite or of one given, out of reach of the hub."""
    suite = registered()[name] if isinstance(name, str) else name
    table = estimate([suite], **{"probes": [PROBE], "ask": False, **options})
    assert len(table) == 1
    return table.iloc[0]


def one(shape, name="me/model"):
    return Suite(name, (Stage(name),), shape)


def test_bytes_operations_and_hours_of_pythia_1b_are_those_worked_out_by_hand():
    row = plan("pythia-1b", gpu="H100", megabytes_a_second=200)
    tokens = 15_000 * 512
    # a token: a product and a sum for each weight; and in 16 layers, for the 256 before it on average, the same for
    # the scores and for the values, 2048 wide
    operations = tokens * (2 * PYTHIA_1B[1] + 16 * 256 * 2 * 2 * 2048)
    measuring = 154 * (operations / (0.4 * 989e12) + 30) / 3600
    downloading = 154 * 2 * PYTHIA_1B[0] / 200e6 / 3600
    expected = {"published": 154, "faulty": 0, "chosen": 154, "done": 0, "gb_each": 2 * PYTHIA_1B[0] / 1e9,
                "gb_download": 154 * 2 * PYTHIA_1B[0] / 1e9, "gb_disk": 4 * PYTHIA_1B[0] / 1e9,
                "petaflop": 154 * operations / 1e15, "gpu_hours": measuring, "download_hours": downloading,
                "hours": max(measuring, downloading)}
    assert row[list(expected)].astype(float).to_dict() == pytest.approx(expected, rel=1e-12)
    assert (row.suite, row.fits, row.sizes) == ("pythia-1b", "yes", "estimated")
    assert 1900 < row.petaflop < 2000 and 2.6 < row.gpu_hours < 2.7  # what one reads off, so that units are right


def test_operations_are_those_that_torch_counts_in_a_forward_pass_without_head():
    width, layers, vocabulary, sequences, length = 64, 3, 100, 2, 32
    config = AutoConfig.for_model("gpt_neox", vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
                                  num_attention_heads=4, intermediate_size=4 * width, max_position_embeddings=length,
                                  tie_word_embeddings=False, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.base_model(torch.zeros(sequences, length, dtype=torch.long))
    counted = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    assert set(counted) == {"aten.addmm", "aten.bmm"}
    shape = {"parameters": sum(weight.numel() for weight in model.parameters()), "layers": layers, "width": width,
             "vocabulary": vocabulary}
    row = plan(one(shape), probes=[ProbeSpec("any.txt", sequences, length)])
    # torch counts the products alone: of biases and norms, 2 operations a weight are added here; and all pairs of
    # tokens, of which causal attention needs half
    vectors = sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)
    expected = counted["aten.addmm"] + counted["aten.bmm"] / 2 + 2 * vectors * sequences * length
    assert row.petaflop * 1e15 == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "total", "inside"), [
    ("pythia-70m", 70_426_624, 18_915_328), ("pythia-160m", 162_322_944, 85_056_000),
    ("pythia-410m", 405_334_016, 302_311_424), ("pythia-1b", *PYTHIA_1B),
    ("pythia-1.4b", 1_414_647_808, 1_208_602_624), ("pythia-2.8b", 2_775_208_960, 2_517_652_480),
    ("pythia-6.9b", 6_857_302_016, 6_444_163_072), ("pythia-12b", 11_846_072_320, 11_327_027_200)])
def test_weights_of_the_pythias_are_the_published_ones(name, total, inside):
    shape = registered()[name].shape
    assert shape["parameters"] == total
    assert total - 2 * shape["vocabulary"] * shape["width"] == inside


@pytest.mark.parametrize(("name", "family", "options"), [
    ("pythia-14m", "gpt_neox", {"num_attention_heads": 4, "intermediate_size": 512}),
    ("pythia-31m", "gpt_neox", {"num_attention_heads": 8, "intermediate_size": 1024}),
    ("olmo2-1b", "olmo2", {"num_attention_heads": 16, "intermediate_size": 8192}),
    ("olmo2-1b-early", "olmo2", {"num_attention_heads": 16, "intermediate_size": 8192}),
    ("olmo2-7b", "olmo2", {"num_attention_heads": 32, "intermediate_size": 11008}),
    ("tulu3.1-8b", "llama", {"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336}),
    ("olmo3-7b", "olmo3", {"num_attention_heads": 32, "intermediate_size": 11008}),
    ("smollm3-3b", "smollm3", {"num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 11008,
                               "pad_token_id": 0}),
])
def test_weights_of_the_others_are_those_that_transformers_builds(name, family, options):
    """On the meta device: shapes without numbers."""
    shape = registered()[name].shape
    config = AutoConfig.for_model(family, vocab_size=shape["vocabulary"], hidden_size=shape["width"],
                                  num_hidden_layers=1, **options)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    parts = {part: sum(weight.numel() for name, weight in model.named_parameters() if (part in name))
             for part in ("layers.0", "")}
    layer, all_of_one = parts["layers.0"], parts[""]
    unembedding = 0 if shape.get("tied") else shape["vocabulary"] * shape["width"]
    assert all_of_one + (shape["layers"] - 1) * layer + unembedding == shape["parameters"]


def test_tied_embeddings_are_left_out_once():
    inside = 3_075_098_624 - 128_256 * 2048  # of SmolLM3 3B
    row = plan("smollm3-3b", probes=[ProbeSpec("any.txt", 10, 1)])
    assert row.petaflop * 1e15 == pytest.approx(row.chosen * 10 * (2 * inside + 2 * 36 * 2048), rel=1e-12)


@pytest.mark.parametrize(("name", "faulty"), [("pythia-2.8b", 85), ("pythia-12b", 2), ("pythia-410m-seed2", 1)])
def test_faulty_ones_are_counted_and_not_planned(name, faulty):
    row = plan(name)
    assert (row.published, row.faulty, row.chosen) == (154, faulty, 154 - faulty)
    assert row.gb_download == pytest.approx((154 - faulty) * row.gb_each, rel=1e-12)


def test_a_count_several_texts_and_several_gpus():
    whole, row = plan("pythia-1b", count=40), plan("pythia-1b", count=40, probes=[PROBE, PROBE], gpus=4)
    assert (whole.chosen, row.chosen) == (40, 40) and whole.gb_download == row.gb_download
    assert row.petaflop == pytest.approx(2 * whole.petaflop, rel=1e-12)
    # each checkpoint is opened once: thirty seconds, whatever the number of texts
    assert row.gpu_hours - 40 * 30 / 3600 == pytest.approx(2 * (whole.gpu_hours - 40 * 30 / 3600), rel=1e-12)
    assert row.hours == pytest.approx(max(row.gpu_hours / 4, row.download_hours), rel=1e-12)
    assert row.gb_disk == pytest.approx(8 * row.gb_each, rel=1e-12)


def test_hours_are_those_of_the_slower_of_downloading_and_measuring():
    slow, fast = (plan("pythia-1b", megabytes_a_second=speed) for speed in (10, 1000))
    assert slow.hours == slow.download_hours > slow.gpu_hours
    assert fast.hours == fast.gpu_hours > fast.download_hours == pytest.approx(slow.download_hours / 100, rel=1e-12)


@pytest.mark.parametrize(("name", "gpu", "fits"), [
    ("pythia-12b", "H100", "yes"), ("pythia-12b", "RTX4090", "no"), ("pythia-6.9b", "RTX4090", "yes"),
    ("tulu3.1-8b", "RTX3090", "yes")])
def test_whether_a_model_fits_into_one_gpu(name, gpu, fits):
    """In bfloat16 with a fifth for a batch: 28.4 GB of Pythia 12b, 16.5 of 6.9b, 19.3 of Llama 8B."""
    assert plan(name, gpu=gpu).fits == fits


def test_peaks_are_the_makers_for_dense_products():
    """989 and 312 TFLOPS: the larger numbers on the data sheets are with sparsity."""
    assert {name: gpu.peak / 1e12 for name, gpu in GPUS.items() if name[0] in "HA"} == {
        "H200": 989, "H100": 989, "A100-80GB": 312, "A100-40GB": 312}


@pytest.mark.parametrize(("gpu", "message"), [
    ("H1000", r"there is no GPU 'H1000' in the table\. Did you mean H100.*It has H200, H100,"),
    ("abacus", r"in the table\. It has H200")])
def test_an_unknown_gpu_is_an_error_that_names_the_known(gpu, message):
    with pytest.raises(ValueError, match=message):
        plan("pythia-1b", gpu=gpu)


# What is done, and where


def record(store, model, revision, status="measured", task=None):
    identity = {"model": model if revision else model.split("/")[-1], "revision": revision}
    asked = {"definition": {"task": task}} if task else {"probe": "p"}
    store.write(identity | asked, [{"status": status, "task": f"{task}_in_a_group"} if task else {"status": status}])


def test_what_the_store_holds_is_counted_off(tmp_path):
    store = Store(tmp_path)
    assert plan("pythia-14m", store=store).done == 0
    for revision in ("step0", "step1", "step143000"):
        record(store, "EleutherAI/pythia-14m", revision)
    record(store, "EleutherAI/pythia-14m", "step2", status="failed")
    record(store, "EleutherAI/pythia-31m", "step4")
    row, whole = plan("pythia-14m", store=store), plan("pythia-14m")
    assert (row.chosen, row.done) == (154, 3)
    assert row.gb_download == pytest.approx(151 * row.gb_each, rel=1e-12)
    assert row.gpu_hours == pytest.approx(whole.gpu_hours * 151 / 154, rel=1e-12)


def test_what_failed_in_part_is_not_done(tmp_path):
    store = Store(tmp_path)
    store.write({"model": "EleutherAI/pythia-14m", "revision": "step0", "probe": "p"},
                [{"rankme": 2.5}, {"status": "failed"}])
    assert plan("pythia-14m", store=store).done == 0


def test_what_is_done_is_all_that_is_asked_for(tmp_path):
    store = Store(tmp_path)
    for revision, tasks in (("step0", (None, "sciq", "piqa")), ("step1", (None, "sciq")), ("step2", ("sciq", "piqa"))):
        for task in tasks:
            record(store, "EleutherAI/pythia-14m", revision, task=task)

    def done(probes, *tasks):
        return plan("pythia-14m", store=store, probes=probes, tasks=tasks).done

    assert [done([PROBE]), done([PROBE], "sciq"), done([PROBE], "sciq", "piqa")] == [2, 2, 1]
    assert [done([], "sciq"), done([], "sciq", "piqa"), done([], "boolq")] == [3, 2, 0]


def test_what_tasks_compute_is_not_guessed(tmp_path):
    row = plan("pythia-14m", probes=[], tasks=["sciq"])
    assert row.gb_download > 0 and row.download_hours > 0
    assert all(math.isnan(row[name]) for name in ("petaflop", "gpu_hours", "hours"))


def test_main_revisions_are_counted_off_too(tmp_path):
    store = Store(tmp_path)
    for model in ("meta-llama/Llama-3.1-8B", "allenai/Llama-3.1-Tulu-3-8B-SFT"):
        record(store, model, None)
    record(store, "allenai/Llama-3.1-Tulu-3.1-8B", "step_40")
    row = plan("tulu3.1-8b", store=store)
    assert (row.published, row.done) == (64, 3)


def test_where_all_is_done_nothing_is_left_to_do(tmp_path):
    store = Store(tmp_path)
    record(store, "me/model", None)
    row = plan(one({}), store=store)
    assert (row.done, row.gb_download, row.gb_disk, row.petaflop, row.hours) == (1, 0, 0, 0, 0)


def test_a_suite_of_unknown_shape_is_planned_without_numbers(tmp_path):
    row = plan(one({}))
    assert (row.published, row.chosen, row.fits) == (1, 1, "?")
    assert all(math.isnan(row[name]) for name in ("gb_each", "gb_download", "petaflop", "gpu_hours", "hours"))
    assert plan(one({"parameters": 10**9})).gb_each == 2 and math.isnan(plan(one({"parameters": 10**9})).petaflop)


def test_what_lies_here_is_not_downloaded(tmp_path, hub_cache):
    cache = hub_cache("me/run", {f"step{step}": {"config.json": b"{}"} for step in (1, 2, 3)})
    (tmp_path / "folder").mkdir()
    path = tmp_path / "mine.yaml"
    path.write_text(f"""
cached: {{repository: me/run, branch: "step{{step}}", cache_dir: "{cache}", shape: small}}
folder: {{repository: "{tmp_path / 'folder'}", shape: small}}
shapes: {{small: {{parameters: 1000000000, layers: 2, width: 8, vocabulary: 16}}}}
""")
    table = estimate(list(read_suites(path).values()), [PROBE], ask=False)
    assert table.chosen.tolist() == [3, 1]
    assert table.gb_download.tolist() == table.gb_disk.tolist() == table.download_hours.tolist() == [0, 0]
    assert (table.gpu_hours > 0).all() and (table.hours == table.gpu_hours).all()


def test_sizes_are_those_of_the_files_where_the_hub_answers_and_an_estimate_where_not(hub):
    content = {"config.json": b"{}", "model.safetensors": b"0" * 12_345, "optimizer.pt": b"0" * 10**5}
    for step in (0, 1, 2):
        hub.put("EleutherAI/pythia-14m", f"step{step}", content)
    row = plan("pythia-14m", ask=True)
    assert (row.published, row.sizes) == (3, "files")
    assert row.gb_each == pytest.approx(12_347e-9, rel=1e-12)
    assert row.gb_download == pytest.approx(3 * 12_347e-9, rel=1e-12)
    assert not any(request.method == "GET" and "/resolve/" in request.path for request in hub.requests)
    with hub.down():
        row = plan("pythia-14m", ask=True)
    assert (row.published, row.sizes) == (154, "estimated") and row.gb_each == 2 * 14_067_712 / 1e9


def test_several_suites_are_a_table_in_the_order_given():
    names = ["tulu3-8b", "pythia-70m", "olmo2-7b"]
    table = estimate([registered()[name] for name in names], [PROBE], ask=False)
    assert table.suite.tolist() == names and isinstance(table, pd.DataFrame)
    assert table.gb_each.tolist() == pytest.approx([2 * 8.030261248, 2 * 0.070426624, 4 * 7.298617344], rel=1e-12)


def test_one_suite_counts_as_a_list_of_one_and_names_are_refused():
    known = registered()["pythia-1b"]
    assert estimate(known, [PROBE], ask=False).equals(estimate([known], [PROBE], ask=False))
    for names in ("pythia-1b", ["pythia-1b"]):
        with pytest.raises(TypeError, match=r"expected suites, as suites.suite\(name\) opens them, got str"):
            estimate(names, [PROBE])


# What measures beside the spectrum take


def test_cka_takes_a_pass_more_and_keeps_states_within_the_budget():
    plain, compared = (plan("pythia-1b", measures=names) for names in (("rankme", "alpha"), ("rankme", "alpha", "cka")))
    assert (plain.extra_passes, plain.gb_states, compared.extra_passes) == (0, 0, 1)
    assert compared.gb_download == pytest.approx(plain.gb_download * 155 / 154)
    # seven pairs of matrices, two products of M x d x d for each, a product and a sum
    products = 154 * 7 * 2 * 2 * 15_000 * 2048**2
    assert compared.petaflop * 1e15 == pytest.approx(plain.petaflop * 1e15 * 155 / 154 + products, rel=1e-12)
    assert compared.gb_states == BUDGET / 1e9  # 154 x 123 MB would be 19 GB
    few = plan("pythia-1b", measures="cka", count=5)
    assert few.gb_states == pytest.approx(5 * 15_000 * 2048 * 4 / 1e9)
    # of 18 layers no four checkpoints' states fit into the budget: three are made anew for each
    crowded = plan("pythia-1b", measures="cka", layers="all")
    assert (crowded.extra_passes, crowded.gb_states) == (3 * 154, BUDGET / 1e9)


def test_layers_and_matrices_count():
    one_layer, all_of_them = (plan("pythia-1b", measures="anisotropy", layers=layers) for layers in (["final"], "all"))
    assert all_of_them.petaflop - one_layer.petaflop == pytest.approx(154 * 17 * 8 * 15_000 * 2048 / 1e15)
    plain, weights = plan("pythia-1b"), plan("pythia-1b", measures="weights")
    gram = 2 * 50304 * 2048**2 + 16 * (2 * 12 + 8) * 2048**3  # of the unembedding, and of all matrices, eigenvalues too
    assert weights.petaflop - plain.petaflop == pytest.approx(154 * gram / 1e15, rel=1e-9)


def test_what_was_measured_for_other_measures_is_not_done(tmp_path):
    store = Store(tmp_path)
    store.write({"model": "EleutherAI/pythia-1b", "revision": "step0", "probe": "p"}, [{"rankme": 1.0}])
    assert plan("pythia-1b", store=store).done == 1 and plan("pythia-1b", store=store, measures="cka").done == 0


def test_measures_of_a_suite_whose_shape_is_not_known_have_no_price():
    assert math.isnan(plan(one({}), measures="readout").gb_states)


def test_a_models_own_configuration_gives_the_published_shape():
    config = AutoConfig.for_model("gpt_neox", vocab_size=50304, hidden_size=2048, num_hidden_layers=16,
                                  num_attention_heads=8, intermediate_size=8192, dtype="float16")
    own, known = suite_of("me/model", config), registered()["pythia-1b"]
    assert own.shape["parameters"] == PYTHIA_1B[0] and own.shape["bytes_per_weight"] == 2
    assert {name: own.shape[name] for name in ("layers", "width", "vocabulary")} == {
        name: known.shape[name] for name in ("layers", "width", "vocabulary")}
    points = [Checkpoint("me/model", f"step{step}", step) for step in range(5)]
    row = plan(own, points=points, measures=["cka", "readout"])
    registered_one = plan("pythia-1b", count=5, measures=["cka", "readout"])
    same = ["chosen", "done", "gb_each", "petaflop", "extra_passes", "gb_states", "gpu_hours", "fits"]
    assert row[same].tolist() == registered_one[same].tolist()
    tied = AutoConfig.for_model("llama", vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                intermediate_size=16, pad_token_id=0, tie_word_embeddings=True)
    with torch.device("meta"):
        assert suite_of("me", tied).shape["parameters"] == AutoModelForCausalLM.from_config(tied).num_parameters()


def test_the_price_of_each_measure_adds_up_to_what_they_add_to_the_plan():
    own, names = registered()["pythia-1b"], ["rankme", "cka", "readout", "curvature"]
    costs = by_measure(own, PROBE, 154, names, ("final",)).set_index("measure")
    plain, asked = plan("pythia-1b"), plan("pythia-1b", measures=names)
    more = asked.petaflop - plain.petaflop * 155 / 154  # cka takes a pass more
    assert costs.petaflop.sum() == pytest.approx(more, rel=1e-9)  # a difference of two sums
    assert costs.petaflop["rankme"] == 0 and costs.extra_passes.to_dict() == dict.fromkeys(names, 0) | {"cka": 1}
    head = 2 * 50304 * 2048**2 + 9 * 2048**3 + 8 * 15_000 * 2048**2  # Gram matrix, its eigenvectors, and the shares
    assert costs.petaflop["readout"] == pytest.approx(154 * head / 1e15, rel=1e-12)
    assert by_measure(one({}), PROBE, 3, ["readout"], ("final",)).petaflop.isna().all()


def test_too_few_sequences_for_a_measure_are_refused_as_in_a_sweep():
    with pytest.raises(ValueError, match="intrinsic_dimension needs 100 sequences at least, got 50"):
        plan("pythia-1b", measures="intrinsic_dimension", probes=[replace(PROBE, sequences=50)])
