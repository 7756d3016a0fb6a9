"""The simulated places: what a pass and a drafted token would take there, and who says so."""

from __future__ import annotations

from dataclasses import dataclass

# Speeds that others measured, tokens a second of one answer:
# Qwen2.5 Speed Benchmark (qwen.readthedocs.io, benchmark/speed_benchmark): vLLM 0.6.3, input length 1.
QWEN = "Qwen2.5 Speed Benchmark, A100 80GB, vLLM, BF16"
QWEN_DRAFT = 1000 / 311.55  # Qwen2.5-0.5B-Instruct
# XiongjieDai/GPU-Benchmarks-on-LLM-Inference: llama.cpp, LLaMA 3, tg 1024; a further row by its pp 1024.
DAI = "XiongjieDai/GPU-Benchmarks-on-LLM-Inference, llama.cpp, LLaMA 3"
A100_FLOPS = 312e12  # dense bf16, the maker's
SHARE = 0.5  # of which a further row is thought to reach


@dataclass(frozen=True, slots=True)
class Place:
    """A pair and a machine for it; `basis`: maker's figures or a measurement that somebody published."""

    name: str
    basis: str  # "maker" or "published"
    source: str  # of the pass
    pass_ms: float  # of one row
    row_ms: float  # of each row after the first
    draft_ms: float  # of a drafted token
    read_ms: float  # of each token more that the draft reads at once
    drafting: str  # where the draft's figures are from


def computing(parameters: float, flops: float) -> float:
    """Milliseconds that a row more takes, two operations a parameter; assumed where nobody published it."""
    return 1000 * 2 * parameters / (SHARE * flops)


@dataclass(frozen=True, slots=True)
class Drafting:
    """Milliseconds of a drafted token, and of each token more that the draft reads at once."""

    token: float
    read: float
    source: str


BESIDE = Drafting(1.5, 0.02, "assumed")
ON_THIS_CPU = Drafting(20.0, 4.0, "about what this project's machine takes")
PUBLISHED = Drafting(QWEN_DRAFT, 0.02, f"0.5B: {QWEN}, 311.55 tokens/s; reading assumed")


def maker(name: str, size: float, bandwidth: float, row_ms: float, draft: Drafting) -> Place:
    """A pass reads all weights once, as fast as the memory's maker says."""
    source = f"{size / 1e9:.1f} GB at {bandwidth / 1e9:.0f} GB/s; row assumed"
    pass_ms = 1000 * size / bandwidth
    return Place(name, "maker", source, pass_ms, row_ms, draft.token, draft.read, draft.source)


def published(name: str, source: str, speed: float, row_ms: float, draft: Drafting) -> Place:
    """A pass takes what one token took somebody who published it."""
    says = f"{source}, {speed} tokens/s"
    return Place(name, "published", says, 1000 / speed, row_ms, draft.token, draft.read, draft.source)


PLACES = (
    maker("8B bf16 on an RTX 4090, draft beside it", 16.1e9, 1008e9, 0.1, BESIDE),
    maker("8B bf16 on an RTX 4090, draft on this CPU", 16.1e9, 1008e9, 0.1, ON_THIS_CPU),
    maker("14B bf16 on an RTX A6000, draft beside it", 29.5e9, 768e9, 0.2, BESIDE),
    maker("70B bf16 on two A100 80GB, draft beside them", 141e9, 2 * 2039e9, 0.45, BESIDE),
    maker("70B bf16 on two A100 80GB, draft on this CPU", 141e9, 2 * 2039e9, 0.45, ON_THIS_CPU),
    maker("70B 4-bit in dual-channel DDR5, draft beside it", 40e9, 80e9, 50.0, Drafting(8.0, 1.0, "assumed")),
    published("7B bf16 on an A100", QWEN, 84.28, computing(7.6e9, A100_FLOPS), PUBLISHED),
    published("14B bf16 on an A100", QWEN, 46.30, computing(14.7e9, A100_FLOPS), PUBLISHED),
    published("72B bf16 on four A100", QWEN, 31.37, computing(72.7e9, 4 * A100_FLOPS), PUBLISHED),
    published("8B F16 on an RTX 4090", DAI, 54.34, 1000 / 9056.26, PUBLISHED),
    published("70B Q4_K_M on two RTX 4090", DAI, 19.06, 1000 / 905.38, PUBLISHED),
)
