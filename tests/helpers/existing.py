"""The devices that this machine has in truth: tests that hold on any are run on each of them."""

import torch

DEVICES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]
