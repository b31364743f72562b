"""Modules that do not say the same of a sequence every time, or see what they should not."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from torch import Tensor, nn

import anamorph as am
from plain_modules import CONTEXT, VOCABULARY, Transformer, large
from random_tasks import random_task

SITES = {"*.residual": "blocks.*"}
Rule = Callable[[Any, Tensor, Tensor], Tensor]


FULL = torch.ones(1, CONTEXT).bool()


class Odd(Transformer):
    """A causal Transformer with something added to the embedding of its tokens."""

    def __init__(self, rule: Rule, context: int = CONTEXT) -> None:
        super().__init__()
        self.place = nn.Embedding(context, 16)
        self.rule, self.calls, self.longest = rule, 0, 0
        self.log: list[int] = []
        self.past: Tensor | None = None
        self.norm = nn.BatchNorm1d(16, track_running_stats=False)
        self.running = nn.BatchNorm1d(16)
        self.register_buffer("count", torch.zeros(()))
        large(self)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        length = tokens.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        x = self.embed(tokens) + self.place.weight[:length]
        x = x + self.rule(self, tokens, x)
        for block in self.blocks:
            x = block(x, seen)
        return self.head(x)


def counts(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    m.calls += 1
    return torch.tensor(0.1 * m.calls)


def remembers(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    past = x.new_zeros(()) if m.past is None else m.past
    m.past = x.mean()
    return past


def drops(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    return F.dropout(x)  # whatever mode the module is in


def drops_with_a_seed(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return F.dropout(x)


def stretches(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    """As rotary embeddings that are rescaled for good by the longest sequence."""
    m.longest = max(m.longest, tokens.shape[1])
    return x / m.longest


def averages_in_the_buffer(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    m.count.mul_(0.5).add_(x.mean())
    return m.count


def norms_the_batch(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    return m.norm(x.transpose(1, 2)).transpose(1, 2)


def norms_as_in_training(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    r = m.running
    return F.batch_norm(x.transpose(1, 2), r.running_mean, r.running_var, training=True).mT


def sorts(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    ranks = tokens[:, 0].argsort().argsort()
    return 0.1 * ranks[:, None, None].float()


def has_room_for_few(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    """As experts of limited capacity: tokens that come last in the batch are left out."""
    chosen = tokens.flatten() % 2 == 0
    room = chosen.cumsum(0) <= 5
    return x * (chosen & room).view(*tokens.shape, 1)


def subtracts_the_mean(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    return -x.mean(0, keepdim=True)


def kept_by_shape(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    m.kept = {**getattr(m, "kept", {}), x.shape: getattr(m, "kept", {}).get(x.shape, x)}
    return m.kept[x.shape]


def quantizes(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    """As dynamic quantization: the largest number of the batch says how fine the grid is."""
    step = x.abs().max() / 7
    return (x / step).round() * step - x


def grows(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    m.log.append(len(tokens))
    return x


AGAIN = "gives other logits when it runs again on the same tokens"
AFTER = "for the same tokens after it has run on others"
BESIDE = "when others are beside it in the batch"
UNSTEADY: list[tuple[Rule, str]] = [
    (counts, AGAIN),
    (remembers, AGAIN),
    (drops, AGAIN),
    (averages_in_the_buffer, AGAIN),
    (stretches, AFTER),
    (drops_with_a_seed, BESIDE),
    (norms_the_batch, BESIDE),
    (norms_as_in_training, BESIDE),
    (sorts, BESIDE),
    (has_room_for_few, BESIDE),
    (subtracts_the_mean, BESIDE),
    (kept_by_shape, BESIDE),
    (quantizes, BESIDE),
    (grows, "keeps more in log with every run"),
]


@pytest.mark.parametrize(("rule", "message"), UNSTEADY, ids=[r.__name__ for r, _ in UNSTEADY])
def test_what_depends_on_other_runs_or_sequences_is_refused(rule: Rule, message: str) -> None:
    module = Odd(rule)
    weights = copy.deepcopy(module.state_dict())
    with pytest.raises(am.AnamorphError, match=f"^Odd .*{message}"):
        am.HookedModel(module, SITES, context=CONTEXT)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


def test_a_buffer_that_only_counts_does_not_count_us() -> None:
    def uses(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
        m.count += 1
        return torch.zeros(())

    module = Odd(uses)
    model = am.HookedModel(module, SITES, context=CONTEXT)
    before = model.fingerprint()
    am.check_model(model, torch.randint(0, VOCABULARY, (3, 8)))
    assert module.count == 0
    assert model.fingerprint() == before
    module(torch.zeros(1, 4, dtype=torch.long))
    assert module.count == 1  # its owner's runs do count


# --- what it sees ---------------------------------------------------------------------------------


def longer_than(limit: int) -> Rule:
    def rule(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
        return 0.1 * x.mean(1, keepdim=True) if tokens.shape[1] > limit else torch.zeros(())

    return rule


def the_next_behind(start: int) -> Rule:
    """The next token's embedding, from a position on."""

    def rule(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
        here = (torch.arange(x.shape[1]) >= start)[:, None]
        return F.pad(x[:, 1:], (0, 0, 0, 1)) * here * 0.1

    return rule


def the_fourth_behind(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    return 0.1 * F.pad(x[:, 4:], (0, 0, 0, min(4, x.shape[1])))


def the_last(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    return 0.1 * x[:, -1:]


def whether_one_follows(token: int) -> Rule:
    def rule(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
        return 0.1 * (tokens == token).any(1)[:, None, None].float()

    return rule


def how_many_follow(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
    return 0.1 * torch.arange(x.shape[1]).flip(0)[:, None].float()


def blocks_of(size: int) -> Rule:
    """As chunked attention: everything in the same chunk."""

    def rule(m: Any, tokens: Tensor, x: Tensor) -> Tensor:
        length = x.shape[1]
        padded = F.pad(x, (0, 0, 0, -length % size)).unflatten(1, (-1, size))
        return 0.1 * padded.mean(2, keepdim=True).expand_as(padded).flatten(1, 2)[:, :length]

    return rule


SEEING = {
    "longer than 20": longer_than(20),
    "longer than 63": longer_than(63),
    "longer than 100": longer_than(100),
    "next": the_next_behind(0),
    "next, from 8 on": the_next_behind(8),
    "next, from 60 on": the_next_behind(60),
    "fourth": the_fourth_behind,
    "last": the_last,
    "0 follows": whether_one_follows(0),
    "the last id follows": whether_one_follows(VOCABULARY - 1),
    "another id follows": whether_one_follows(12),
    "how many follow": how_many_follow,
    "blocks of 2": blocks_of(2),
    "blocks of 32": blocks_of(32),
}


@pytest.mark.parametrize(("head", "context"), [(None, None), (-1e9, 128), (-math.inf, 128)])
@pytest.mark.parametrize("name", SEEING)
def test_whoever_sees_the_future_is_found(
    name: str, head: float | None, context: int | None
) -> None:
    """Also where most of the vocabulary is masked."""
    module = Odd(SEEING[name], 128)

    def forward(m: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = m(tokens)
        if head is not None:
            logits[..., 5:] = head
        return logits

    assert not am.HookedModel(module, SITES, forward, context=context).causal
    assert am.HookedModel(Odd(lambda m, t, x: x, 128), SITES, forward, context=context).causal


def test_masked_vocabulary_is_accepted_and_keeps_every_law() -> None:
    module = Odd(lambda m, t, x: x)
    for value in (-math.inf, -1e9):

        def forward(m: Any, tokens: Tensor, mask: Tensor, value: float = value) -> Tensor:
            return m(tokens).index_fill(-1, torch.arange(15, 23), value)  # type: ignore[no-any-return]

        model = am.HookedModel(module, SITES, forward, context=CONTEXT)
        am.check_model(model, torch.randint(0, VOCABULARY, (3, 8)))


def test_half_precision_is_causal_or_not_also_if_its_logits_are_made_float32() -> None:
    for rule, causal in ((lambda m, t, x: x, True), (the_last, False)):
        module = Odd(rule).bfloat16()
        for forward in (lambda m, t, k: m(t), lambda m, t, k: m(t).float()):
            assert am.HookedModel(module, SITES, forward, context=CONTEXT).causal is causal


@pytest.mark.parametrize("logits", [24, 32, 128])
def test_a_vocabulary_of_which_only_the_logits_are_padded_is_accepted(logits: int) -> None:
    """The embedding has 23 rows."""
    for rule, causal in ((lambda m, t, x: x, True), (whether_one_follows(22), False)):
        module = Odd(rule)
        module.head = nn.Linear(16, logits)
        model = am.HookedModel(large(module), SITES, context=CONTEXT)
        assert (model.vocabulary, model.causal) == (logits, causal)
        assert len(am.list_sites(model)) == 2


def test_weights_on_the_meta_device_are_told() -> None:
    with pytest.raises(am.AnamorphError, match="lies on the device 'meta'"):
        am.HookedModel(Odd(lambda m, t, x: x).to("meta"), SITES)


# --- what is no number ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"Odd gives NaN for token ids \[.*7\]"),
        (math.inf, r"Odd gives a logit of infinity for token ids \[.*7\]"),
        (-math.inf, r"Odd rules out every token \(all logits are -inf\) for token ids \[.*7\]"),
    ],
)
def test_logits_that_are_no_numbers_are_told_with_their_tokens(value: float, message: str) -> None:
    def forward(m: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        return m(tokens).masked_fill((tokens == 7)[..., None], value)  # type: ignore[no-any-return]

    with pytest.raises(am.AnamorphError, match=message):
        am.HookedModel(Odd(lambda m, t, x: x), SITES, forward, context=CONTEXT)


def test_a_context_that_is_said_to_be_longer_than_it_is() -> None:
    with pytest.raises(am.AnamorphError, match=r"cannot run on 20 tokens.*said to be 20: Runtime"):
        am.HookedModel(Odd(lambda m, t, x: x), SITES, context=20)
    for context in (0, -1, True, 2.5, math.nan):
        with pytest.raises(am.AnamorphError, match="context must be a whole number"):
            am.HookedModel(Odd(lambda m, t, x: x), SITES, context=context)  # type: ignore[arg-type]


def test_an_audit_of_logits_with_minus_infinity_is_that_of_the_tokens_that_are_left() -> None:
    """Against a module that has no other tokens, and SciPy's log-softmax."""
    module = Odd(lambda m, t, x: x)
    kept = copy.deepcopy(module)
    kept.head.weight = nn.Parameter(module.head.weight[:15])
    kept.head.bias = nn.Parameter(module.head.bias[:15])

    def masked(m: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        return m(tokens).index_fill(-1, torch.arange(15, 23), -math.inf)  # type: ignore[no-any-return]

    task = random_task(15)
    found = []
    for model in (
        am.HookedModel(module, SITES, masked, context=CONTEXT),
        am.HookedModel(kept, SITES, context=CONTEXT),
    ):
        results = am.audit(model, task, ["svd(rank=[2,16])@1.residual"]).results
        assert results["value"].is_finite().all()
        found.append(results)
    theirs = found[1].select("simplification", "split", "facet", "level", "metric", "value")
    for mine, right in zip(
        found[0].select(theirs.columns).iter_rows(), theirs.iter_rows(), strict=True
    ):
        assert mine[:-1] == right[:-1]
        assert mine[-1] == pytest.approx(right[-1], abs=1e-5)
    bits = []
    for tokens in task.splits["iid"]:
        with torch.no_grad():
            logits = masked(module.eval(), torch.tensor(tokens.tolist())[None], FULL)[0, :-1]
        p = log_softmax(logits.double().numpy(), axis=-1)
        bits += (-p[np.arange(len(tokens) - 1), tokens[1:]] / math.log(2)).tolist()
    whole = found[0].filter(
        pl.col("facet").is_null(), split="iid", simplification="identity", seed=0
    )
    (ours,) = whole.filter(metric="model_cross_entropy")["value"]
    assert ours == pytest.approx(np.mean(bits), abs=1e-5)


def test_a_proxy_that_rules_out_what_the_model_allows_is_told_with_metric_and_sequence() -> None:
    def masked(m: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        logits = m(tokens)
        return logits.masked_fill(logits < logits.amax(-1, keepdim=True) - 3, -math.inf)  # type: ignore[no-any-return]

    model = am.HookedModel(Odd(lambda m, t, x: x), SITES, masked, context=CONTEXT)
    with pytest.raises(
        am.AnamorphError, match=r"is inf in sequence \d+.* where -inf rules out a token"
    ):
        am.audit(model, random_task(15), ["svd(rank=2)@1.residual"])


# --- threads --------------------------------------------------------------------------------------


class KeepsOnItself(Transformer):
    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        self.x = self.embed(tokens)
        for block in self.blocks:
            self.x = block(self.x, torch.ones(len(tokens[0]), len(tokens[0])).tril().bool())
        return self.head(self.x)


class KeepsInABlock(Transformer):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[0].register_forward_pre_hook(self._keep)
        self.blocks[0].register_forward_hook(self._add)

    def _keep(self, module: Any, given: Any) -> None:
        module.kept = given[0]

    def _add(self, module: Any, given: Any, out: Tensor) -> Tensor:
        return out + module.kept


class KeepsInABuffer(Transformer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x", torch.zeros(8, 128, 16), persistent=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        size, length = tokens.shape
        self.x[:size, :length] = self.embed(tokens)
        self.x[:size, :length] += self.place.weight[:length]
        return self.head(self.mix(self.x[:size, :length]))

    def mix(self, x: Tensor) -> Tensor:
        return x.cumsum(1).tanh()


@pytest.mark.parametrize("kind", [KeepsOnItself, KeepsInABlock, KeepsInABuffer])
def test_what_keeps_a_run_on_itself_runs_in_one_thread(kind: type[Transformer]) -> None:
    module = large(kind())
    sites = {"0.residual": "head" if kind is KeepsInABuffer else "blocks.0"}
    assert not am.HookedModel(module, sites, context=8).parallel
    with pytest.raises(am.AnamorphError, match="when two threads run it at once"):
        am.HookedModel(module, sites, context=8, threads=True)


def test_what_keeps_a_run_on_itself_is_audited_right_on_a_machine_with_threads() -> None:
    """Against the same module that keeps nothing."""
    keeps = large(KeepsOnItself())
    usual = Plain()
    usual.load_state_dict(keeps.state_dict())
    before, found = torch.get_num_threads(), []
    try:
        torch.set_num_threads(4)
        for module in (keeps, usual):
            model = am.HookedModel(module, SITES, context=CONTEXT)
            spec = ["svd(rank=[1,4])@*.residual"]
            found.append(am.audit(model, random_task(15), spec).results)
    finally:
        torch.set_num_threads(before)
    assert found[0].equals(found[1])


class Plain(Transformer):
    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, torch.ones(len(tokens[0]), len(tokens[0])).tril().bool())
        return self.head(x)


class WritesOverItsOutput(Transformer):
    """As modules that have the memory of their logits before they run, for graphs on a GPU."""

    def __init__(self, *, seeing: bool) -> None:
        super().__init__()
        self.seeing = seeing
        self.out = torch.zeros(64, CONTEXT, VOCABULARY)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens += 0  # and in the memory of its input
        here = self.out[: len(tokens), : tokens.shape[1]]
        return here.copy_(super().forward(tokens) + (tokens[:, -1:, None] if self.seeing else 0))


def test_what_writes_over_its_logits_gives_the_numbers_of_its_runs() -> None:
    model = am.HookedModel(
        large(WritesOverItsOutput(seeing=True)), {"0.residual": "blocks.0"}, context=CONTEXT
    )
    assert not model.causal
    module = large(WritesOverItsOutput(seeing=False))
    model = am.HookedModel(module, SITES, context=CONTEXT)
    am.check_model(model, torch.randint(0, VOCABULARY, (3, 8)))
    usual = Transformer()
    usual.load_state_dict(module.state_dict())
    plain = am.HookedModel(usual, SITES, context=CONTEXT)
    mine, right = (
        am.audit(m, random_task(15), ["svd(rank=[1,2])@1.residual"]).results for m in (model, plain)
    )
    assert mine.equals(right)
    with pytest.raises(am.AnamorphError, match="when two threads run it at once"):
        am.HookedModel(module, SITES, context=CONTEXT, threads=True)


def test_what_keeps_nothing_may_run_in_two() -> None:
    model = am.HookedModel(large(Transformer()), SITES, context=CONTEXT, threads=True)
    assert model.parallel
