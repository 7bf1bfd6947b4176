"""Whose tokens some are: what has to agree between a tokenizer, stored tokens and a model of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.errors import DataError

STORED_CODES = 2**16  # tokens are stored as uint16


@dataclass(frozen=True)
class TokenKind:
    """What tokens are.

    Args:
        codes: how many there are: tokens are 0 to codes - 1.
        grid: (h, w), rows and columns of the tokens of an image.
        tokenizer_sha256: fingerprint of the tokenizer's weights; None: unknown.
    """

    codes: int
    grid: tuple[int, int]
    tokenizer_sha256: str | None

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return self.grid[0] * self.grid[1]

    def to_json(self) -> dict[str, Any]:
        """As an index, a manifest or a `config.json` keeps it."""
        return {"codes": self.codes, "grid": list(self.grid), "tokenizer_sha256": self.tokenizer_sha256}

    @classmethod
    def from_json(cls, values: Any, where: str) -> TokenKind:
        """The inverse of `to_json`. Raises: DataError if it is something else."""
        try:
            height, width = values["grid"]
            return cls(int(values["codes"]), (int(height), int(width)), values["tokenizer_sha256"])
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(
                f"{where}: does not say whose tokens these are (codes, grid, tokenizer_sha256); write them again with "
                "the tool that did."
            ) from error

    def require_fit(self, where: str, vocab_size: int, block_size: int) -> None:
        """Refuse tokens that a network cannot be trained on.

        Args:
            where: what makes or holds the tokens.
            vocab_size, block_size: codes and tokens of an image that the network knows.

        Raises: DataError that names both numbers.
        """
        if self.codes != vocab_size:
            raise DataError(
                f"{where}: its tokens are of a codebook of {self.codes} codes, but network.vocab_size of this run's "
                f"configuration is {vocab_size}; set it to {self.codes}, or use another tokenizer."
            )
        if self.tokens != block_size or self.grid[0] != self.grid[1]:
            raise DataError(
                f"{where}: has {self.grid[0]} x {self.grid[1]} tokens per image, but network.block_size of this run's "
                f"configuration is {block_size}, those of a square grid; set it to the tokens of an image, or use "
                "images of another size."
            )
