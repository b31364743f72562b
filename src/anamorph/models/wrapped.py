"""What the wrappers of other people's models have in common."""

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, Edit, Model
from anamorph.models.fingerprint import fingerprint_of
from anamorph.models.layout import HeadLayout

TOLERANCE = 1e-4  # how much of the numbers' spread may be rounding
OWN = 4e-6  # how much of a number itself may be, too
HALF_APART = 0.1  # of their spread, by which logits of a position may differ in half precision
OFTEN = 0.05  # the share of all numbers that makes a number a constant
SAMPLE = 2**17  # how many numbers tell the spread

Side = Literal["output", "input"]


class Wrapped(Model):
    """Somebody's module; it is prepared for many runs, and afterwards as it was before.

    Attributes:
        module: the module itself.
    """

    module: nn.Module
    whole_blocks = True
    _dtype: torch.dtype  # of the logits
    _takes_padding: bool  # whether padding at the right changes nothing for real tokens
    _widths: Mapping[str, int]  # the last dimension of sites, by kind

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._lock = threading.Lock()  # threads share one preparation, which the last one undoes
        self._users = 0
        self._undo: Callable[[], None]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.module,)  # all else is found out again, where it is unpickled

    @property
    def dtype(self) -> torch.dtype:
        """The number format of its logits."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the module's weights are; of those over several devices, where it begins."""
        return device_of(self.module)

    def describe(self) -> dict[str, Any]:
        """Class, shape and number format, for a report; heads as the first layer with some has."""
        parameters = list(self.module.parameters())
        dtype = next((x.dtype for x in parameters if x.is_floating_point()), self._dtype)
        layout = next((here for here in self.layout if here.heads), HeadLayout(0, 0))
        return {
            "class": type(self.module).__name__,
            "layers": self.layers,
            **layout._asdict(),
            "head_width": self._widths.get("query"),
            "width": self._widths.get("residual"),
            "parameters": sum(x.numel() for x in parameters),
            "dtype": str(dtype).removeprefix("torch."),
        }

    def fingerprint(self) -> dict[str, str]:
        """A digest of the module's weights, layer by layer."""
        return fingerprint_of(self.module)

    @abstractmethod
    def _own(self, tokens: Tensor) -> Tensor:
        """[1, position, vocabulary] what the module says by itself of tokens [1, position]."""

    @torch.inference_mode()
    def check(self, batch: Batch) -> None:
        """Make sure that it gives, as it is audited, the logits that it gives by itself.

        It was tried on a few tokens when it was made. Since then something may have been put on it,
        or longer sequences may show what short ones do not.

        Args:
            batch: a few right-padded sequences of the data.

        Raises:
            AnamorphError: if it does not, or sees the future of one of these.
        """
        name, expected = type(self.module).__name__, []
        back = still(self.module)
        try:
            for tokens, mask in zip(batch.tokens, batch.mask, strict=True):
                alone = tokens[None, : int(mask.sum())]
                own = self._own(alone)[0]
                half = alone.shape[1] // 2 if self.causal else 0
                if half and not same_logits(self._own(alone[:, :half])[0], own[:half]):
                    raise AnamorphError(
                        f"{name} sees the tokens behind a position in a sequence of "
                        f"{alone.shape[1]} tokens, though not in shorter ones, so it would be "
                        "asked for what it is shown."
                    )
                self._require_own(Batch.whole(alone), own)
                expected.append(own)
            if self._takes_padding:
                self._require_own(batch, torch.cat(expected))
        finally:
            back()

    def _require_own(self, batch: Batch, expected: Tensor) -> None:
        """Compare logits at the real tokens of a batch with [real token, vocabulary]."""
        name, shape = type(self.module).__name__, list(batch.tokens.shape)
        try:
            found = self.logits(self.run(batch).state)[0][batch.mask]
        except AnamorphError:
            raise
        except Exception as error:  # of every kind that a changed module may raise
            raise AnamorphError(
                f"{name} does not run on tokens {shape} as it is audited ({type(error).__name__}: "
                f"{error}). If it was changed since it was wrapped, wrap it again."
            ) from error
        if not same_logits(found, expected):
            raise AnamorphError(
                f"As it is audited, {name} gives other logits of tokens {shape} of the data than "
                f"by itself, by up to {largest_difference(found, expected):.2g}. Something in it, "
                "such as a hook, works on several positions at once behind the last block or twice "
                "in the first, or it was changed since it was wrapped: wrap it again, or take that "
                "off."
            )

    @abstractmethod
    def _prepare(self) -> Callable[[], None]:
        """Change the model as runs need it; gives what undoes that."""

    @contextmanager
    def session(self) -> Iterator[None]:
        """Prepare the model once for many runs; every method does it for itself otherwise."""
        with self._lock:
            if self._users == 0:
                self._undo = self._prepare()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._undo()

    def _check_length(self, tokens: Tensor) -> None:
        """Whether [batch, position] tokens fit the context.

        Raises:
            AnamorphError: if they do not.
        """
        length = tokens.shape[1]
        if self.context is not None and length > self.context:
            raise AnamorphError(
                f"A sequence of {length} tokens does not fit the model's context of "
                f"{self.context}; cut it, for instance with length={self.context}."
            )


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are; of those over several devices, the first."""
    tensors = chain(module.parameters(), module.buffers())
    return next((x.device for x in tensors), torch.device("cpu"))


def same_up_to_rounding(a: Tensor, b: Tensor | None, *, scale: float | None = None) -> bool:
    """Whether two tensors have one shape and hold the same numbers, but for rounding.

    Every number may differ by a share of how far it lies from ordinary numbers, and of how far
    these spread. So constants in some columns, such as logits of -1e9 where a vocabulary is padded,
    widen nothing for the others. Infinity equals infinity of the same sign; NaN equals nothing.

    Args:
        a: of any shape.
        b: what it should be.
        scale: how far ordinary numbers spread, such as 1 for probabilities; None to find out.
    """
    if b is None or a.shape != b.shape:
        return False
    if (a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b):  # most are; it is fast
        return True
    return not bool(_beyond_rounding(a, b, scale).any())


def same_logits(a: Tensor, b: Tensor) -> bool:
    """As `same_up_to_rounding`, of logits [..., vocabulary] that a whole model gives in two ways.

    In half precision rounding adds up over layers, until a single number does not tell it from
    another model. All logits of a position together do: rounding moves them by some hundredths of
    their spread (0.03 in twelve layers of bfloat16), seeing what must not be seen by half of it.
    """
    if same_up_to_rounding(a, b):
        return True
    if a.shape != b.shape or not {a.dtype, b.dtype} & {torch.float16, torch.bfloat16}:
        return False
    a, b = a.cpu().double(), b.cpu().double()
    numbers = a.isfinite() & b.isfinite()
    if not torch.equal(a[~numbers], b[~numbers]):
        return False
    apart = (a - b).where(numbers, 0).square().mean(-1).sqrt()
    return bool((apart <= HALF_APART * _ordinary(b)[0]).all())


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Of the differences between two tensors that are more than rounding; 0 if none is."""
    apart = _beyond_rounding(a, b, None)
    return float((a - b).abs().cpu()[apart].max()) if bool(apart.any()) else 0.0


def _beyond_rounding(a: Tensor, b: Tensor, scale: float | None) -> Tensor:
    """Where two tensors of one shape differ by more than rounding."""
    half = torch.float16, torch.bfloat16
    tolerance, own = (2e-2, 2e-2) if a.dtype in half or b.dtype in half else (TOLERANCE, OWN)
    a, b = a.cpu().double(), b.cpu().double()
    spread, middle = _ordinary(b)
    size = (b - middle).abs().minimum(b.abs())  # most may be masked, or all may be shifted
    allowed = tolerance * (size + (spread if scale is None else scale)) + own * b.abs()
    return ~torch.where(a.isfinite() & b.isfinite(), (a - b).abs() <= allowed, a == b)


def _ordinary(x: Tensor) -> tuple[float, float]:
    """The spread of most of the numbers (of a normal distribution, its sigma), and their middle.

    Both are of the shortest interval that holds half of the numbers. A number that is often there,
    in a row or in all, tells of a mask and not of the spread, so it counts once.
    """
    rows = x.reshape(-1, x.shape[-1] if x.dim() else 1)
    numbers = _once(rows[:, :: rows.numel() // SAMPLE + 1])
    numbers = _once(numbers[numbers.isfinite()][None])
    if not len(numbers):
        return 0.0, 0.0
    half = (len(numbers) + 1) // 2
    widths = numbers[half - 1 :] - numbers[: len(numbers) - half + 1]
    at = int(widths.argmin())
    return float(widths[at]) / 1.349, float(numbers[at] + numbers[at + half - 1]) / 2


def _once(rows: Tensor) -> Tensor:
    """The numbers of [row, column], sorted within a row; what a row holds often, it holds once."""
    rows = rows.sort(-1).values
    first = torch.ones_like(rows, dtype=torch.bool)
    first[:, 1:] = rows[:, 1:] != rows[:, :-1]
    run = first.flatten().cumsum(0) - 1
    often = run.bincount()[run] > OFTEN * rows.shape[1]
    return rows.flatten()[first.flatten() | ~often]


def pass_through(
    module: nn.Module, side: Side, function: Callable[[Any], Tensor | None]
) -> Callable[[], None]:
    """Let what a module gives, or its first input, pass through a function.

    Args:
        module: of torch.
        side: whether its output is meant or its first input.
        function: from a tensor, or a tuple with one in front, to the tensor that stands in for
            it; None for no other.

    Returns:
        what undoes it.
    """

    def on_output(module: nn.Module, given: Any, out: Any) -> Any:
        new = function(out)
        return None if new is None else _with_first(out, new)

    def on_input(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if given or not named:
            new = function(given)
            return None if new is None else (_with_first(given, new), named)
        name = next(iter(named))
        new = function(named[name])
        return None if new is None else (given, {**named, name: _with_first(named[name], new)})

    if side == "output":
        return module.register_forward_hook(on_output).remove
    return module.register_forward_pre_hook(on_input, with_kwargs=True).remove


def _with_first(value: Any, x: Tensor) -> Any:
    """The same with another first tensor."""
    if isinstance(value, Tensor):
        return x
    if hasattr(value, "_replace"):  # a NamedTuple
        return value._replace(**{value._fields[0]: x})
    return type(value)([x, *value[1:]])


def copies_of(edits: Iterable[Edit]) -> int:
    """How many copies of the model some edits make, at least one."""
    return max((edit.copies for edit in edits), default=1)


def still(model: nn.Module) -> Callable[[], None]:
    """Leave training mode; gives what goes back to it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False

    def back() -> None:
        for module in training:
            module.training = True

    return back
