"""Peers in this process, some with what stands for their library."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

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
    assert [length for _, length in made["arrivals"]][-1] == len(made["text"].rstrip("\ufffd"))
    assert len(made["arrivals"]) == 4


def test_llama_cpps_server_drafts_by_its_own_limits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    library = MagicMock(Server=made.append)
    library.CommonParams = lambda: MagicMock(**{"speculative.draft.n_max": 3, "speculative.draft.p_min": 0.0})
    library.common_speculative_type = [SimpleNamespace(name="COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE")]
    monkeypatch.setitem(sys.modules, "xllamacpp", library)
    monkeypatch.syspath_prepend(str(BENCH / "peers"))
    peer: Any = importlib.import_module("llama_server")
    del sys.modules["llama_server"]  # with what stands for its library
    files = {"target_gguf": "t", "draft_gguf": "d", "tuned_gguf": "u", "context": 9, "threads": 1}
    modes = [f"draft model{more}" for more in ("", " default", " tuned")]
    offered = peer.offer(files)
    for mode in modes:
        offered[mode]()
    drafts = [each.speculative.draft for each in made]
    assert [each.mparams.path for each in drafts] == ["d", "d", "u"]
    assert [(each.n_max, each.p_min) for each in drafts] == [(8, 0.5), (3, 0.0), (8, 0.5)]


def test_llama_cpps_server_is_heard_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"predicted_n": 3, "draft_n": 2, "draft_n_accepted": 1}

    def said(*chunks: Any) -> Any:
        """What the peer makes of these chunks."""

        def stream(body: dict[str, Any], seen: Any) -> None:
            assert body["stream"]
            for chunk in chunks:
                seen(chunk)

        library = MagicMock(common_speculative_type=[])
        library.Server.return_value.handle_chat_completions = stream
        monkeypatch.setitem(sys.modules, "xllamacpp", library)
        peer: Any = importlib.import_module("llama_server")
        del sys.modules["llama_server"]  # with what stands for its library
        answer = peer.offer({"target_gguf": "t", "draft_gguf": "d", "context": 9, "threads": 1})["plain"]()
        return answer({"messages": [], "max_tokens": 3, "temperature": 0.0, "seed": 1})

    def chunk(content: str | None, **more: Any) -> dict[str, Any]:
        return {"choices": [{"delta": {"content": content}}], **more}

    monkeypatch.syspath_prepend(str(BENCH / "peers"))
    made = said(chunk(None), chunk("Red"), json.dumps(chunk(" is")), chunk("", timings=times))
    assert (made["text"], made["tokens"], made["drafted"], made["accepted"]) == ("Red is", 3, 2, 1)
    assert [length for _, length in made["arrivals"]] == [3, 6]
    with pytest.raises(RuntimeError, match=r"^the stream ended without its times: \[\{'code': 400\}\]$"):
        said({"code": 400})
