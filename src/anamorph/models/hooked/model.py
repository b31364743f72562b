"""Any module as a model to be audited, through hooks at its submodules.

A module in general cannot start again from one of its layers. Its whole forward runs once for a
stack of proxies, and once for the model itself: no layers are shared, so an audit costs more than
through `anamorph.models.huggingface.model`, and says the same.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError, require
from anamorph.models.base import Batch, Edit, Edits, LayerKind, Ran, State
from anamorph.models.hooked.hooks import Hook, first_tensor, resolve
from anamorph.models.hooked.run import HookedRun
from anamorph.models.matrices import Matrix, named_linear
from anamorph.models.probe import AGAIN, Probe, known_ids
from anamorph.models.sites import HEAD_KINDS, Site
from anamorph.models.tap import rows_at
from anamorph.models.wrapped import Wrapped, pass_through, same_up_to_rounding, still

Forward = Callable[[Any, Tensor, Tensor], Any]
"""Takes the module, tokens [batch, position] and mask [batch, position]; gives logits."""

PROBE = (2, 6)  # sequences and tokens on which a module is tried


class HookedModel(Wrapped):
    """Any `nn.Module` from token ids to logits, with sites at submodules of your choice.

    There is no re-use of prefixes: the whole forward runs once for each stack of proxies, in the
    first layer of which something is recorded, or else in the last. A site must be computed exactly
    once in a forward; one that is not is an error, when it is made and in every run.

    Args:
        module: it is left as it was found.
        sites: from site names to submodules. A name is `layer.kind` (`residual`, `mlp`) or
            `layer.*.kind` (`query`, `key`, `value`, `pattern`, `output`); a submodule is a path, or
            a `Hook` for heads, parts of the columns, or the submodule's input. A `*` for the layer
            stands for every number with which the path leads somewhere.
        forward: how the module is called, if not as `module(tokens)`: takes the module, tokens and
            mask (True at real tokens), both [batch, position], and gives logits [batch, position,
            vocabulary], or something with `logits`, or a tuple with them in front. A module in
            which tokens see those behind them needs the mask, or padding would be seen.
        context: the longest sequence, in tokens; None if there is none.
        threads: whether two threads may run the module at once. Without it batches run one after
            the other, as a module that keeps activations on itself needs it.

    Attributes:
        causal: whether no position sees those behind it, as found out on a few tokens.
        layers: the number of layers, as the names of the sites count them.
        hooks: the hook of every layer and kind.
        parallel: the same as `threads`.

    Raises:
        AnamorphError: if a name or path leads nowhere, a submodule does not run exactly once, a
            tensor or the logits have another shape; or if the logits of a sequence are NaN, or
            depend on what runs before it, beside it in the batch, or in another thread.

    Examples:
        >>> module = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50))
        >>> HookedModel(module, {"0.residual": "1"}).sites
        [Site(layer=0, head=None, kind='residual')]
    """

    def __init__(
        self,
        module: nn.Module,
        sites: Mapping[str, str | Hook],
        forward: Forward | None = None,
        *,
        context: int | None = None,
        threads: bool = False,
    ) -> None:
        super().__init__(module)
        if context is not None:
            require("HookedModel: context", context, whole=True, least=1)
        if self.device.type == "meta":
            raise AnamorphError(
                f"{type(module).__name__} lies on the device 'meta', so its weights hold no "
                "numbers; load them first."
            )
        self.context = context
        self.parallel = threads
        # One run at a time, whoever asks, where threads may not.
        self._turn: AbstractContextManager[Any] = nullcontext() if threads else threading.RLock()
        self._moving: list[tuple[nn.Module, str]] = []  # buffers that a run writes to
        self.hooks = resolve(module, sites)
        self._given = module, dict(sites), forward, context, threads
        self.layers = max(key.layer for key in self.hooks) + 1
        self._forward = forward or (lambda module, tokens, mask: module(tokens))
        self._thread = _Thread()
        with torch.inference_mode():
            self._explore()

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, self._given  # all else is found out again, where it is unpickled

    @property
    def sites(self) -> list[Site]:
        """Every tensor that can be read and replaced."""
        return [
            Site(key.layer, head, key.kind)
            for key, shape in self._shapes.items()
            for head in (range(shape[0]) if key.kind in HEAD_KINDS else [None])
        ]

    def matrices(self, site: Site) -> list[Matrix]:
        """Those of every linear module within the submodule whose output the site is."""
        hook = self.hooks[LayerKind(site.layer, site.kind)]
        if site.kind not in ("mlp", "attention") or hook.side == "input":
            raise AnamorphError(
                f"No matrices behind {site} can be changed, which is the {hook.where}: of a "
                "HookedModel those within a submodule are known, whose output is `mlp` or "
                "`attention`."
            )
        found = list(named_linear(self.module.get_submodule(hook.path), hook.path))
        if not found:
            raise AnamorphError(
                f"No matrices behind {site} can be changed, as there is no linear module within "
                f"{hook.path!r}; hook the submodule that holds them."
            )
        return [Matrix(name, module, module) for name, module in found]

    def describe(self) -> dict[str, Any]:
        """Class, shape, number format and hooks, for a report."""
        hooks = {f"{key.layer}.{key.kind}": str(hook) for key, hook in self.hooks.items()}
        return {**super().describe(), "hooks": hooks}

    def start(self, batch: Batch) -> State:
        """The state before layer 0: nothing has run yet.

        Raises:
            AnamorphError: if the batch is longer than the context, or has padding that the module
                would see.
        """
        self._check_length(batch.tokens)
        if not bool((batch.mask[:, 1:] <= batch.mask[:, :-1]).all()):
            raise AnamorphError("Padding must stand at the right of a sequence.")
        if not self._takes_padding and not bool(batch.mask.all()):
            raise AnamorphError(
                f"Padding changes what {type(self.module).__name__} says of real tokens. Give a "
                "forward that uses the mask, such as forward=lambda module, tokens, mask: "
                "module(tokens, attention_mask=mask); or sequences of one length."
            )
        # The engine plans its memory by the width of the residual stream; this stand-in takes none.
        stand_in = batch.tokens.new_zeros((), dtype=self._dtype)
        widest = max(self.vocabulary, *self._widths.values())
        residual = stand_in.expand(1, *batch.tokens.shape, widest)
        return _State(residual, batch.tokens, batch.mask)

    def layer(
        self,
        index: int,
        state: State,
        edits: Edits | None = None,
        record: Collection[LayerKind | Site] = (),
        at: Tensor | None = None,
    ) -> Ran:
        """Run one layer; see `anamorph.models.base.Model.layer`.

        The forward runs as soon as something has to be known of it, with the edits of later layers
        as far as they are given already; if these turn out to be others, it runs again.

        Raises:
            AnamorphError: if a submodule that is edited or recorded does not run exactly once.
        """
        assert isinstance(state, _State)
        edits = state.edits | {key: x for key, x in (edits or {}).items() if key.layer >= index}
        record = [key for key in record if key.layer >= index]
        wanted = [key for key in record if key.layer == index]
        last = index == self.layers - 1
        done = state.done
        if (wanted or last) and (done is None or not done.serves(edits, wanted, at)):
            done = self._run(state, edits, record, at)
        recorded = {key: done.recorded[key] for key in wanted if done and key in done.recorded}
        if last and done is not None:
            return Ran(State(done.logits, state.tokens, state.mask), recorded)
        behind = {key: edit for key, edit in edits.items() if key.layer <= index}
        return Ran(replace(state, edits=behind, done=done), recorded)

    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        """[copy, batch, query, vocabulary] at the positions `at` [batch, query], or all."""
        return rows_at(state.residual, at)

    def _run(
        self, state: State, edits: Edits, wanted: Collection[LayerKind | Site], at: Tensor | None
    ) -> HookedRun:
        run = HookedRun(state, edits, wanted, at, self.layers)
        copies = run.shape[0]
        with self._turn, self.session():
            self._thread.run = run
            try:
                logits = self._call(state.tokens.repeat(copies, 1), state.mask.repeat(copies, 1))
            finally:
                self._thread.run = None
            logits = logits.unflatten(0, (copies, -1))  # type: ignore[no-untyped-call]
            # a copy, as a module may write its next logits into the same memory
            run.logits = logits.clone() if at is None else rows_at(logits, at)
        for key, hook in self.hooks.items():
            if run.concerns(key) and not run.fired[key]:
                raise AnamorphError(
                    f"The site {key} never fired: the submodule {hook.path!r} did not run in the "
                    "model's forward, perhaps because another one uses its weights. Nothing was "
                    "measured; hook a submodule that runs."
                )
        return run

    def _own(self, tokens: Tensor) -> Tensor:
        with self._turn:
            return self._call(tokens.clone(), torch.ones_like(tokens).bool()).clone()

    def _call(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """[batch, position, vocabulary] what the module gives."""
        out = self._forward(self.module, tokens, mask)
        logits = first_tensor(getattr(out, "logits", out), "What the model's forward gives")
        if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
            raise AnamorphError(
                f"The model's forward gives {list(logits.shape)} for tokens {list(tokens.shape)}; "
                "expected logits [batch, position, vocabulary]. Give forward=lambda module, "
                "tokens, mask: … that makes them."
            )
        return logits

    def _prepare(self) -> Callable[[], None]:
        undo = ExitStack()
        undo.callback(_keep(self._moving))
        undo.callback(still(self.module))
        for key, hook in self.hooks.items():  # of one submodule several, each after the other
            module = self.module.get_submodule(hook.path)
            undo.callback(pass_through(module, hook.side, partial(self._tap, key, hook)))
        return undo.close

    def _tap(self, key: LayerKind, hook: Hook, value: Any) -> Tensor | None:
        """What a submodule takes or gives, edited; None where nothing is to be changed."""
        run = self._thread.run
        if run is None or not run.concerns(key):
            return None
        return run.tap(key, hook, first_tensor(value, f"The {hook.where}, site {key},"))

    def _explore(self) -> None:
        """Try the module on a few tokens: what it gives, how often each site fires."""
        batch, length = PROBE[0], min(PROBE[1], self.context or PROBE[1])
        tokens = torch.zeros(batch, length, dtype=torch.long, device=self.device)
        full = torch.ones_like(tokens).bool()
        parts = self.module.modules()
        restore = _keep((part, name) for part in parts for name, _ in part.named_buffers("", False))
        try:
            with self.session():
                logits = self._call(tokens.clone(), full.clone()).clone()
                self.vocabulary, self._dtype = logits.shape[-1], logits.dtype
                known = known_ids(self._call, logits)
                probe = Probe(self.module, self._call, known, self.context, self.device)
                probe.require_steady()
                self.causal, self._takes_padding = probe.causal(), probe.pads()
                if self.parallel:
                    probe.require_threads()
        except AnamorphError:
            raise
        except Exception as error:  # of every kind that a module may raise
            raise AnamorphError(
                f"{type(self.module).__name__} cannot run on token ids {[batch, length]}: "
                f"{type(error).__name__}: {error}. Give forward=lambda module, tokens, mask: … "
                "if it is called in another way, and context= if it takes no more tokens."
            ) from error
        finally:
            self._moving = restore()
        run = self._run(State(logits[None], tokens, full), {}, self.hooks, None)
        if not same_up_to_rounding(run.logits[0], logits):
            raise AnamorphError(f"{type(self.module).__name__} {AGAIN}")
        # (heads, position, dim) or (position, dim) of every site
        self._shapes = {key: tuple(run.recorded[key].shape[2:]) for key in self.hooks}
        self._widths = {key.kind: shape[-1] for key, shape in self._shapes.items()}


def _keep(buffers: Iterable[tuple[nn.Module, str]]) -> Callable[[], list[tuple[nn.Module, str]]]:
    """What sets buffers of modules back to what they hold now, and gives those that it had to."""
    held = [
        (part, name, buffer, buffer.clone())
        for part, name in buffers
        for buffer in [part.get_buffer(name)]
    ]

    def restore() -> list[tuple[nn.Module, str]]:
        moved = []
        for part, name, buffer, content in held:
            if not torch.equal(part.get_buffer(name), content):
                setattr(part, name, buffer.copy_(content))
                moved.append((part, name))
        return moved

    return restore


class _Thread(threading.local):
    """What each thread is doing: the run that its module's hooks work for, if any."""

    run: HookedRun | None = None


@dataclass(frozen=True)
class _State(State):
    """Before the forward has run; `residual` is then a stand-in, and logits after the last layer.

    Attributes:
        edits: those of the layers behind.
        done: a run of the forward, if something of it had to be known.
    """

    edits: dict[LayerKind, Edit] = field(default_factory=dict, kw_only=True)
    done: HookedRun | None = field(default=None, kw_only=True)


def _again(
    module: nn.Module,
    sites: Mapping[str, str | Hook],
    forward: Forward | None,
    context: int | None,
    threads: bool,
) -> HookedModel:
    return HookedModel(module, sites, forward, context=context, threads=threads)
