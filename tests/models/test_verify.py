"""The coupled verifier: enumerated, and equal to sampling without a draft whatever was drafted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from draftd.models.sampling import Sampling, choose
from draftd.models.verify import verify
from tests.fakes import TableTarget


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_draft_gives_the_targets_own_tokens(temperature: float) -> None:
    """Vocabulary 3, up to 3 drafted tokens, all of them: the output is a prefix of the plain one."""
    target = TableTarget(vocab=3, seed=1)
    for seed in range(50):
        sampling = Sampling(temperature, seed=seed)
        plain = [0, 1]
        for _ in range(4):
            plain.append(choose(target.row(plain), sampling, len(plain)))
        for length in range(4):
            for drafted in itertools.product(range(3), repeat=length):
                tokens = [0, 1, *drafted]
                rows = np.stack([target.row(tokens[: 2 + i]) for i in range(length + 1)])
                got = verify(rows, drafted, sampling, position=2)
                assert got == plain[2 : 2 + len(got)]
                agreed = next((i for i in range(length) if drafted[i] != plain[2 + i]), length)
                assert len(got) == agreed + 1
