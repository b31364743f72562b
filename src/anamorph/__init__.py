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

from importlib import import_module
from typing import TYPE_CHECKING

from anamorph.version import version as _version

if TYPE_CHECKING:
    from anamorph.analysis.along import Along as Along
    from anamorph.analysis.compare import Comparison as Comparison
    from anamorph.analysis.compare import compare as compare
    from anamorph.auditing.audit import Audit as Audit
    from anamorph.auditing.audit import audit as audit
    from anamorph.auditing.ray import RayEngine as RayEngine
    from anamorph.errors import AnamorphError as AnamorphError
    from anamorph.faithfulness.gaps import Thresholds as Thresholds
    from anamorph.models.checks import check_model as check_model
    from anamorph.models.decoder import Decoder as Decoder
    from anamorph.models.decoder import DecoderConfig as DecoderConfig
    from anamorph.models.hooked.hooks import Hook as Hook
    from anamorph.models.hooked.model import HookedModel as HookedModel
    from anamorph.models.huggingface.load import load_pretrained as load_pretrained
    from anamorph.models.huggingface.model import HuggingFace as HuggingFace
    from anamorph.models.listing import list_sites as list_sites
    from anamorph.report.along import along as along
    from anamorph.report.opened import OpenedRun as OpenedRun
    from anamorph.report.opened import load_run as load_run
    from anamorph.runs.query import query as query
    from anamorph.runs.query import query_columns as query_columns
    from anamorph.simplifications import PCA as PCA
    from anamorph.simplifications import SVD as SVD
    from anamorph.simplifications import AnotherModel as AnotherModel
    from anamorph.simplifications import Estimator as Estimator
    from anamorph.simplifications import KMeans as KMeans
    from anamorph.simplifications import OneHot as OneHot
    from anamorph.simplifications import Simplification as Simplification
    from anamorph.simplifications import check_simplification as check_simplification
    from anamorph.simplifications import sweep as sweep
    from anamorph.studies.plugins import load_plugin as load_plugin
    from anamorph.studies.plugins import register as register
    from anamorph.studies.specification import load_preset as load_preset
    from anamorph.studies.study import audit_given as audit_given
    from anamorph.studies.study import run_study as run_study
    from anamorph.tasks import load_task as load_task
    from anamorph.tasks.text.task import text_task as text_task
    from anamorph.training.train import TrainingConfig as TrainingConfig
    from anamorph.training.train import train as train

_WHERE = {
    "PCA": "simplifications",
    "SVD": "simplifications",
    "Along": "analysis.along",
    "AnamorphError": "errors",
    "AnotherModel": "simplifications",
    "Audit": "auditing.audit",
    "Comparison": "analysis.compare",
    "Decoder": "models.decoder",
    "DecoderConfig": "models.decoder",
    "Estimator": "simplifications",
    "Hook": "models.hooked.hooks",
    "HookedModel": "models.hooked.model",
    "HuggingFace": "models.huggingface.model",
    "KMeans": "simplifications",
    "OneHot": "simplifications",
    "OpenedRun": "report.opened",
    "RayEngine": "auditing.ray",
    "Simplification": "simplifications",
    "Thresholds": "faithfulness.gaps",
    "TrainingConfig": "training.train",
    "along": "report.along",
    "audit": "auditing.audit",
    "audit_given": "studies.study",
    "check_model": "models.checks",
    "check_simplification": "simplifications",
    "compare": "analysis.compare",
    "list_sites": "models.listing",
    "load_plugin": "studies.plugins",
    "load_preset": "studies.specification",
    "load_pretrained": "models.huggingface.load",
    "load_run": "report.opened",
    "load_task": "tasks",
    "query": "runs.query",
    "query_columns": "runs.query",
    "register": "studies.plugins",
    "run_study": "studies.study",
    "sweep": "simplifications",
    "text_task": "tasks.text.task",
    "train": "training.train",
}
"""Where each public name is from: it is imported when it is first used, as torch takes its time."""

__all__ = [*_WHERE]
__version__ = _version()

if not TYPE_CHECKING:  # a type checker would take any name for a public one

    def __getattr__(name: str) -> object:
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted([*_WHERE, "__doc__", "__version__"])
