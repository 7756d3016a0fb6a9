"""Small GGUF files of families that only llama.cpp is asked to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter


def write(writer: GGUFWriter, tensors: dict[str, np.ndarray]) -> None:
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gemma3(path: Path) -> None:
    """Two layers, the first with a window of 16 positions."""
    width, hidden, heads, vocab, dim = 64, 128, 2, 272, 32
    random_ = np.random.default_rng(0)
    writer = GGUFWriter(path, "gemma3")
    writer.add_block_count(2)
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(1)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(16)
    writer.add_vocab_size(vocab)
    matrices = {"token_embd": (vocab, width)}
    norms = {"output_norm": width}
    for layer in range(2):
        block = f"blk.{layer}."
        matrices |= {
            f"{block}attn_q": (heads * dim, width),
            f"{block}attn_k": (dim, width),
            f"{block}attn_v": (dim, width),
            f"{block}attn_output": (width, heads * dim),
            f"{block}ffn_gate": (hidden, width),
            f"{block}ffn_up": (hidden, width),
            f"{block}ffn_down": (width, hidden),
        }
        wide = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        norms |= {f"{block}{name}": width for name in wide}
        norms |= {f"{block}{name}": dim for name in ("attn_q_norm", "attn_k_norm")}
    tensors = {
        f"{name}.weight": random_.standard_normal(shape, np.float32) * np.float32(0.3)
        for name, shape in matrices.items()
    }
    tensors |= {f"{name}.weight": np.ones(size, np.float32) for name, size in norms.items()}
    write(writer, tensors)


def write_mamba(path: Path) -> None:
    width, inner, state, rank, conv, vocab = 32, 64, 16, 2, 4, 64
    writer = GGUFWriter(path, "mamba")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(conv)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_vocab_size(vocab)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab, width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ssm_in.weight": (2 * inner, width),
        "blk.0.ssm_conv1d.weight": (inner, conv),
        "blk.0.ssm_conv1d.bias": (inner,),
        "blk.0.ssm_x.weight": (rank + 2 * state, inner),
        "blk.0.ssm_dt.weight": (inner, rank),
        "blk.0.ssm_dt.bias": (inner,),
        "blk.0.ssm_a": (inner, state),
        "blk.0.ssm_d": (inner,),
        "blk.0.ssm_out.weight": (width, inner),
    }
    write(writer, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
