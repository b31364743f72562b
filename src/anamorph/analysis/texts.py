"""What the report shows as text: functions, with what model and proxies predict at every character.

For tasks whose vocabulary is characters.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from anamorph.auditing.changed import in_place
from anamorph.auditing.samples import scored_sequences
from anamorph.auditing.sizes import BATCH_TOKENS
from anamorph.faithfulness.divergences import jensen_shannon
from anamorph.models.base import Batch, Model
from anamorph.simplifications import FittedProxy
from anamorph.tasks import Task
from anamorph.tasks.batches import collate, plan

SHOWN = 20  # sequences a split
MOST_PROXIES = 3
TOP = 3  # predictions of each
OTHER = "\N{SYMBOL FOR NULL}"
BYTES = {f"{byte:02x}" for byte in range(256)}
_ASCII = re.compile(r"[0-7][0-9a-f]")


@torch.inference_mode()
def functions(model: Model, task: Task, proxies: Sequence[FittedProxy]) -> pl.DataFrame:
    """Sequences of every split with the predictions of model and proxies.

    Args:
        model: in inference mode.
        task: whose vocabulary is what is shown.
        proxies: without the identity; the first few are taken.

    Returns:
        a row a split, sequence and proxy: `simplification`, `split`, `sequence`; `text`, a
        character for every position but the first; `jsd`, in bits; `model` and `proxy`, the three
        likeliest characters of each position; `model_p` and `proxy_p`, their per cent.
    """
    rows: list[dict[str, Any]] = []
    of_token = glyphs(task.vocabulary)

    def written(ids: Any) -> str:
        return "".join(of_token[i] for i in ids.flatten().tolist())

    chosen = [f for f in proxies if f.proxy.attachments][:MOST_PROXIES]
    for split in task.evaluated:
        part = scored_sequences(split, SHOWN)
        order = np.argsort(part.lengths, kind="stable")
        for some in plan(part.lengths[order], BATCH_TOKENS):
            batch = collate(part, order[some])
            own = _predictions(model, batch, None)
            for fitted in chosen:
                other = _predictions(model, batch, fitted)
                for place, sequence in enumerate(order[some].tolist()):
                    length = int(part.lengths[sequence]) - 1
                    ours, theirs = own[place, :length], other[place, :length]
                    p, p_top = ours.topk(TOP)
                    q, q_top = theirs.topk(TOP)
                    start = int(part.offsets[sequence]) + 1
                    rows.append(
                        {
                            "simplification": str(fitted.proxy),
                            "split": split.name,
                            "sequence": sequence,
                            "text": written(part.tokens[start : start + length]),
                            "jsd": jensen_shannon(ours, theirs).tolist(),
                            "model": written(p_top),
                            "proxy": written(q_top),
                            "model_p": (100 * p).round().int().flatten().tolist(),
                            "proxy_p": (100 * q).round().int().flatten().tolist(),
                        }
                    )
    return pl.DataFrame(rows).sort("split", "sequence", maintain_order=True)


def glyphs(vocabulary: Sequence[str]) -> list[str]:
    """A character for every token: itself, or that of its byte; a symbol for what is neither.

    Empty if sequences are no text: most tokens are no characters, and they are not the bytes, whose
    names are 00 to ff.
    """
    if set(vocabulary) >= BYTES:
        return [chr(int(name, 16)) if _ASCII.fullmatch(name) else OTHER for name in vocabulary]
    found = [name if len(name) == 1 else OTHER for name in vocabulary]
    return found if 2 * found.count(OTHER) < len(found) else []


def _predictions(model: Model, batch: Batch, fitted: FittedProxy | None) -> Tensor:
    """[batch, position, vocabulary] probabilities of the model, or of a proxy, on the host."""
    with in_place(model, fitted) as edits:
        state = model.run(batch.to(model.device), edits).state
    return model.logits(state)[0].float().softmax(-1).cpu()
