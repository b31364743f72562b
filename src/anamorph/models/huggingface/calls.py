"""What is to happen while a Hugging Face model runs; the wrapped parts of it look it up.

A `Call` is one thread's, so that batches can run side by side in one model. Where there is none,
the wrapped parts do what they always do.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from torch import Tensor, nn

from anamorph.models.huggingface.attention import Attention, Place
from anamorph.models.layout import HeadLayout
from anamorph.models.norms import Norm
from anamorph.models.tap import Tap
from anamorph.models.wrapped import Side

Run = Callable[..., Any]
"""What a module of the model does by itself."""


@dataclass(frozen=True)
class Form:
    """In what a module gives its tensor: by itself (items is 0), or in front of a tuple or list."""

    kind: type = Tensor
    items: int = 0

    @classmethod
    def of(cls, out: Any) -> "Form":
        """The form of something that a module gave.

        Raises:
            TypeError: if it is neither a tensor nor a tuple or list with one in front.
        """
        if isinstance(out, Tensor):
            return cls()
        if type(out) not in (tuple, list) or not out or not isinstance(out[0], Tensor):
            raise TypeError(f"a module gives a {type(out).__name__} without a tensor in front")
        return cls(type(out), len(out))

    def first(self, out: Any) -> Tensor:
        """The tensor."""
        x: Tensor = out[0] if self.items else out
        return x

    def made_of(self, x: Tensor) -> Any:
        """The same form with another tensor, and None in the other places."""
        return self.kind([x, *[None] * (self.items - 1)]) if self.items else x


@dataclass(frozen=True)
class Port:
    """Where in a block the tensor of a site passes.

    Attributes:
        module: a submodule of the block.
        side: whether it is what the submodule gives or its first argument.
        scale: what the block multiplies this with; the site holds the product.
        onto_stream: whether the site holds the sum of this and of the stream that the block was
            given.
    """

    module: nn.Module
    side: Side = "output"
    scale: float = 1.0
    onto_stream: bool = False


@dataclass(frozen=True)
class Heads:
    """How the heads of a block attend.

    Attributes:
        module: the attention module, which calls the attention function.
        form: in what it gives its tensor.
        projection: the output projection, if the attention module ends with it.
        layout: how many heads there are.
        dims: of query, key, value and output.
    """

    module: nn.Module
    form: Form
    projection: nn.Module | None
    layout: HeadLayout
    dims: Mapping[str, int]


@dataclass(frozen=True)
class Block:
    """A block and where its parts are.

    Attributes:
        module: the block.
        form: in what it gives the residual stream.
        heads: None if there are none whose attention goes through the interface.
        headless: why there are no sites of heads, as the end of a sentence; empty if there are.
        ports: by kind, where the sites `attention`, `middle`, `mlp_input` and `mlp` are; in the
            order in which their tensors pass.
        side_by_side: whether attention and MLP are given the same stream, so that no stream lies
            between them.
        norms: by kind; of the last block the norm behind it, too.
        normless: why there are none, as the end of a sentence; empty if there are.
        parts: submodules, and the block itself, that need not run again before the first edit, and
            the kinds of the sites within each.
    """

    module: nn.Module
    form: Form = Form()
    heads: Heads | None = None
    headless: str = ""
    ports: Mapping[str, Port] = field(default_factory=dict)
    side_by_side: bool = False
    norms: Mapping[str, Norm] = field(default_factory=dict)
    normless: str = ""
    parts: Mapping[nn.Module, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What a block was given.

    Attributes:
        stream: [copy · batch, position, width] the residual stream.
        name: of the argument in which it came; None for the first.
        arguments: what came behind it.
        keywords: what came by name.
        alike: where tensors among these lie that are the same for all copies.
    """

    stream: Tensor
    name: str | None
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    alike: frozenset[Place] = frozenset()

    @classmethod
    def of(cls, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> "Given":
        """The arguments with which a block is to run.

        Raises:
            TypeError: if no residual stream is among them.
        """
        if arguments and isinstance(arguments[0], Tensor):
            return cls(arguments[0], None, arguments[1:], keywords)
        for name, x in keywords.items() if not arguments else ():
            if isinstance(x, Tensor) and x.dim() == 3 and x.is_floating_point():
                others = {key: value for key, value in keywords.items() if key != name}
                return cls(x, name, (), others)
        raise TypeError("a block is given no residual stream [batch, position, width]")

    def call(self, function: Callable[..., Any], stream: Tensor) -> Any:
        """Call a block with the same, but for another residual stream."""
        if self.name is None:
            return function(stream, *self.arguments, **self.keywords)
        return function(**{self.name: stream}, **self.keywords)


@dataclass
class Call:
    """What is to happen while a model, or one block of it, runs: here, tensors pass through a tap.

    Attributes:
        tap: through which the tensors of a block pass.
        attended: [copy, batch, position, width] stands in for what the attention module gives.
        shape: (copy, batch, position) of the residual stream, whose first two are one axis inside.
        ports: of the block, see `Block`.
        norms: of the block, too.
        parts: of the block, too.
        alike: see `Given`.
        stream: [copy · batch, position, width] what the block is given. An edit of `middle` may
            overwrite it.
        once: the block by itself with one copy, if there is no other before the first edit.
    """

    tap: Tap = field(default_factory=Tap.idle)
    attended: Tensor | None = None
    shape: tuple[int, ...] = (1,)
    ports: Mapping[str, Port] = field(default_factory=dict)
    norms: Mapping[str, Norm] = field(default_factory=dict)
    parts: Mapping[nn.Module, frozenset[str]] = field(default_factory=dict)
    alike: frozenset[Place] = frozenset()
    stream: Tensor | None = None
    once: Optional["Once"] = None

    @staticmethod
    def now() -> Optional["Call"]:
        """This thread's."""
        return _current.get()

    def run(self, block: Block, given: Given, residual: Tensor) -> Tensor:
        """What a block makes of [copy, batch, position, width], given as before but for that."""
        self.shape, self.ports, self.norms = residual.shape[:3], block.ports, block.norms
        self.parts, self.alike = block.parts, given.alike
        stream = residual.flatten(0, 1)
        self.stream = stream.clone() if "middle" in self.tap.here else stream
        with current(self):
            out = given.call(block.module, self.stream)
        return block.form.first(out).view(residual.shape)

    def block(self, block: Block, run: Run, /, *given: Any, **named: Any) -> Any:
        """What a block gives; `run` is what it does by itself."""
        return self.part(block.module, run, *given, **named)

    def part(self, module: nn.Module, run: Run, /, *given: Any, **named: Any) -> Any:
        """What a part of a block gives; `run` is what it does by itself.

        As long as nothing is edited, that is what it gave of one copy; it runs again if it holds a
        site that is edited, read or recorded, but for patterns, which are made of what was seen.
        """
        once = self.once
        if once is None or self.tap.changed or module not in once.gave:
            return run(*given, **named)
        inside = {kind for kind in self.parts[module] if self.tap.concerns(kind)}
        if inside - {"pattern"} or self.tap.changes("pattern"):
            return run(*given, **named)
        if inside:
            once.seen[-1].record(self.tap)
        return _repeated(once.gave[module], *self.shape[:2])

    def attention(self, heads: Heads, run: Run, /, *given: Any, **named: Any) -> Any:
        """What an attention module gives; `run` is what it does by itself."""
        if self.attended is None:
            return self.part(heads.module, run, *given, **named)
        return heads.form.made_of(self.attended.flatten(0, 1))

    def attend(self, attention: Attention) -> Tensor:
        """[copy, batch, head, position, dim] what the heads give."""
        return attention.through(self.tap)

    def norm(self, norm: Norm, x: Tensor, out: Tensor) -> Tensor:
        """What a norm gives of `x`; `out` is what it gives by itself."""
        for kind, own in self.norms.items():
            if own == norm:
                given, gave = (y.reshape(*self.shape, -1) for y in (x, out))
                return norm.through(self.tap, kind, given, gave).reshape(out.shape)
        return out


@dataclass
class Once(Call):
    """A block runs by itself, and what its parts give is kept.

    Attributes:
        gave: what each gave that ran once and gave tensors alone, as it was then.
        seen: what attention modules handed over.
    """

    gave: dict[nn.Module, Any] = field(default_factory=dict)
    seen: list[Attention] = field(default_factory=list)
    _ran: set[nn.Module] = field(default_factory=set)

    def part(self, module: nn.Module, run: Run, /, *given: Any, **named: Any) -> Any:
        """What it gives."""
        out = run(*given, **named)
        if module in self._ran or not _is_of_tensors(out):
            self.gave.pop(module, None)
        elif module in self.parts:
            self.gave[module] = _repeated(out, 1, 1)
        self._ran.add(module)
        return out

    def attend(self, attention: Attention) -> Tensor:
        """What the heads give."""
        self.seen.append(attention)
        return super().attend(attention)


def _is_of_tensors(out: Any) -> bool:
    """Whether it is a tensor, or a tuple or list of such and of nothing else."""
    if type(out) in (tuple, list):
        return all(map(_is_of_tensors, out))
    return out is None or isinstance(out, Tensor)


def _repeated(out: Any, copies: int, batch: int) -> Any:
    """What a part gives for so many copies of a batch, if it gave this for one; a new tensor.

    What does not grow with the batch stays as it is.
    """
    if isinstance(out, Tensor):
        grows = out.dim() > 0 and len(out) % batch == 0
        return out.repeat(copies, *[1] * (out.dim() - 1)) if grows else out.clone()
    return None if out is None else type(out)(_repeated(x, copies, batch) for x in out)


@dataclass(kw_only=True)
class Listing(Call):
    """No block runs; what each is given is listed.

    Attributes:
        layers: how many blocks there are; the model stops at the last.
        given: of each block.
    """

    layers: int
    given: list[Given] = field(default_factory=list)

    def block(self, block: Block, run: Run, /, *given: Any, **named: Any) -> Any:
        """The stream that it is given."""
        self.given.append(Given.of(given, named))
        if len(self.given) == self.layers:
            raise Stop
        return block.form.made_of(self.given[-1].stream)


@dataclass(kw_only=True)
class StandIn(Call):
    """No block runs; `residual` [copy · batch, position, width] stands in for what each gives.

    `scale` [copy · batch, position, 1] does for that of the norm behind them; None for its own.
    """

    residual: Tensor
    scale: Tensor | None = None

    def block(self, block: Block, run: Run, /, *given: Any, **named: Any) -> Any:
        """The stream that stands in."""
        return block.form.made_of(self.residual)

    def norm(self, norm: Norm, x: Tensor, out: Tensor) -> Tensor:
        """What the norm behind the blocks gives."""
        return out if self.scale is None else norm.scaled(x, out, self.scale)


@dataclass
class Attending(Call):
    """What attends is kept, and a block runs up to the end of its attention module, if known.

    Attributes:
        seen: what attention modules handed over, and [copy, batch, head, position, dim] what their
            heads gave.
        begun: whether an attention module came so far as to hand something over.
        given: [copy · batch, position, width] what the attention module of a block gave.
    """

    seen: list[tuple[Attention, Tensor]] = field(default_factory=list)
    begun: bool = False
    given: Tensor | None = None

    def attention(self, heads: Heads, run: Run, /, *given: Any, **named: Any) -> Any:
        """What it gives, if nothing in it attends."""
        out = run(*given, **named)
        if self.seen:
            self.given = heads.form.first(out)
            raise Stop
        return out

    def attend(self, attention: Attention) -> Tensor:
        """What the heads give."""
        self.begun = True
        output = super().attend(attention)
        self.seen.append((attention, output))
        return output


@dataclass
class Probing(Attending):
    """What blocks are given and give is kept, too.

    Attributes:
        blocks: the module of each block, what it was given and what it gave.
    """

    blocks: list[tuple[nn.Module, Given, Any]] = field(default_factory=list)

    def block(self, block: Block, run: Run, /, *given: Any, **named: Any) -> Any:
        """What it gives."""
        kept = Given.of(given, named)
        kept = replace(kept, stream=kept.stream.clone())
        out = run(*given, **named)
        self.blocks.append((block.module, kept, out))
        return out


_current = ContextVar[Call | None]("call", default=None)
"""What the wrapped parts of a model cannot be handed, as the model itself calls them."""


@contextmanager
def current(call: Call) -> Iterator[None]:
    """Make a call this thread's."""
    before = _current.set(call)
    try:
        yield
    finally:
        _current.reset(before)


class Stop(Exception):
    """What was asked for is known; the rest of the model need not run."""
