"""A user's process, with settings of its own, in which every public function is called once.

Prints a JSON object: for each function, what was another afterwards.
"""

import decimal
import gc
import json
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
import torch
from threadpoolctl import threadpool_info

FOLDER = Path(sys.argv[-1])


def settle() -> None:
    """Settings that nobody has by default."""
    torch.set_num_threads(3)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    np.set_printoptions(precision=3)
    np.seterr(invalid="warn", divide="raise")
    warnings.simplefilter("once")
    warnings.filterwarnings("error", message="mine")
    warnings.showwarning = lambda *arguments, **more: None
    signal.signal(signal.SIGTERM, lambda *arguments: None)
    signal.signal(signal.SIGUSR1, lambda *arguments: None)
    logging.basicConfig(level=logging.INFO, filename=os.devnull)
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    logging.getLogger("mine").setLevel(17)
    os.environ["MINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.umask(0o027)
    pl.Config.set_tbl_rows(3)
    alt.theme.enable("dark")
    alt.renderers.enable("mimetype")
    decimal.getcontext().prec = 9
    sys.setrecursionlimit(2345)


def now() -> dict[str, Any]:
    """What a function may not change."""
    return {
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "other threads": sorted(
            (lib["user_api"], lib["num_threads"])
            for lib in threadpool_info()
            if lib["user_api"] == "blas"
        ),
        "torch random": torch.get_rng_state().tolist(),
        "numpy random": repr(np.random.get_state()),
        "python random": random.getstate(),
        "environment": dict(os.environ),
        "warnings": [*map(repr, warnings.filters), id(warnings.showwarning)],
        "dtype, device": (torch.get_default_dtype(), torch.get_default_device()),
        "gradient": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.is_autocast_enabled("cpu"),
        ),
        "numpy settings": (repr(np.geterr()), repr(np.get_printoptions())),
        "signals": {s: id(signal.getsignal(s)) for s in signal.valid_signals()},
        "logging": (
            logging.root.level,
            list(map(id, logging.root.handlers)),
            logging.root.manager.disable,
            {
                name: logging.getLogger(name).level
                for name in ("transformers", "mine", "torch", "matplotlib", "py.warnings")
            },
        ),
        "folder": os.getcwd(),
        "mask": mask(),
        "polars": pl.Config.state(),
        "altair": (alt.theme.active, alt.data_transformers.active, alt.renderers.active),
        "interpreter": (
            sys.path,
            sys.argv,
            sys.getrecursionlimit(),
            gc.isenabled(),
            decimal.getcontext().prec,
            locale.setlocale(locale.LC_ALL),
            *map(id, (sys.stdout, sys.stderr, sys.excepthook, sys.displayhook)),
        ),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "left over": [t.name for t in threading.enumerate()],
    }


def mask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def functions() -> dict[str, Callable[[], object]]:
    """The public functions, each on something tiny."""
    from transformers import GPT2Config, GPT2LMHeadModel

    import anamorph as am
    from anamorph.report import render
    from anamorph.studies.specification import StudySpec
    from anamorph.studies.study import audit_study, train_study
    from tiny_tokenizers import byte_level

    task = am.load_task("dyck", k=2, m=2, train=200, test=20, max_length=40)
    proxies = ["svd(rank=2)@1.*.{query,key}", "kmeans(clusters=3)@1.*.key", "onehot@1.*.pattern"]
    training = {"steps": 4, "batch_tokens": 256, "evaluate_every": 2, "checkpoint_every": 2}
    spec = StudySpec.of(
        {
            "task": {"name": "dyck", "k": 2, "m": 2, "train": 200, "test": 20, "max_length": 40},
            "model": {"width": 8, "mlp": 16},
            "training": training,
            "simplify": proxies,
            "audit": {"sequences": 10, "fit_sequences": 20},
            "seeds": (0, 1),
            "threads": 1,
        },
        "a test",
    )
    decoder = am.Decoder(am.DecoderConfig(vocabulary=len(task.vocabulary), context=64)).eval()
    decoder.save("decoder.safetensors")
    shape = {"vocab_size": 320, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=1, eos_token_id=2)).eval()
    model.save_pretrained("gpt2")
    byte_level().save_pretrained("gpt2")
    hooked = am.HuggingFace(model)
    tokens = torch.randint(len(task.vocabulary), (2, 9))
    words = "the cat sat on the mat and the dog sat on the log, again " * 40
    for name in ("train.txt", "iid.txt", "ood.txt"):
        Path(name).write_text(words)
    return {
        "load_task": lambda: am.load_task("dyck", k=2, m=2, train=200, test=20, max_length=40),
        "train": lambda: am.train(task, config=am.TrainingConfig(**training), seed=1, out="t"),
        "Decoder.load": lambda: am.Decoder.load("decoder.safetensors"),
        "audit": lambda: am.audit(decoder, task, proxies, sequences=8),
        "audit_given": lambda: am.audit_given(
            hooked, task, ["svd(rank=2)@1.*.query"], "given", sequences=8
        ),
        "load_pretrained": lambda: am.load_pretrained("gpt2"),
        "text_task": lambda: am.text_task(
            {"train": "train.txt", "iid": "iid.txt", "ood": "ood.txt"},
            byte_level(),
            length=16,
            packing="window",
        ),
        "list_sites": lambda: am.list_sites(hooked),
        "check_model": lambda: am.check_model(decoder, tokens),
        "check_simplification": lambda: am.check_simplification(am.KMeans(clusters=3)),
        "train_study": lambda: train_study(spec, "study"),
        "run_study": lambda: am.run_study(spec, "study"),
        "run_study, two workers": lambda: am.run_study(spec, "two", workers=2),
        "run_study, complete": lambda: am.run_study(spec, "study"),
        "audit_study": lambda: audit_study("study", proxies[:1], "again"),
        "load_run": lambda: am.load_run("study").results,
        "render": lambda: render(Path("study")),
    }


def main() -> None:
    sys.path[:] = map(os.path.abspath, sys.path)
    os.chdir(FOLDER)
    calls = functions()
    settle()
    found = {}
    for name, call in calls.items():
        before = now()
        try:
            call()
        except Exception as error:
            found[name] = [f"{type(error).__name__}: {error}"]
            continue
        after = now()
        found[name] = [key for key in before if before[key] != after[key]]
        for key in found[name]:
            print(name, key, before[key], after[key], file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
