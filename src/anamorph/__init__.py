"""Anamorph tells you whether a simplified view of a Transformer still holds away from its data.

A *simplification* (an SVD of keys and queries, clusters, one-hot attention) is put back into the
model as a *proxy*, and the two are compared in distribution and out of it:

    >>> import anamorph as am
    >>> task = am.load_task("dyck", k=4, m=3, train=500, test=40, max_length=62)
    >>> model, curves = am.train(task, config=am.TrainingConfig(steps=20, batch_tokens=512))
    >>> audit = am.audit(model, task, [am.SVD(rank=4) @ "1.*.{query,key}"])
    >>> sorted(audit.gaps["split"].unique())[:2]
    ['seen_structure', 'unseen_depth']
"""

from anamorph.auditing.audit import Audit, audit
from anamorph.errors import AnamorphError
from anamorph.faithfulness.gaps import Thresholds
from anamorph.models.checks import check_model
from anamorph.models.decoder import Decoder, DecoderConfig
from anamorph.models.hooked.hooks import Hook
from anamorph.models.hooked.model import HookedModel
from anamorph.models.huggingface.load import load_pretrained
from anamorph.models.huggingface.model import HuggingFace
from anamorph.models.listing import list_sites
from anamorph.runs.folder import load_run
from anamorph.simplifications import (
    PCA,
    SVD,
    KMeans,
    OneHot,
    Simplification,
    check_simplification,
    sweep,
)
from anamorph.studies.given import audit_given
from anamorph.studies.specification import load_preset
from anamorph.studies.study import run_study
from anamorph.tasks import load_task
from anamorph.tasks.text.task import text_task
from anamorph.training.train import TrainingConfig, train
from anamorph.version import version as _version

__version__ = _version()

__all__ = [
    "PCA",
    "SVD",
    "AnamorphError",
    "Audit",
    "Decoder",
    "DecoderConfig",
    "Hook",
    "HookedModel",
    "HuggingFace",
    "KMeans",
    "OneHot",
    "Simplification",
    "Thresholds",
    "TrainingConfig",
    "audit",
    "audit_given",
    "check_model",
    "check_simplification",
    "list_sites",
    "load_preset",
    "load_pretrained",
    "load_run",
    "load_task",
    "run_study",
    "sweep",
    "text_task",
    "train",
]
