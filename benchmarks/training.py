"""Characters a second in training, against the same architecture by transformers and its Trainer.

    python benchmarks/training.py [--preset demo] [--rounds 5] [--even]

Both train a decoder of one shape (the code preset's, with learned positions as GPT-2 has) on the
same random characters in sequences as long as the functions of the recipe `demo` are, cut to 256;
with `--even` all are 256 long. A batch is the preset's, in characters with padding. transformers
trains a GPT-2 with its `Trainer` and AdamW in float32 and, where the processor has it, in bfloat16,
with the sampler it has by default (32 sequences a batch, so that none is larger) and with sequences
grouped by length (as many as are as long on the average). anamorph uses the recipe of
the code presets. All take turns; ratios are within rounds, and their median is given. Characters of
padding are not counted. The share of the machine's peak is that of the model's matrix products (6
operations a weight and token, 12 a layer, position and width for attention, halved as it is causal)
in what torch's own float32 matrix product reaches.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from itertools import islice, product

import numpy as np
import torch

from anamorph import load_preset
from anamorph.models.decoder import DecoderConfig
from anamorph.tasks import Split, Task
from anamorph.tasks.batches import shuffled
from anamorph.training.train import TrainingConfig, train

VOCABULARY, CONTEXT = 100, 256
STEPS = 20
WARM_UP = 4  # of them
# Of the functions of the recipe `demo`: characters at tenths of their number
LENGTHS = (40, 82, 101, 122, 149, 185, 237, 256, 256, 256, 256)


def random_task(sequences: int, even: bool) -> Task:
    rng = np.random.default_rng(0)
    lengths = np.interp(rng.random(sequences) * 10, np.arange(11), LENGTHS).astype(np.int64)
    if even:
        lengths[:] = CONTEXT
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(1, VOCABULARY, offsets[-1]).astype(np.int16)
    scored = np.ones(len(tokens), bool)
    scored[offsets[:-1]] = False

    def split(name: str, role: str, most: int) -> Split:
        end = offsets[most]
        return Split(name, role, tokens[:end], offsets[: most + 1], scored[:end])

    return Task(
        name="random",
        spec={"name": "random"},
        vocabulary=tuple(map(str, range(VOCABULARY))),
        candidates=np.arange(VOCABULARY),
        splits={"train": split("train", "train", sequences), "iid": split("iid", "iid", 2)},
    )


def anamorph(task: Task, shape: DecoderConfig, recipe: TrainingConfig) -> float:
    """Characters a second, after the first steps."""
    config = replace(recipe, steps=STEPS, evaluate_every=10**6, checkpoint_every=10**6)
    times: list[float] = []
    train(task, config=config, model=shape, watch=lambda _: times.append(time.perf_counter()))
    lengths = task.train.lengths
    batches = islice(shuffled(lengths, config.batch_tokens, 0), WARM_UP, STEPS - 1)
    characters = sum(int(lengths[batch].sum()) for batch in batches)
    # the last step is followed by an evaluation, before it is told
    return characters / (times[-2] - times[WARM_UP - 1])


def trainer(
    task: Task, shape: DecoderConfig, recipe: TrainingConfig, bf16: bool, grouped: bool
) -> float:
    """Characters a second of `transformers.Trainer`, after the first steps."""
    import transformers

    transformers.logging.set_verbosity_error()
    longest = round(task.train.lengths.mean()) if grouped else CONTEXT
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
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config)
    data = [{"input_ids": torch.from_numpy(x.astype(np.int64))} for x in task.train]
    times: list[float] = []
    characters: list[int] = []

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        # Padding at the right needs no mask: no character sees it.
        ids = [row["input_ids"] for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(ids, batch_first=True),
            "labels": pad(ids, batch_first=True, padding_value=-100),
        }

    model.register_forward_pre_hook(
        lambda _, __, given: characters.append(int((given["labels"] != -100).sum())),
        with_kwargs=True,
    )

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=recipe.batch_tokens // longest,
            max_steps=STEPS,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=bf16,
            train_sampling_strategy="group_by_length" if grouped else "random",
            remove_unused_columns=False,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            transformers.Trainer(
                model=model,
                args=arguments,
                train_dataset=data,
                data_collator=collate,
                callbacks=[Clock()],
            ).train()
    return sum(characters[WARM_UP:]) / (times[-1] - times[WARM_UP - 1])


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
    arguments.add_argument("--preset", default="demo", help="of code: shape and batch")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--even", action="store_true", help="sequences of one length")
    options = arguments.parse_args()
    spec = load_preset("code", options.preset)
    given = {"vocabulary": VOCABULARY, "context": CONTEXT, "positions": "learned"}
    shape = DecoderConfig(**spec.model | given)
    recipe = spec.training
    task = random_task(2 * STEPS * recipe.batch_tokens // CONTEXT, options.even)
    ours, ratios = [], defaultdict(list)
    for _ in range(options.rounds):
        ours.append(anamorph(task, shape, recipe))
        told = [f"anamorph {ours[-1]:,.0f} characters/s"]
        for grouped, bf16 in product((False, True), (False, True)):
            if bf16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                continue
            name = f"Trainer, {'grouped by length' if grouped else 'its sampler'}"
            name += ", bfloat16" if bf16 else ", float32"
            speed = trainer(task, shape, recipe, bf16, grouped)
            ratios[name].append(ours[-1] / speed)
            told.append(f"{name} {speed:,.0f}")
        print("; ".join(told), flush=True)
    for name, found in ratios.items():
        print(f"{statistics.median(found):.2f} times {name}", flush=True)
    weights = shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.mlp)
    weights += shape.width * shape.vocabulary
    mean = task.train.lengths.mean()
    seen = (task.train.lengths**2).mean() / mean  # positions before and after, of a character
    each = 6 * weights + 6 * shape.layers * seen * shape.width
    share = statistics.median(ours) * each / peak()
    print(f"{each / 1e6:.1f} MFlop a character of {mean:.0f} a sequence; {share:.0%} of the peak")


if __name__ == "__main__":
    main()
