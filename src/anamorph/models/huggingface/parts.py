"""Where in a block its attention and its MLP take and give, found by value and then tried.

What a block gives has to be the sum of the stream that it was given and of what some submodules
give. That names candidates. Each is then tried with what the block computes of another stream:
what stands behind a site must come out as it does there, and all else must stay as it was.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from anamorph.models.base import EditBy, LayerKind, State
from anamorph.models.huggingface.calls import Block, Call, Given, Port, current
from anamorph.models.huggingface.mlp import Added, find_mlp
from anamorph.models.huggingface.ports import hook_ports
from anamorph.models.huggingface.watch import Seen, Watch, scales_in
from anamorph.models.tap import Tap
from anamorph.models.wrapped import same_up_to_rounding

TRIED = 6  # candidates for one site
NAME = "att"  # is in the name of what attends, where it does not go through the interface
BLOCK = "block"  # what a whole block gives, beside the kinds of its sites


def with_ports(block: Block, given: Given) -> Block:
    """The same block with the ports at which its sites are, as far as they are found.

    Args:
        block: of the model, with its attention, if that is known.
        given: what it is given.
    """

    def run() -> Tensor:
        with current(Call(shape=(1, *given.stream.shape[:2]))):
            return block.form.first(given.call(block.module, given.stream.clone())).clone()

    watch = Watch.of(block.module, run, given.stream)
    added = find_mlp(watch, block.attention)
    mlp = {} if added is None else {"mlp": Port(added.mlp.module, scale=added.scale)}
    parallel = added is not None and added.beside is not None
    search = _Search(replace(block, ports=mlp, side_by_side=parallel), given, watch, added)
    entry = next(search.entering(), None)
    first = {} if entry is None else {"mlp_input": entry}
    for attends in islice(search.attending(), TRIED):
        if search.holds({**attends, **first, **mlp}):
            search.block = replace(search.block, ports=attends | mlp)
            break
    between = {kind: port for kind, port in search.block.ports.items() if kind != "mlp"}
    for port in islice(search.entering(), TRIED):
        if search.enters(ports := {**between, "mlp_input": port, **mlp}):
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
        last: ports, and what they held of both streams.
    """

    block: Block
    given: Given
    watch: Watch
    added: Added | None
    last: tuple[Mapping[str, Port], tuple[dict[str, Tensor], dict[str, Tensor]]] | None = None

    def attending(self) -> Iterator[dict[str, Port]]:
        """Candidates for `attention`, with `middle` if there is one."""
        given, added = self.watch.given, self.added
        if added is None:
            for seen, scale in self._summing(self.watch.out):
                yield {"attention": Port(seen.module, scale=scale)}
        elif added.beside is not None:
            for seen in self._outermost_first():
                if _equal(seen.out, added.beside.out):
                    yield {"attention": Port(seen.module, scale=added.beside_scale)}
        elif not _equal(added.stream, given):
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
        norms = [s for s in self.watch.once if _equal(s.taken, stream) and self.watch.is_norm(s)]
        for norm in norms:
            assert norm.out is not None
            yield from self._taking(norm.out)
            yield Port(norm.module)
        if not norms and (self._norms_of_sums() or self._adds_of_norm()):
            yield from self._taking(stream)

    def holds(self, ports: Mapping[str, Port]) -> bool:
        """Whether candidates are what attention adds and, if asked for, the stream behind it.

        Where the heads are known, they are changed together with what attention adds: whatever they
        changed besides would show.
        """
        try:
            block = replace(self.block, ports=ports)
            own, other = self._both(block)
            kinds = ("heads", "attention") if block.heads else ("attention",)
            if same_up_to_rounding(own["attention"], other["attention"]):
                return False
            if not (block.heads or self._attends(block, own)):
                return False
            edited = self._run(block, edits={kind: other[kind] for kind in kinds})
            if "middle" not in ports:
                mlp = {kind: x for kind, x in own.items() if kind == "mlp"}
                total = sum(mlp.values(), self.watch.given + other["attention"])
                return _agree(edited, {**mlp, BLOCK: self._ended(total)})
            between = self._run(block, edits={"middle": other["middle"]})
            kept = {"attention": own["attention"]}
            if not _agree(between, {**kept, "mlp": other["mlp"], BLOCK: other[BLOCK]}):
                return False
            port, joined = ports["middle"], self.watch.given + other["attention"]
            joined = joined if port.onto_stream else port.module(joined)
            again = self._run(block, edits={"middle": joined})
            behind = {kind: again[kind] for kind in ("mlp", BLOCK)}
            return _agree(edited, {**behind, "middle": joined})
        except Exception:  # of every kind that somebody's module may raise
            return False

    def enters(self, ports: Mapping[str, Port]) -> bool:
        """Whether a candidate is what the MLP is given, and nothing else depends on it."""
        try:
            block = replace(self.block, ports=ports)
            own, other = self._both(block)
            edited = self._run(block, edits={"mlp_input": other["mlp_input"]})
            total = self._ended_with(other["mlp"])
            kept = {kind: own[kind] for kind in ("attention", "middle") if kind in ports}
            if same_up_to_rounding(own["mlp"], other["mlp"]):
                return False
            return _agree(edited, {**kept, "mlp": other["mlp"], BLOCK: total})
        except Exception:  # of every kind that somebody's module may raise
            return False

    @cached_property
    def _other(self) -> Tensor:
        """[batch, position, width] another stream: of the other sequence, and of another size.

        Numbers that are huge in some columns, as of large models, are so there in both.
        """
        return self.watch.given.flip(0) * 0.75

    def _outermost_first(self) -> list[Seen]:
        """The submodules that give a stream, but for those that stand-ins for attention replace."""
        attention = self.block.attention if self.block.projection is not None else None
        inside = set() if attention is None else {*attention.modules()} - {attention}
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
        some = [seen for seen in self.watch.once if _equal(seen.out, self.added.stream)]
        return [seen for seen in some if self.watch.is_norm(seen)]

    def _adds_of_norm(self) -> bool:
        """Whether what attention adds comes from a norm."""
        port = self.block.ports.get("attention")
        return port is not None and any(
            seen.module is port.module and self.watch.is_norm(seen) for seen in self.watch.once
        )

    def _taking(self, x: Tensor) -> Iterator[Port]:
        some = [s for s in self.watch.modules if s.times == 1 and _equal(s.taken, x)]
        for seen in sorted(some, key=lambda seen: (seen.path.count("."), seen.before)):
            yield Port(seen.module, "input")

    def _both(self, block: Block) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the sites of a block hold of its own stream and of the other; the last is kept."""
        if self.last is None or self.last[0] != block.ports:
            both = self._run(block), self._run(block, self._other)
            self.last = (block.ports, both)
        return self.last[1]

    def _run(
        self, block: Block, stream: Tensor | None = None, edits: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """What the sites of a block hold, and what it gives, each [batch, position, width]."""
        stream = self.watch.given if stream is None else stream
        kinds = (*block.ports, "heads") if block.heads else tuple(block.ports)
        here = {
            LayerKind(0, kind): EditBy(value[None].clone().view_as)
            for kind, value in (edits or {}).items()
        }
        tokens = torch.zeros(stream.shape[:2], dtype=torch.long, device=stream.device)
        state = State(stream[None], tokens, torch.ones_like(tokens).bool())
        tap = Tap(0, state, here, [LayerKind(0, kind) for kind in kinds])
        shape = (1, *stream.shape[:2])
        call = Call(tap, shape, ports=block.ports, stream=stream.clone())
        unhook = hook_ports([block])
        try:
            with current(call):
                assert call.stream is not None
                out = block.form.first(self.given.call(block.module, call.stream)).clone()
        finally:
            unhook()
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

    def _ended_with(self, mlp: Tensor) -> Tensor:
        """What the block gives if its MLP adds this, and all else is as it was."""
        assert self.added is not None
        beside = self.added.beside
        if beside is not None:
            assert beside.out is not None
            mlp = self.added.beside_scale * beside.out + mlp
        return self._ended(self.added.stream + mlp)

    def _ended(self, total: Tensor) -> Tensor:
        """What the block makes of the sum that it ends with."""
        norm = None if self.added is None else self.added.norm
        out: Tensor = total if norm is None else norm.module(total)
        return out


def _agree(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return all(same_up_to_rounding(found[kind], x) for kind, x in expected.items())


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)
