"""Training on a device: a step is captured once for a shape of batches, and then replayed.

A step of a small model is hundreds of kernels that take less time than it takes to launch them one
by one. Replayed from a CUDA graph they are launched at once. A graph holds for one shape, so that
batches are padded to few shapes; padding does not count, in the loss or anywhere else.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from anamorph.models.decoder import Decoder
from anamorph.tasks.base import Split
from anamorph.training.gradient import set_gradient

Work = Callable[[], object]

Capture = Callable[[Work], Work]
"""Makes of work on fixed memory what does it again; the work need not be done meanwhile."""


class CudaGraphs:
    """Captures work in CUDA graphs, which share the memory of what they compute on the way.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        """See `Capture`; does not do the work."""
        graph = torch.cuda.CUDAGraph()
        captured = torch.cuda.graph(graph, self.pool, self.stream, "thread_local")
        now = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(now), captured:  # the first goes back to it if the second fails
            work()
        return graph.replay


class Replayed:
    """Steps of a training on a device, that nothing waits for.

    The data lie there as a whole; of a batch only where its sequences begin, and how long they are,
    is sent. The first batch of a shape is learnt from step by step, which readies all that a graph
    must not make; with the second the step is captured, and from then on replayed.

    Attention takes its plain way, whose gradient is summed in a fixed order (the fused kernels' is
    not), and so does everything else: the same machine gives the same bytes.

    Args:
        model: on the device.
        optimizers: whose state and rates are on the device, if steps are captured.
        split: what is learnt.
        bfloat16: whether to multiply matrices in bfloat16.
        clip: the gradient's largest norm.
        capture: how a step is captured; None for step by step.
    """

    def __init__(
        self,
        model: Decoder,
        optimizers: Sequence[Optimizer],
        split: Split,
        *,
        bfloat16: bool,
        clip: float,
        capture: Capture | None,
    ) -> None:
        self.model, self.optimizers, self.split = model, optimizers, split
        self.bfloat16, self.clip, self.capture = bfloat16, clip, capture
        self.tokens = torch.from_numpy(np.ascontiguousarray(split.given)).to(model.device)
        self.bits = torch.zeros((), device=model.device)
        self.shapes: dict[tuple[int, int], tuple[Tensor, Work | None]] = {}

    def __call__(self, sequences: NDArray[np.int64], rates: Sequence[float]) -> Tensor:
        """Learn from some sequences of the split.

        Args:
            sequences: their numbers.
            rates: the learning rate of each optimizer.

        Returns:
            the loss in bits a token, on the device; a NaN if the gradient is not finite.
        """
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            group = optimizer.param_groups[0]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        lengths = self.split.lengths[sequences]
        seen = min(roomy(max(1, int(lengths.max()) - 1)), self.model.config.context)
        shape = roomy(len(sequences)), seen + 1
        where = np.zeros((2, shape[0]), np.int64)
        where[:, : len(sequences)] = self.split.offsets[sequences], lengths
        known = shape in self.shapes
        if not known:
            self.shapes[shape] = torch.from_numpy(where).to(self.bits.device), None
        given, replay = self.shapes[shape]
        given.copy_(torch.from_numpy(where), non_blocking=given.is_cuda)
        work = partial(self._step, given, shape[1])
        if known and replay is None:
            replay = self._captured(work)
            self.shapes[shape] = given, replay
        (replay or work)()
        return self.bits.clone()

    def _captured(self, work: Work) -> Work | None:
        if self.capture is None:
            return None
        try:
            return self.capture(work)
        except RuntimeError as error:
            warnings.warn(
                f"A training step cannot be captured on {self.model.device} ({error}); it is taken "
                "kernel by kernel, which gives the same numbers in more time.",
                stacklevel=2,
            )
            self.capture = None
            return None

    def _step(self, where: Tensor, width: int) -> None:
        """A whole step.

        Args:
            where: [2, sequences] where each begins in the data, and how long it is.
            width: tokens to which sequences are padded.
        """
        starts, lengths = where[:, :, None]
        columns = torch.arange(width, device=where.device)
        mask = columns < lengths  # [sequences, width]
        tokens = self.tokens[(starts + columns).masked_fill(~mask, 0)].long()
        with sdpa_kernel(SDPBackend.MATH):
            bits = set_gradient(self.model, self.bfloat16, tokens.masked_fill(~mask, 0), mask)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        with warnings.catch_warnings():
            # AdamW does not know that its first steps only make ready for being captured.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            for optimizer in self.optimizers:
                optimizer.step()
        self.bits.copy_(bits + 0 * norm)


def roomy(count: int) -> int:
    """The next of 1, 2, … 8, 10, 12, 14, 16, 20, 24, …: four an octave, a quarter more at most."""
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step
