"""Sweeps of the hub, over the stand-in."""
import pandas as pd
import pytest
from standin_hub import tiny_model, tiny_tokenizer, fineweb
from reptrace.sweep import sweep

PYTHIA="EleutherAI/pythia-14m"
STEPS=(0,1,2,4,1000,3000)

@pytest.fixture
def world(hub):
    for step in STEPS:
        hub.put(PYTHIA, f"step{step}", tiny_model("gpt_neox", step) | tiny_tokenizer(pad=False))
    texts=[f"Document {k}. "+"alpha beta gamma delta epsilon "*(3+k%7) for k in range(120)]
    hub.put("HuggingFaceFW/fineweb","main",fineweb(texts),"datasets")
    return hub

def test_all(world, tmp_path):
    t=sweep("pythia-14m","hub:HuggingFaceFW/fineweb:sample-10BT",tmp_path,sequences=60,max_length=24,min_length=4,ranks=(2,8),progress=False)
    print(t[["model","revision","step","tokens","status","reason","rankme","weights"]].to_string())
    print([ (r.method,r.path,r.sent) if hasattr(r,'sent') else r for r in world.log][:60] if hasattr(world,'log') else '')
    assert (t.status=="measured").all()
