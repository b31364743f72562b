"""A projection from a file: against NumPy, and refused where it is none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import anamorph as am
from anamorph.errors import AnamorphError
from anamorph.simplifications import check_simplification, parse
from anamorph.simplifications.methods.projection import GivenProjection
from anamorph.tasks import Task

RANDOM = np.random.default_rng(0)
AXES = np.linalg.qr(RANDOM.standard_normal((8, 3))).Q.T.copy()  # [3, 8] orthonormal rows
X = torch.from_numpy(RANDOM.standard_normal((5, 8)))


def saved(path: Path, array: np.ndarray) -> GivenProjection:
    np.save(path / "p.npy", array)
    return GivenProjection(path=str(path / "p.npy"))


def learnt(given: GivenProjection) -> GivenProjection:
    return given.clone().learn(None)


def test_it_projects_as_numpy_does(tmp_path: Path) -> None:
    expected = np.stack([sum((x @ a) * a for a in AXES) for x in X.numpy()])  # axis by axis
    by_matrix, by_rows = saved(tmp_path, AXES.T @ AXES), tmp_path / "rows.safetensors"
    np.testing.assert_allclose(learnt(by_matrix)(X).numpy(), expected, atol=1e-12)
    save_file({"rows": AXES}, by_rows)
    np.testing.assert_allclose(
        learnt(GivenProjection(path=str(by_rows)))(X).numpy(), expected, atol=1e-12
    )
    check_simplification(by_matrix, dim=8)


def test_an_oblique_one_takes_rows_and_says_so(tmp_path: Path) -> None:
    oblique = np.zeros((8, 8))
    oblique[0, :2] = 1, 2  # x becomes x0 (e0 + 2 e1)
    given = saved(tmp_path, oblique)
    with pytest.warns(UserWarning, match="not symmetric"):
        given.statistic(8)
    expected = np.zeros((5, 8))
    expected[:, 0], expected[:, 1] = X[:, 0], 2 * X[:, 0]
    np.testing.assert_allclose(learnt(given)(X).numpy(), expected)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (2 * np.eye(8), r"not a projection: applied twice it differs from itself by up to 2\b"),
        (np.eye(7), r"for 7 dimensions, and the activations have 8"),
        (2 * AXES, "not orthonormal"),
        (np.eye(8)[0], r"an array of shape \[8\]"),
        (np.full((8, 8), np.nan), "NaN"),
        (np.array([{}]), "Cannot read"),  # a pickle, which is not loaded
    ],
)
def test_what_is_no_projection_is_refused(tmp_path: Path, array: np.ndarray, said: str) -> None:
    with pytest.raises(AnamorphError, match=said):
        saved(tmp_path, array).statistic(8)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    two = tmp_path / "two.safetensors"
    save_file({"a": AXES, "b": AXES}, two)
    for path, said in [
        (two, "2 tensors"),
        (tmp_path / "p.pt", "neither"),
        (tmp_path / "no.npy", "No such file"),
    ]:
        with pytest.raises(AnamorphError, match=said):
            GivenProjection(path=str(path)).statistic(8)


def test_it_is_audited_and_its_file_is_told_apart(task: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = am.DecoderConfig(len(task.vocabulary), 64, width=16, heads=2, mlp=16)
    model = am.Decoder(config).eval()
    spec = f'projection("{tmp_path / "p.npy"}")@*.residual'
    np.save(tmp_path / "p.npy", np.eye(16))
    (proxy,) = parse(spec)
    before = proxy.attachments[0].simplification.fingerprint()  # type: ignore[attr-defined]
    kept = am.audit(model, task, spec, sequences=10).results
    same = kept.filter(metric="output_kl", split="iid").filter(method="projection")["value"]
    assert same.max() < 1e-6
    np.save(tmp_path / "p.npy", np.zeros((16, 16)))
    assert proxy.attachments[0].simplification.fingerprint() != before  # type: ignore[attr-defined]
    gone = am.audit(model, task, spec, sequences=10).results
    assert gone.filter(metric="output_kl", split="iid", method="projection")["value"].min() > 1e-3
    with pytest.raises(AnamorphError, match=r"for 16 dimensions, and the activations have \d+"):
        am.audit(model, task, spec.replace("*.residual", "0.0.key"), sequences=10)
