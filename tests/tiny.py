"""Tiny random models of real families with a byte-level tokenizer, written as transformers directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "gemma3")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, IM_START, IM_END = 256, 257, 258  # ids of the specials; ids 0 to 255 are the bytes
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen2.5 writes them: the tools in the system message, each call and each result between marks of its own.
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content %}"
    "{{ message.content }}{% if message.tool_calls %}{{ '\\n' }}{% endif %}{% endif %}"
    '{% for call in message.tool_calls %}<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL_CALL = (
    259  # the id of <tool_call>, an ordinary token of vocabularies with tools; behind it that of its end
)


def write_tiny(
    path: Path,
    family: str = "qwen2",
    seed: int = 0,
    layers: int = 2,
    *,
    tied: bool = False,
    vocab: int = 272,
    context: int = 1024,
    window: int = 16,
    scale: float = 0.3,
    noise: float = 0.0,
    tools: bool = False,
    hidden: int = 64,
) -> Path:
    """Write a tiny fp32 model and its tokenizer to `path`; the same arguments give the same weights anywhere.

    `noise` adds that share of other random weights: a draft that agrees with the model often, not always.
    """
    path.mkdir(parents=True, exist_ok=True)
    config = _config(family, layers, tied, vocab, context, window, hidden)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    fill(model, seed, scale, noise)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=[IM_END, END_OF_TEXT], bos_token_id=END_OF_TEXT
    )
    model.save_pretrained(path)
    write_tokenizer(path, tools)
    return path


def fill(model: torch.nn.Module, seed: int, scale: float = 0.3, noise: float = 0.0) -> None:
    """Set every parameter, in the order of names, from a seed."""
    random = torch.Generator().manual_seed(seed)
    other = torch.Generator().manual_seed(seed + 1_000_003)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            values = torch.randn(parameter.shape, generator=random)
            if noise:
                values += noise * torch.randn(parameter.shape, generator=other)
            if parameter.ndim >= 2:
                parameter.copy_(values * scale)
            else:  # norms (one, or zero where the family adds one) and biases stay near what they are
                parameter.add_(values * 0.1)


def write_tokenizer(path: Path, tools: bool = False) -> Path:
    """Write the byte-level tokenizer: a token a byte, three specials, no merges, a ChatML template.

    With tools: a template that takes them, and the marks of a call as tokens that are text, as in Qwen2.5.
    """
    path.mkdir(parents=True, exist_ok=True)
    alphabet = byte_alphabet()
    vocab = {character: byte for byte, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    if tools:
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<tool_call>", "</tool_call>")])
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TOOL_TEMPLATE if tools else CHAT_TEMPLATE,
    )
    fast.save_pretrained(path)
    return path


def retokenize(source: Path, path: Path, merges: Sequence[tuple[str, str]] = (), seed: int = 1) -> Path:
    """The model in `source`, a qwen2, under another tokenizer: its ids shuffled, and tokens of merges."""
    shutil.copytree(source, path)
    order = torch.randperm(IM_END + 1, generator=torch.Generator().manual_seed(seed))
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    specials = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocab = {piece: int(order[id_]) for piece, id_ in (tokenizer["model"]["vocab"] | specials).items()}
    vocab |= {"".join(pair): IM_END + 1 + index for index, pair in enumerate(merges)}
    tokenizer["model"] |= {"vocab": vocab, "merges": [list(pair) for pair in merges]}
    for token in tokenizer["added_tokens"]:
        token["id"] = vocab[token["content"]]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    tensors = load_file(path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name][order] = tensors[name][: len(order)].clone()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    for file in (path / "config.json", path / "generation_config.json"):
        settings = json.loads(file.read_text())
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if isinstance(ids := settings.get(key), list):
                settings[key] = [int(order[id_]) for id_ in ids]
            elif ids is not None:
                settings[key] = int(order[ids])
        file.write_text(json.dumps(settings))
    return path


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in GPT-2's byte-level vocabularies."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


def cyrillic() -> list[tuple[str, str]]:
    """Merges that make a token of each of the 64 letters whose first byte is D0."""
    alphabet = byte_alphabet()
    return [(alphabet[0xD0], alphabet[0x80 + index]) for index in range(64)]


def _config(family: str, layers: int, tied: bool, vocab: int, context: int, window: int, hidden: int) -> Any:
    if family == "gpt2":
        return AutoConfig.for_model(
            "gpt2",
            vocab_size=vocab,
            n_embd=hidden,
            n_layer=layers,
            n_head=2,
            n_inner=2 * hidden,
            n_positions=context,
            tie_word_embeddings=tied,
            bos_token_id=END_OF_TEXT,
            eos_token_id=IM_END,
        )
    options: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": hidden // 2,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": IM_END,
        "pad_token_id": END_OF_TEXT,
    }
    if family == "gemma3":
        kinds = ["sliding_attention", "full_attention"]
        options |= {"sliding_window": window, "layer_types": [kinds[layer % 2] for layer in range(layers)]}
        return AutoConfig.for_model("gemma3_text", **options, query_pre_attn_scalar=hidden // 2)
    if family not in FAMILIES:
        raise ValueError(f"no tiny {family}; there are {', '.join(FAMILIES)}")
    return AutoConfig.for_model(family, **options)
