"""Operations counted from shapes, against torch's own counter of those that are done."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import anamorph as am
from anamorph.auditing.audit import fit_on_task, proxies_of
from anamorph.auditing.engine import Settings
from anamorph.auditing.flops import Load, ModelShape, placed
from anamorph.auditing.works import Auditor, plan
from anamorph.machine.threads import torch_threads
from anamorph.models.base import Batch, Model
from anamorph.tasks import Split, Task
from anamorph.tasks.batches import collate

LENGTH, SEQUENCES, VOCABULARY = 33, 12, 400


def made(name: str, role: str, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, VOCABULARY, size=LENGTH * SEQUENCES).astype(np.int32)
    scored = np.arange(len(tokens)) % LENGTH % 4 == 0
    scored[::LENGTH] = False  # nothing predicts the first token
    return Split(name, role, tokens, np.arange(SEQUENCES + 1) * LENGTH, scored)  # type: ignore[arg-type]


TASK = Task(
    name="made",
    vocabulary=tuple(map(str, range(VOCABULARY))),
    candidates=np.arange(VOCABULARY),
    splits={"train": made("train", "train", 1), "iid": made("iid", "iid", 0)},
    spec={"name": "made"},
)


def decoder() -> Model:
    config = am.DecoderConfig(VOCABULARY, 64, width=64, heads=4, layers=3, mlp=160)
    return am.Decoder(config).eval()


def llama() -> Model:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    return am.HuggingFace(LlamaForCausalLM(config).eval())


def counted(what: object) -> float:
    """Operations that torch counts while something is called, in one thread."""
    mode = FlopCounterMode(display=False)
    with torch.inference_mode(), torch_threads(1), sdpa_kernel(SDPBackend.MATH), mode:
        what()  # type: ignore[operator]
    return float(mode.get_total_flops())


@pytest.fixture(params=[decoder, llama], ids=["decoder", "llama"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.param()
    return found


def test_one_run_of_the_model(model: Model) -> None:
    batch: Batch = collate(TASK.reference, np.arange(SEQUENCES))
    shape = ModelShape.of(model)
    assert shape is not None
    with model.session():
        done = counted(lambda: model.logits(model.run(batch).state))
    assert shape.forward(Load.whole([LENGTH] * SEQUENCES)) == pytest.approx(done, rel=0.02)


SPECS = [
    ["svd(rank=[1,2,4,8])@1.*.{query,key}"],
    ["svd(rank=[1,2,4,8])@0.1.key", "pca(rank=[2,4])@2.*.query", "svd(rank=3)@2.0.query"],
    ["svd(rank=[1,2,4])@1.residual", "svd(rank=[1,2])@0.mlp", "pca(rank=2)@2.mlp_input"],
]


@pytest.mark.parametrize("specs", SPECS, ids=["attention", "heads", "streams"])
@pytest.mark.parametrize("memory", [1, 2**30], ids=["one by one", "in stacks"])
def test_works(model: Model, specs: Sequence[str], memory: int) -> None:
    proxies = proxies_of(model, specs)
    settings = Settings(batch_tokens=100_000, memory=memory, batches=1)
    shape, (work,) = ModelShape.of(model), plan(proxies, model, ["iid"])
    assert shape is not None
    expected = shape.work(Load.of(TASK.reference), placed(proxies, model), settings)
    fitted = fit_on_task(model, proxies, TASK, SEQUENCES)
    auditor = Auditor(model, TASK, proxies, fitted, settings=settings)
    off = 0.03 if isinstance(model, am.Decoder) else 0.18  # a block of others skips what it can
    assert expected == pytest.approx(counted(lambda: auditor.execute(work)), rel=off)
