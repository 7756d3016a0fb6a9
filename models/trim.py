"""A GGUF file without the tokens of scripts that nobody here writes in.

A head has a row for each token and all are read for each drafted one: a sixth of a 1.5B model in 4 bits. To
keep fewer is frequency-ranked speculative sampling (FR-Spec: Zhao et al. 2025, arXiv 2502.14856). Here whole
scripts go, as a text has none of their tokens or many: so a draft that is nearly always right stays so.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from draftd.models.gguf_tensors import read_array
from draftd.models.quantize import staged
from draftd.models.translation import ABSENT

# Scripts that may be left out, and the languages that are written in them.
LANGUAGES = {
    "Arabic": "ar ckb fa ps sd ug ur",
    "Armenian": "hy",
    "Bengali": "as bn",
    "CJK": "ja wuu yue zh",
    "Cyrillic": "be bg kk ky mk mn ru sr tg tt uk uz",
    "Devanagari": "hi kok mai mr ne sa",
    "Ethiopic": "am ti",
    "Georgian": "ka",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Hangul": "ko",
    "Hebrew": "he yi",
    "Kannada": "kn",
    "Khmer": "km",
    "Lao": "lo",
    "Malayalam": "ml",
    "Myanmar": "my",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
}
_JAPANESE = ("HIRAGANA", "KATAKANA")  # written together with Chinese characters
_LOCALE = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LC_CTYPE", "LANG")
_KEPT, _ROWS = "draftd.kept_tokens", "draftd.rows"
_EVEN = 32  # rows of a head are a multiple of this, as llama.cpp's repacked weights want them
WORTH = 0.9  # of the tokens at most are left where it is worth a file


class Trimmed:
    """Between a target's tokens and those that a trimmed draft has kept; one of the two for each other."""

    def __init__(self, kept: NDArray[np.int32], rows: int, target_vocab: int) -> None:
        self.kept, self.rows = kept, rows
        absent = len(kept)  # an id that the draft does not have
        self._sources = np.full(max(rows, target_vocab), absent, np.int64)
        self._sources[kept] = np.arange(absent)
        self._ids: list[int] = self._sources.tolist()
        self._sources = self._sources[:target_vocab]

    def row(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """The draft's logits as a row of the target's."""  # [kept] -> [target]
        return np.append(row, ABSENT)[self._sources]

    def draft_id(self, token: int) -> int | None:
        """The draft's id of a target's token, None if it was left out."""
        found = self._ids[token]
        return found if found < len(self.kept) else None

    def draft_ids(self, tokens: Sequence[int]) -> list[int]:
        """A sequence in the draft's ids; one that was left out gets an id beyond its vocabulary."""
        return [self._ids[token] for token in tokens]


@dataclass(frozen=True, slots=True)
class Choice:
    """What to keep of a vocabulary: ids in rising order, and the scripts that go, the largest first."""

    kept: NDArray[np.int32]
    scripts: tuple[str, ...]


def scripts(text: str) -> frozenset[str]:
    """Those of LANGUAGES' scripts that a text has letters of."""
    return frozenset(found for letter in set(text) if (found := _script(letter)))


def of_locale(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The scripts of the languages that this system is set to."""
    names = [name for key in _LOCALE for name in environment.get(key, "").split(":")]
    codes = {name.replace(".", "_").partition("_")[0].lower() for name in names}
    return frozenset(script for script, languages in LANGUAGES.items() if codes & set(languages.split()))


def choose(texts: Sequence[bytes], used: Collection[str]) -> Choice | None:
    """Which tokens to keep, of those with these texts; None if too few would go to be worth it.

    Kept are all without a letter of a script that is not `used`, control tokens too, which have no text.
    """
    seen = [scripts(text.decode("utf-8", "ignore")) - set(used) for text in texts]
    kept = [token for token, foreign in enumerate(seen) if not foreign]
    gone = [token for token, foreign in enumerate(seen) if foreign]
    kept = sorted(kept + gone[: -len(kept) % _EVEN])
    if len(kept) > WORTH * len(texts):
        return None
    counts = Counter(script for foreign in seen for script in sorted(foreign))
    return Choice(np.array(kept, np.int32), tuple(script for script, _ in counts.most_common()))


def write(source: Path, out: Path, choice: Choice) -> None:
    """Write a GGUF as one of fewer tokens and without a tokenizer; raises DiskFull, InvalidConfig."""
    reader = GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    rows = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight").data.shape[0]
    with staged(out, source.stat().st_size) as staging:
        writer = GGUFWriter(staging, architecture)
        for name, field in reader.fields.items():
            if name.startswith(("GGUF.", "tokenizer.")) or name == "general.architecture":
                continue
            kind, *inner = field.types[:1] + field.types[1:][-1:]
            writer.add_key_value(name, field.contents(), kind, *inner)
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(len(choice.kept))
        writer.add_key_value(_KEPT, choice.kept.tolist(), GGUFValueType.ARRAY, GGUFValueType.INT32)
        writer.add_key_value(_ROWS, [rows], GGUFValueType.ARRAY, GGUFValueType.INT32)
        for tensor in reader.tensors:
            by_token = tensor.name.startswith(("token_embd.", "output."))
            data = tensor.data[choice.kept] if by_token else tensor.data
            writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def read(path: Path, target_vocab: int) -> Trimmed | None:
    """What a file has kept for a target with rows of this width; None if it was not trimmed."""
    if (kept := read_array(path, _KEPT)) is None or (rows := read_array(path, _ROWS)) is None:
        return None
    return Trimmed(kept, int(rows[0]), target_vocab)


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
    """A letter's script if it is one of LANGUAGES', else empty."""
    if not letter.isalpha():
        return ""
    name = unicodedata.name(letter, "").partition(" ")[0]
    if name.startswith(_JAPANESE):
        return "CJK"
    return next((script for script in LANGUAGES if script.upper() == name), "")
