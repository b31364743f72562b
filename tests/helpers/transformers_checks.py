"""What a Hugging Face model gives through anamorph, compared with what it gives by itself."""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle

import anamorph as am
import running
import transformers_tiny as tiny
from anamorph.models.base import Batch, LayerKind
from anamorph.models.sites import NAMED_KINDS, NORM_KINDS

TOLERANCE = 2e-4  # relative to the largest logit


class Differs(Exception):
    """What anamorph gives and what the model gives are not the same."""


class Plain:
    """What a model gives, with nothing of anamorph in its way.

    Attributes:
        tokens: [batch, position] ids of sequences of equal length.
        lengths: of the same sequences, cut to other lengths.
        alone: the logits [position, vocabulary] of each cut sequence, in a batch of its own.
        together: [batch, position, vocabulary] those of the uncut ones.
        causal: whether changing the last third changes nothing before it.
    """

    lengths = (14, 9, 5)

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(10, tiny.VOCABULARY, (3, 14), generator=generator)
        self.together = self.logits(self.tokens)
        if self.together.shape[:2] != self.tokens.shape:
            raise ValueError(f"logits {list(self.together.shape)} of tokens {[*self.tokens.shape]}")
        if not self.together.isfinite().all():
            raise ValueError("its logits are not finite")
        rows = zip(self.tokens, self.lengths, strict=True)
        self.alone = [self.logits(row[None, :length])[0] for row, length in rows]
        other = torch.cat([self.tokens[:, :9], (self.tokens[:, 9:] + 40) % 80 + 10], dim=1)
        self.other = other
        self.causal = _same(self.logits(other)[:, :9], self.together[:, :9])

    def logits(self, tokens: Tensor) -> Tensor:
        """As their owner would get them: whole sequences, every token real."""
        with torch.inference_mode():
            out = self.module(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        return out.float().clone()  # type: ignore[no-any-return]

    def giving(self, block: nn.Module, x: Tensor) -> nn.Module | None:
        """The first module within a block that gives `x` [batch, position, width]."""
        return self._first(block, x, nn.Module.register_forward_hook, -1)

    def taking(self, block: nn.Module, x: Tensor) -> nn.Module | None:
        """The first module within a block that takes `x` [batch, position, width] alone."""
        return self._first(block, x, nn.Module.register_forward_pre_hook, 1)

    def _first(self, block: nn.Module, x: Tensor, register: Any, place: int) -> nn.Module | None:
        found: list[nn.Module] = []

        def hook(*arguments: Any) -> None:
            values = arguments[place]
            value = values[0] if isinstance(values, tuple | list) and values else values
            if torch.is_tensor(value) and value.shape == x.shape and _same(value, x):
                found.append(arguments[0])

        inner = [module for module in block.modules() if module is not block]
        with hooked(*(register(module, hook) for module in inner)):
            self.logits(self.tokens)
        return found[0] if found else None


@contextmanager
def hooked(*handles: RemovableHandle) -> Iterator[None]:
    """Hooks that are removed again."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(
    model: am.HuggingFace,
    tokens: Tensor,
    lengths: Sequence[int] | None = None,
    edits: Any = None,
    record: Any = None,
) -> Tensor:
    """[batch, position, vocabulary] logits, block by block, of right-padded sequences."""
    mask = torch.ones_like(tokens).bool()
    if lengths is not None:
        mask = torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]
        tokens = tokens.where(mask, 0)
    with torch.inference_mode(), model.session():
        return running.run(model, Batch(tokens, mask), edits, record)[0].float().clone()


def as_it_is(model: am.HuggingFace, plain: Plain) -> list[str]:
    """Logits and cross entropy: of one, of many, padded and not."""
    many = run(model, plain.tokens)
    require(many, plain.together, "logits of a batch")
    targets = plain.tokens[:, 1:].flatten()
    pair = (cross_entropy(x[:, :-1].flatten(0, 1), targets) for x in (many, plain.together))
    require(*pair, "cross entropy")
    padded = run(model, plain.tokens, plain.lengths)
    for row, (length, alone) in enumerate(zip(plain.lengths, plain.alone, strict=True)):
        one = run(model, plain.tokens[row : row + 1, :length])
        require(one[0], alone, f"logits of a sequence of {length}")
        require(padded[row, :length], alone, f"logits of a padded sequence of {length}")
    return []


def laws(model: am.HuggingFace, plain: Plain) -> list[str]:
    """Every law of anamorph's own, and the future is seen by whom the plain model lets see it."""
    if model.causal != plain.causal:
        raise Differs(f"it is said to be causal: {model.causal}; it is: {plain.causal}")
    try:
        with torch.inference_mode(), model.session():
            am.check_model(model, plain.tokens[:2, :9])
    except AssertionError as error:
        raise Differs(str(error)) from error
    for key in keys(model):
        if not run(model, plain.tokens, plain.lengths, {key: torch.zeros_like}).isfinite().all():
            raise Differs(f"logits are not finite with {key} zeroed")
    return []


def threads(model: am.HuggingFace, plain: Plain) -> list[str]:
    """Two batches at once, if the model says that it can take them."""
    if not model.parallel:
        return []
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as pool:
            pair = plain.tokens[:, :11], plain.other
            both = list(pool.map(lambda tokens: run(model, tokens), pair * 4))
    finally:
        sys.setswitchinterval(switching)
    alone = [plain.logits(tokens) for tokens in pair]
    for given, expected in zip(both, alone * 4, strict=True):
        require(given, expected, "logits of two batches in two threads")
    return []


def residuals(model: am.HuggingFace, plain: Plain) -> list[str]:
    """Half of what a block gives, by a plain hook on the block."""
    for layer, block in enumerate(model.blocks):
        with hooked(block.module.register_forward_hook(_half_given)):
            expected = plain.logits(plain.tokens)
        edited = run(model, plain.tokens, None, {LayerKind(layer, "residual"): _half})
        require(edited, expected, f"logits with half of {layer}.residual")
    return ["residual"]


def mlps(model: am.HuggingFace, plain: Plain) -> list[str]:
    """Half of what a site `mlp` holds, by a plain hook on the module that gives it."""
    checked = []
    for layer, block in enumerate(model.blocks):
        key, stream = LayerKind(layer, "mlp"), LayerKind(layer, "residual")
        if key not in keys(model):
            continue
        record: dict[Any, Any] = {key: None, stream: None}
        run(model, plain.tokens, None, None, record)
        site, residual = record[key], record[stream]
        if _same(site, residual):
            raise Differs(f"{key} is the residual stream")
        module = plain.giving(block.module, site[0])
        if module is not None:
            with hooked(module.register_forward_hook(_half_given)):
                expected = plain.logits(plain.tokens)
            edited = run(model, plain.tokens, None, {key: _half})
            require(edited, expected, f"logits with half of {layer}.mlp")
            checked.append("mlp")
    return checked


def heads(model: am.HuggingFace, plain: Plain) -> list[str]:
    """Half of one head, by a plain hook on the input of the output projection.

    A head's output is linear in its values and in its pattern, so half of these is half of it.
    """
    checked = []
    for layer in sorted({key.layer for key in keys(model) if key.kind == "output"}):
        record: dict[Any, Any] = dict.fromkeys(
            LayerKind(layer, kind) for kind in ("query", "key", "value", "pattern", "output")
        )
        run(model, plain.tokens, None, None, record)
        output, value = record[LayerKind(layer, "output")], record[LayerKind(layer, "value")]
        together = output[0].transpose(1, 2).flatten(2)
        total, dim, group = output.shape[2], output.shape[-1], output.shape[2] // value.shape[2]
        module = plain.taking(model.blocks[layer].module, together)
        one = total - 1  # the last head, so that an order of heads that is wrong shows
        if module is not None:
            for kind, first in (("output", one), ("pattern", one), ("value", total - group)):
                columns = torch.arange(total * dim) >= first * dim
                with hooked(module.register_forward_pre_hook(_HalfTaken(columns))):
                    expected = plain.logits(plain.tokens)
                edited = run(
                    model, plain.tokens, None, {LayerKind(layer, kind): _half_of_last_head}
                )
                require(edited, expected, f"logits with half of the last {kind} of layer {layer}")
                checked.append(kind)
        attention: Any = model.blocks[layer].heads.module
        scaling = getattr(attention, "scaling", None)
        for kind in ("query", "key"):
            if isinstance(scaling, float):
                attention.scaling = scaling / 2
                expected = plain.logits(plain.tokens)
                attention.scaling = scaling
                edited = run(model, plain.tokens, None, {LayerKind(layer, kind): _half})
                require(edited, expected, f"logits with half of every {kind} of layer {layer}")
                checked.append(kind)
    return checked


def layer_kinds(model: am.HuggingFace, plain: Plain) -> list[str]:
    """Half of heads, attention, middle and MLP input, by plain hooks where they are given or taken.

    Where no submodule gives a middle, half of it is half of what the MLP's norm takes, and the
    other half less in what the block gives.
    """
    checked = []
    for layer, block in enumerate(model.blocks):
        kinds = NAMED_KINDS - set(NORM_KINDS)
        here = [key for key in keys(model) if key.layer == layer and key.kind in kinds]
        record: dict[Any, Any] = dict.fromkeys([*here, LayerKind(layer, "mlp")])
        run(model, plain.tokens, None, None, record)
        sites = {key.kind: x[0] for key, x in record.items() if x is not None}
        for key in here:
            x = sites[key.kind]
            giver, taker = plain.giving(block.module, x), plain.taking(block.module, x)
            hooks: list[tuple[nn.Module | None, str, Any]]
            given, taken = (giver, "out", _half_given), (taker, "in", _half_taken)
            if key.kind == "middle" and giver is None:
                between = _Between()
                hooks = [(taker, "in", between.taken), (block.module, "out", between.given)]
            elif key.kind == "mlp_input" and "middle" not in sites:  # attention may take the same
                continue
            elif key.kind == "heads" or (key.kind == "mlp_input" and _same(x, sites["middle"])):
                hooks = [taken]
            else:
                hooks = [given]
            if any(module is None for module, *_ in hooks):
                continue
            with hooked(*(_hook(*hook) for hook in hooks)):
                expected = plain.logits(plain.tokens)
            edited = run(model, plain.tokens, None, {key: _half})
            require(edited, expected, f"logits with half of {key}")
            checked.append(key.kind)
    return checked


CHECKS: tuple[Callable[[am.HuggingFace, Plain], list[str]], ...] = (
    as_it_is,
    laws,
    threads,
    residuals,
    mlps,
    heads,
    layer_kinds,
)


def keys(model: am.HuggingFace) -> list[LayerKind]:
    """Every layer and kind that has a site."""
    return sorted({LayerKind(site.layer, site.kind) for site in model.sites})


def require(given: Tensor, expected: Tensor, what: str) -> None:
    """Whether both are the same but for rounding.

    Raises:
        Differs: if they are not.
    """
    if given.shape != expected.shape:
        raise Differs(f"{what} have shape {list(given.shape)} for {list(expected.shape)}")
    if not _same(given, expected):
        error, largest = (given - expected).abs().max(), expected.abs().max()
        raise Differs(f"{what} differ by {error:.2g} of {largest:.2g}")


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    scale = max(1.0, float(b.abs().max()))
    return float((a - b).abs().max()) <= TOLERANCE * scale  # false for NaN


def _half(x: Tensor) -> Tensor:
    return x / 2


def _half_given(module: nn.Module, inputs: Any, out: Any) -> Any:
    return out / 2 if torch.is_tensor(out) else type(out)([out[0] / 2, *out[1:]])


def _half_of_last_head(x: Tensor) -> Tensor:
    return torch.cat([x[:, :, :-1], x[:, :, -1:] / 2], dim=2)


def _half_taken(module: nn.Module, inputs: Any) -> Any:
    return (inputs[0] / 2, *inputs[1:])


def _hook(module: nn.Module | None, side: str, hook: Any) -> RemovableHandle:
    assert module is not None
    if side == "in":
        return module.register_forward_pre_hook(hook)
    return module.register_forward_hook(hook)


class _Between:
    """Hooks that halve what a norm takes, and take the same from what the block gives."""

    def taken(self, module: nn.Module, inputs: Any) -> Any:
        """Before the norm."""
        self.half = inputs[0] / 2
        return (self.half, *inputs[1:])

    def given(self, module: nn.Module, inputs: Any, out: Any) -> Any:
        """Behind the block."""
        if torch.is_tensor(out):
            return out - self.half
        return type(out)([out[0] - self.half, *out[1:]])


class _HalfTaken:
    """A hook that halves some columns of what a module takes."""

    def __init__(self, columns: Tensor) -> None:
        self.columns = columns

    def __call__(self, module: nn.Module, inputs: Any) -> Any:
        return (torch.where(self.columns, inputs[0] / 2, inputs[0]), *inputs[1:])
