"""Text <-> token ids, from a bundle's tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusar_edge.errors import BundleError


class Tokenizer:
    """A Hugging Face `tokenizers` tokenizer."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as HfTokenizer

        try:
            self._tokenizer: Any = HfTokenizer.from_file(str(path))
        except Exception as problem:  # `tokenizers` raises bare Exception
            raise BundleError(f"{path}: not a tokenizer file ({problem}); build the bundle again") from None
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.size = max(ids, default=-1) + 1
        """One above the largest id."""

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of the chat template: special tokens in it are special tokens."""
        self._tokenizer.encode_special_tokens = False
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text from outside: what looks like a special token is encoded as the characters it is made of."""
        self._tokenizer.encode_special_tokens = True
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token(self, id: int) -> str:
        """Text of one token; U+FFFD where it is a part of a character."""
        return str(self._tokenizer.decode([id], skip_special_tokens=True))

    def decode(self, ids: list[int]) -> str:
        """Text without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
