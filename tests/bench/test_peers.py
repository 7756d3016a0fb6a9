"""The peers whose library is here, each in this process."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.bench.conftest import BENCH
from tests.tiny import write_tiny


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_generate_computes_in_the_type_of_draftds_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.syspath_prepend(str(BENCH / "peers"))
    peer: Any = importlib.import_module("hf_generate")
    seen = SimpleNamespace(util=SimpleNamespace(find_spec=bool))
    monkeypatch.setattr(peer, "importlib", seen)  # scikit-learn need not be here
    found = []
    load = peer.AutoModelForCausalLM.from_pretrained

    def loaded(path: str, **options: Any) -> Any:
        found.append(load(path, **options))
        return found[-1]

    monkeypatch.setattr(peer.AutoModelForCausalLM, "from_pretrained", loaded)
    files = {part: str(write_tiny(tmp_path / part)) for part in ("target", "draft")}
    threads = torch.get_num_threads()
    offered = peer.offer(files | {"threads": threads, "dtype": dtype, "device": "cpu"})
    answer = offered["plain"]()
    offered["assisted"]()
    assert [model.dtype for model in found] == [getattr(torch, dtype)] * 2, "one target, one assistant"
    made = answer({"text": "Three colours", "max_tokens": 4, "temperature": 0.0, "seed": 1})
    assert made["tokens"] == made["rounds"] == 4
