"""How much is computed together: on a CPU what suits its caches, elsewhere what fills the device.

Sizes follow from the kind of device alone, never from what is free on it at the time, so that the
same audit on the same kind of device gives the same bytes. They are powers of two of its total
memory, and leave most of it to the model and to what lies between its layers.
"""

from anamorph.machine.devices import memory_of
from anamorph.models.base import Model

BATCH_TOKENS = 4_096
BATCHES = 4  # as many for each of 1, 2 and 4 threads
MEMORY = 8 * 2**20  # bytes for the widest tensor of a stack: what stays in the cache is faster

STACK_SHARE = 64  # of a device's memory, one part for the widest tensor of a stack
BATCH_SHARE = 32  # and one for the widest of the model itself, which is mostly its logits
MOST_TOKENS = 2**16  # of a batch, where little is left to be gained


def usual_memory(model: Model) -> int:
    """Bytes for the widest tensor of a stack of proxies."""
    total = memory_of(model.device)
    return MEMORY if total is None else _power(total // STACK_SHARE)


def usual_batch_tokens(model: Model) -> int:
    """Tokens of a batch, padding included; on a CPU those with which the model is fastest."""
    total = memory_of(model.device)
    if total is None:
        return model.batch_tokens
    tokens = _power(total // BATCH_SHARE // (4 * model.vocabulary))
    return max(model.batch_tokens, min(tokens, MOST_TOKENS))


def usual_batches(model: Model) -> int:
    """Of how many batches there are a multiple: as many for every thread, where there are some."""
    return BATCHES if model.device.type == "cpu" else 1


def _power(number: int) -> int:
    """The largest power of two that is no larger."""
    return 1 << (max(1, number).bit_length() - 1)
