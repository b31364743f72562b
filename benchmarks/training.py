"""Characters a second in training, against the same architecture by transformers and its Trainer.

    python benchmarks/training.py [--width 128] [--layers 4] [--rounds 3]

Both train a decoder of one shape on the same random characters, in batches of the same size, each
with what it does by default on this machine; transformers with a GPT-2 of that shape, its `Trainer`
and AdamW, in float32 and, where the processor has it, in bfloat16 (the better counts). anamorph's
decoder learns with the recipe of the code presets. They take turns; the ratio is the median of the
rounds. The share of the machine's peak is that of the model's matrix products (6 operations a
weight and token, 12 a layer, position and width for attention, halved as it is causal) in what
torch's own float32 matrix product reaches.
"""

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch

from anamorph.models.decoder import DecoderConfig
from anamorph.tasks import Split, Task
from anamorph.training import TrainingConfig, train

VOCABULARY, CONTEXT = 100, 256
STEPS = 12
WARM_UP = 3  # of them


def random_task(sequences: int) -> Task:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY, sequences * CONTEXT).astype(np.int16)
    offsets = np.arange(sequences + 1) * CONTEXT
    scored = np.ones(len(tokens), bool)
    scored[offsets[:-1]] = False

    def split(name: str, role: str, most: int) -> Split:
        end = most * CONTEXT
        return Split(name, role, tokens[:end], offsets[: most + 1], scored[:end])

    return Task(
        name="random",
        spec={"name": "random"},
        vocabulary=tuple(map(str, range(VOCABULARY))),
        candidates=np.arange(VOCABULARY),
        splits={"train": split("train", "train", sequences), "iid": split("iid", "iid", 2)},
    )


def anamorph(task: Task, shape: DecoderConfig, batch_tokens: int) -> float:
    """Characters a second, after the first steps."""
    config = TrainingConfig(
        steps=STEPS, batch_tokens=batch_tokens, evaluate_every=10**6, checkpoint_every=10**6
    )
    times: list[float] = []
    train(task, config=config, model=shape, watch=lambda _: times.append(time.perf_counter()))
    # the last step is followed by an evaluation, before it is told
    return (STEPS - 1 - WARM_UP) * batch_tokens / (times[-2] - times[WARM_UP - 1])


def trainer(task: Task, shape: DecoderConfig, batch_tokens: int, bf16: bool) -> float:
    """Characters a second of `transformers.Trainer`, after the first steps."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.mlp,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu",
        tie_word_embeddings=False,
        use_cache=False,
    )
    model = transformers.GPT2LMHeadModel(config)
    rows = [torch.from_numpy(x.astype(np.int64)) for x in task.train]
    data = [{"input_ids": row, "labels": row} for row in rows]
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_tokens // CONTEXT,
            max_steps=STEPS,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=bf16,
        )
        transformers.Trainer(
            model=model, args=arguments, train_dataset=data, callbacks=[Clock()]
        ).train()
    return (STEPS - WARM_UP) * batch_tokens / (times[-1] - times[WARM_UP - 1])


def peak() -> float:
    """Operations a second of torch's float32 matrix product, at its best size of several."""
    best = 0.0
    for size in (512, 1024, 2048):
        a, b = torch.randn(size, size), torch.randn(size, size)
        for _ in range(8):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (
        ("width", 128),
        ("layers", 4),
        ("heads", 4),
        ("batch-tokens", 8192),
        ("rounds", 3),
    ):
        arguments.add_argument(f"--{name}", type=int, default=value)
    options = arguments.parse_args()
    shape = DecoderConfig(
        vocabulary=VOCABULARY,
        context=CONTEXT,
        layers=options.layers,
        heads=options.heads,
        width=options.width,
        mlp=4 * options.width,
        positions="rotary",
    )
    task = random_task(STEPS * options.batch_tokens // CONTEXT)
    ratios, ours = [], []
    for _ in range(options.rounds):
        mine = anamorph(task, shape, options.batch_tokens)
        theirs = {
            name: trainer(task, shape, options.batch_tokens, bf16)
            for name, bf16 in (("float32", False), ("bfloat16", True))
            if not bf16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        }
        ours.append(mine)
        ratios.append(mine / max(theirs.values()))
        told = ", ".join(f"{name} {value:,.0f}" for name, value in theirs.items())
        print(
            f"anamorph {mine:,.0f} characters/s; Trainer {told}; ratio {ratios[-1]:.2f}", flush=True
        )
    weights = shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.mlp)
    weights += shape.width * shape.vocabulary
    each = 6 * weights + 6 * shape.layers * CONTEXT * shape.width
    share = statistics.median(ours) * each / peak()
    print(f"ratio, median: {statistics.median(ratios):.2f}; {share:.0%} of the peak")


if __name__ == "__main__":
    main()
