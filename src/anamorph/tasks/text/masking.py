"""Which tokens are hidden from a masked language model, to be predicted from both sides."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.tasks.base import Tokens
from anamorph.tasks.ragged import Rows
from anamorph.tasks.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Mask:
    """How tokens are hidden.

    Attributes:
        token: the id of the mask token.
        name: its name.
        share: of the tokens of each sequence that may be hidden.
        special: ids that are never hidden.
    """

    token: int
    name: str
    share: float
    special: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, share: float) -> "Mask":
        """That of a tokenizer.

        Raises:
            AnamorphError: if it has no mask token.
        """
        token = getattr(tokenizer, "mask_token_id", None)
        if token is None:
            raise AnamorphError(
                "masked hides tokens behind the tokenizer's mask token, and it has none: it is not "
                "that of a masked model. Leave out masked to predict the next token."
            )
        special = tuple(sorted(getattr(tokenizer, "all_special_ids", ())))
        return cls(token, str(tokenizer.convert_ids_to_tokens([token])[0]), share, special)

    def choose(
        self,
        tokens: Tokens,
        offsets: NDArray[np.int64],
        allowed: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> NDArray[np.bool_]:
        """[tokens] which are hidden: the share of those allowed in each sequence, at least one.

        Args:
            tokens: [tokens] all sequences one after the other.
            offsets: [sequences + 1] where each begins, and the end.
            allowed: [tokens] which may be hidden, unless they are special.
            rng: chooses.
        """
        allowed = allowed & ~np.isin(tokens, self.special)
        rows = Rows(offsets)
        sequence = rows.owner[allowed]
        counts = np.bincount(sequence, minlength=len(rows))
        hidden = np.maximum(1, np.rint(self.share * counts)).astype(np.int64)
        order = np.lexsort((rng.random(len(sequence)), sequence))  # shuffled within each sequence
        rank = Rows.of(counts).position
        chosen = np.zeros(len(tokens), dtype=np.bool_)
        chosen[np.flatnonzero(allowed)[order[rank < hidden[sequence]]]] = True
        return chosen

    def sentence(self) -> str:
        """What a report says of it, behind how sequences are made."""
        return (
            f" Of each, {self.share:.0%} of the tokens, at least one, are hidden behind "
            f"{self.name} and predicted from both sides."
        )
