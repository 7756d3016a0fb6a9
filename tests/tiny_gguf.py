"""The tiny transformers model of tests/tiny.py as a GGUF: same weights, same tokenizer, same template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from safetensors.numpy import load_file

Quantised = Literal["q8_0"] | None

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model_dir: Path, out: Path, quantised: Quantised = None) -> Path:
    """Write a qwen2 directory made by `write_tiny` as a GGUF in F32, or with its matrices in Q8_0."""
    config = json.loads((model_dir / "config.json").read_text())
    if config["model_type"] != "qwen2":
        raise ValueError(f"only the tiny qwen2 can be written as GGUF, not {config['model_type']}")
    writer = GGUFWriter(out, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_file_type(0 if quantised is None else 7)
    _add_tokenizer(writer, model_dir, config)
    for name, tensor in load_file(model_dir / "model.safetensors").items():
        if quantised is None or tensor.ndim == 1:
            writer.add_tensor(_gguf_name(name), tensor.astype(np.float32))
        else:
            data = quants.quantize(tensor.astype(np.float32), GGMLQuantizationType.Q8_0)
            writer.add_tensor(_gguf_name(name), data, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[part]}.{kind}"
    return f"{_NAMES[stem]}.{kind}"


def _add_tokenizer(writer: GGUFWriter, model_dir: Path, config: dict[str, Any]) -> None:
    tokenizer = json.loads((model_dir / "tokenizer.json").read_text())
    settings = json.loads((model_dir / "tokenizer_config.json").read_text())
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    specials = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    names = {index: name for name, index in (ids | specials).items()}
    texts = [names.get(index, f"[PAD{index}]") for index in range(config["vocab_size"])]
    texts[-1] = texts[-3] + texts[-2]  # GGUF cannot hold an empty list of merges: this one never applies
    types = [TokenType.NORMAL if index in names else TokenType.UNUSED for index in range(len(texts))]
    for token in tokenizer["added_tokens"]:
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")  # without merges no split of the text changes its tokens
    writer.add_token_list(texts)
    writer.add_token_types(types)
    merges = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    writer.add_token_merges(merges or [f"{texts[-3]} {texts[-2]}"])
    writer.add_eos_token_id(specials[settings["eos_token"]])
    writer.add_pad_token_id(specials[settings["pad_token"]])
    writer.add_add_bos_token(False)
    template = model_dir / "chat_template.jinja"
    writer.add_chat_template(template.read_text() if template.exists() else settings["chat_template"])
