"""Where in a block its attention and its MLP take and give, found by value and then tried.

What a block gives has to be the sum of the stream that it was given and of what some submodules
give. That names candidates. Each is then tried with what the block computes of another stream:
what stands behind a site must come out as it does there, and all else must stay as it was.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor, nn

from anamorph.models.base import EditBy, LayerKind, State
from anamorph.models.huggingface.calls import Block, Call, Given, Port
from anamorph.models.huggingface.mlp import Added, find_mlp
from anamorph.models.huggingface.ports import hook_ports
from anamorph.models.huggingface.watch import Seen, Watch, same, scales_in
from anamorph.models.tap import Tap
from anamorph.models.wrapped import same_up_to_rounding

TRIED = 6  # candidates for one site
NAME = "att"  # is in the name of what attends, where it does not go through the interface
BLOCK = "block"  # what a whole block gives, beside the kinds of its sites

Held = Mapping[str, Tensor]
"""What sites of a block hold, by kind, each [batch, position, width]."""

Check = Callable[[Block, Held, Held], bool]
"""Takes a block with candidates, and what they hold of its own stream and of the other."""


def with_ports(block: Block, given: Given, watch: Watch) -> Block:
    """A block that was watched, with the ports at which its sites are, as far as they are found."""
    added = find_mlp(watch, None if block.heads is None else block.heads.module)
    mlp = {} if added is None else {"mlp": Port(added.mlp.module, scale=added.scale)}
    parallel = added is not None and added.beside is not None
    search = _Search(replace(block, ports=mlp, side_by_side=parallel), given, watch, added)
    entry = next(search.entering(), None)
    first = {} if entry is None else {"mlp_input": entry}
    for attends in islice(search.attending(), TRIED):
        if search.fits({**attends, **first, **mlp}, search.holds):
            search.block = replace(search.block, ports=attends | mlp)
            break
    between = {kind: port for kind, port in search.block.ports.items() if kind != "mlp"}
    for port in islice(search.entering(), TRIED):
        if search.fits(ports := {**between, "mlp_input": port, **mlp}, search.enters):
            return replace(search.block, ports=ports)
    return search.block


@dataclass
class _Search:
    """A block whose ports are looked for.

    Attributes:
        block: with the ports that are known.
        given: what it is given.
        watch: of the block.
        added: the sum that it ends with, if its MLP was found.
        last: ports, and what they held of the other stream.
    """

    block: Block
    given: Given
    watch: Watch
    added: Added | None
    last: tuple[Mapping[str, Port], Held] | None = None

    def attending(self) -> Iterator[dict[str, Port]]:
        """Candidates for `attention`, with `middle` if there is one."""
        given, added = self.watch.given, self.added
        if added is None:
            for seen, scale in self._summing(self.watch.out):
                yield {"attention": Port(seen.module, scale=scale)}
        elif added.beside is not None:
            for seen in self._outermost_first():
                if same(seen.out, added.beside.out):
                    yield {"attention": Port(seen.module, scale=added.beside_scale)}
        elif not same(added.stream, given):
            for seen, scale in self._summing(added.stream):
                port = Port(seen.module, scale=scale)
                yield {"attention": port, "middle": replace(port, onto_stream=True)}
            for norm in self._norms_of_sums():
                assert norm.taken is not None
                for seen, scale in self._summing(norm.taken):
                    port = Port(seen.module, scale=scale)
                    yield {"attention": port, "middle": Port(norm.module)}

    def entering(self) -> Iterator[Port]:
        """Candidates for `mlp_input`: what takes the output of a norm, or the norm's output."""
        if self.added is None:
            return
        stream = self.added.stream
        norms = [s for s in self.watch.once if same(s.taken, stream) and self.watch.is_norm(s)]
        for norm in norms:
            assert norm.out is not None
            yield from self._taking(norm.out)
            yield Port(norm.module)
        if not norms and (self._norms_of_sums() or self._adds_of_norm()):
            yield from self._taking(stream)

    def fits(self, ports: Mapping[str, Port], check: Check) -> bool:
        """Whether candidates pass a check, which is shown what they hold of both streams."""
        try:
            block = replace(self.block, ports=ports)
            if self.last is None or self.last[0] != ports:
                self.last = ports, self._run(block, self._other)
            own = {kind: self._watched(port) for kind, port in ports.items()}
            return check(block, own, self.last[1])
        except Exception:  # of every kind that somebody's module may raise
            return False

    def holds(self, block: Block, own: Held, other: Held) -> bool:
        """Whether candidates are what attention adds and, if asked for, the stream behind it.

        Where the heads are known, they are changed together with what attention adds: whatever they
        changed besides would show.
        """
        attention = other["attention"]
        if same_up_to_rounding(own["attention"], attention):
            return False
        if not (block.heads or self._attends(block, own)):
            return False
        kinds = ("heads", "attention") if block.heads else ("attention",)
        edited = self._run(block, edits={kind: other[kind] for kind in kinds})
        joined = self.watch.given + attention
        if self.added is None:
            return _agree(edited, {BLOCK: joined})
        if "middle" not in block.ports:
            mlp = own["mlp"]
            return _agree(edited, {"mlp": mlp, BLOCK: self.added.ends(mlp, attention)})
        between = self._run(block, edits={"middle": other["middle"]})
        kept = {"attention": own["attention"]}
        if not _agree(between, {**kept, "mlp": other["mlp"], BLOCK: other[BLOCK]}):
            return False
        port = block.ports["middle"]
        middle = joined if port.onto_stream else port.module(joined)
        again = self._run(block, edits={"middle": middle})
        return _agree(edited, {"middle": middle, "mlp": again["mlp"], BLOCK: again[BLOCK]})

    def enters(self, block: Block, own: Held, other: Held) -> bool:
        """Whether a candidate is what the MLP is given, and nothing else depends on it."""
        if self.added is None or same_up_to_rounding(own["mlp"], other["mlp"]):
            return False
        edited = self._run(block, edits={"mlp_input": other["mlp_input"]})
        kept = {kind: own[kind] for kind in ("attention", "middle") if kind in block.ports}
        mlp = other["mlp"]
        return _agree(edited, {**kept, "mlp": mlp, BLOCK: self.added.ends(mlp)})

    @cached_property
    def _other(self) -> Tensor:
        """[batch, position, width] another stream: of the other sequence, and of another size.

        Numbers that are huge in some columns, as of large models, are so there in both.
        """
        return self.watch.given.flip(0) * 0.75

    def _outermost_first(self) -> list[Seen]:
        """The submodules that give a stream, but for those that stand-ins for attention replace."""
        heads, inside = self.block.heads, set[nn.Module]()
        if heads is not None and heads.projection is not None:
            inside = set(heads.module.modules()) - {heads.module}
        some = [seen for seen in reversed(self.watch.once) if seen.module not in inside]
        return sorted(some, key=lambda seen: seen.path.count("."))

    def _summing(self, total: Tensor) -> Iterator[tuple[Seen, float]]:
        """Submodules whose output and the block's stream sum to a total, and the output's scale."""
        for seen in self._outermost_first():
            assert seen.out is not None
            if (scales := scales_in(total, self.watch.given, [seen.out])) is not None:
                yield seen, scales[0]

    def _norms_of_sums(self) -> list[Seen]:
        """The norms that give the stream that the MLP's output is added to."""
        assert self.added is not None
        some = [seen for seen in self.watch.once if same(seen.out, self.added.stream)]
        return [seen for seen in some if self.watch.is_norm(seen)]

    def _adds_of_norm(self) -> bool:
        """Whether what attention adds comes from a norm."""
        port = self.block.ports.get("attention")
        return port is not None and any(
            seen.module is port.module and self.watch.is_norm(seen) for seen in self.watch.once
        )

    def _taking(self, x: Tensor) -> Iterator[Port]:
        some = [s for s in self.watch.modules if s.times == 1 and same(s.taken, x)]
        for seen in sorted(some, key=lambda seen: (seen.path.count("."), seen.before)):
            yield Port(seen.module, "input")

    def _watched(self, port: Port) -> Tensor:
        """[batch, position, width] what a port held when the block was watched."""
        seen = next(seen for seen in self.watch.modules if seen.module is port.module)
        x = seen.out if port.side == "output" else seen.taken
        assert x is not None
        return self.watch.given + x * port.scale if port.onto_stream else x * port.scale

    def _run(
        self, block: Block, stream: Tensor | None = None, edits: Held | None = None
    ) -> dict[str, Tensor]:
        """What the sites of a block hold, and what it gives, each [batch, position, width]."""
        stream = self.watch.given if stream is None else stream
        kinds = (*block.ports, "heads") if block.heads else tuple(block.ports)
        here = {
            LayerKind(0, kind): EditBy(value[None].clone().view_as)
            for kind, value in (edits or {}).items()
        }
        tokens = torch.zeros(stream.shape[:2], dtype=torch.long, device=stream.device)
        state = State(stream[None].clone(), tokens, torch.ones_like(tokens).bool())
        tap = Tap(0, state, here, [LayerKind(0, kind) for kind in kinds])
        with hook_ports([block]):
            out = Call(tap).run(block, self.given, state.residual)[0].clone()
        return {key.kind: x[0].clone() for key, x in tap.recorded.items()} | {BLOCK: out}

    def _attends(self, block: Block, own: Mapping[str, Tensor]) -> bool:
        """Whether `attention`, of heads that are not known, mixes positions and is called so."""
        module = block.ports["attention"].module
        (seen,) = (seen for seen in self.watch.once if seen.module is module)
        if NAME not in f"{seen.path} {type(module).__name__}".lower():
            return False
        changed = self.watch.given.clone()
        changed[:, 0] = self._other[:, 0]
        mixed = self._run(block, changed)["attention"]
        return not same_up_to_rounding(mixed[:, 1:], own["attention"][:, 1:])


def _agree(found: Held, expected: Held) -> bool:
    return all(same_up_to_rounding(found[kind], x) for kind, x in expected.items())
