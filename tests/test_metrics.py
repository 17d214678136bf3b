"""Metrics against small cases worked out by hand."""

import numpy as np
import pytest

from avfmae.metrics import classification, concordance, confusion_matrix, pearson, recalls, regression


def test_classification_by_hand():
    truth = np.array([0, 0, 0, 0, 1, 1])
    predicted = np.array([0, 0, 0, 1, 1, 0])
    matrix = confusion_matrix(truth, predicted, 2)
    assert matrix.tolist() == [[3, 1], [1, 1]]
    got = classification(matrix)
    assert got["WAR"] == pytest.approx(4 / 6) and got["UAR"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    f1 = (2 * 3 / (4 + 4), 2 * 1 / (2 + 2))
    assert got["UF1"] == pytest.approx(np.mean(f1)) and got["WF1"] == pytest.approx((4 * f1[0] + 2 * f1[1]) / 6)


def test_classes_that_do_not_occur_do_not_count():
    assert classification(confusion_matrix(np.array([0, 1]), np.array([0, 1]), 3)) == {"UAR": 1, "WAR": 1, "WF1": 1, "UF1": 1}
    assert classification(confusion_matrix(np.array([0, 0]), np.array([0, 2]), 3))["UAR"] == 0.5


def test_correlations():
    t = np.array([1.0, 2.0, 3.0, 4.0])
    assert pearson(t, 2 * t + 1) == pytest.approx(1) and pearson(t, -t) == pytest.approx(-1) and pearson(t, np.ones(4)) == 0
    assert concordance(t, t) == pytest.approx(1) and concordance(t, t + 1) == pytest.approx(2 * 1.25 / (2 * 1.25 + 1))
    t = t - t.mean()
    got = regression(np.stack([t, t], 1), np.stack([t, -t], 1))
    assert got["PCC"] == pytest.approx(0) and got["PCC_0"] == pytest.approx(1) and got["CCC_1"] == pytest.approx(-1)
    assert "PCC_0" not in regression(t[:, None], t[:, None])


def test_numbers_that_are_none_are_seen():
    """Not taken for constant numbers, whose correlation counts as 0."""
    broken = np.array([0.5, np.nan, 0.3])
    assert np.isnan(pearson(np.arange(3.0), broken)) and np.isnan(concordance(np.arange(3.0), broken))


def classification_cases():
    rng = np.random.default_rng(0)
    for classes in (2, 3, 7, 43):
        yield pytest.param(rng.integers(0, classes, 200), rng.integers(0, classes, 200), classes, id=f"{classes} classes")
    yield pytest.param(rng.integers(0, 3, 90), rng.integers(0, 5, 90), 5, id="classes absent from the truth")
    yield pytest.param(rng.integers(0, 5, 90), rng.integers(0, 2, 90), 5, id="classes never predicted")
    yield pytest.param(rng.integers(0, 3, 90), np.full(90, 1), 3, id="constant predictions")
    yield pytest.param(np.full(20, 2), rng.integers(0, 3, 20), 3, id="one class")
    yield pytest.param(np.array([1]), np.array([0]), 3, id="one clip")


@pytest.mark.parametrize(("truth", "predicted", "classes"), list(classification_cases()))
def test_classification_is_that_of_scikit_learn(truth, predicted, classes):
    sklearn = pytest.importorskip("sklearn.metrics")
    matrix = confusion_matrix(truth, predicted, classes)
    assert np.array_equal(matrix, sklearn.confusion_matrix(truth, predicted, labels=range(classes)))
    expected = {
        "UAR": sklearn.recall_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0),
        "WAR": sklearn.accuracy_score(truth, predicted),
        "WF1": sklearn.f1_score(truth, predicted, average="weighted", zero_division=0),
        "UF1": sklearn.f1_score(truth, predicted, average="macro", zero_division=0),
    }
    assert classification(matrix) == pytest.approx(expected, rel=1e-12)
    each = sklearn.recall_score(truth, predicted, labels=range(classes), average=None, zero_division=0)
    assert [r or 0.0 for r in recalls(matrix)] == pytest.approx(each)


def regression_cases():
    rng = np.random.default_rng(1)
    for clips, dimensions in ((50, 1), (200, 3), (2, 2)):
        yield pytest.param(*rng.normal(size=(2, clips, dimensions)), id=f"{clips} clips, {dimensions} dimensions")
    yield pytest.param(rng.random((40, 5)), np.full((40, 5), 0.3), id="constant predictions")
    yield pytest.param(1e6 + rng.normal(size=(40, 2)), 1e6 + rng.normal(size=(40, 2)), id="far from zero")
    yield pytest.param(np.ones((3, 2)), np.ones((3, 2)), id="all the same")
    yield pytest.param(np.full((11, 2), 0.1), np.full((11, 2), 0.7), id="all the same, whose mean is rounded")


@pytest.mark.parametrize(("truth", "predicted"), list(regression_cases()))
def test_regression_is_that_of_scipy_and_scikit_learn(truth, predicted):
    sklearn, scipy = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    names = [f"dimension{i}" for i in range(truth.shape[1])]
    got, means = regression(truth, predicted, names), {"PCC": [], "CCC": [], "MSE": [], "ACC": []}
    for name, t, p in zip(names, truth.T, predicted.T, strict=True):
        constant = np.ptp(t) == 0 or np.ptp(p) == 0
        pcc = 0.0 if constant else scipy.pearsonr(t, p).statistic
        spread = t.var() + p.var() + (t.mean() - p.mean()) ** 2
        expected = {
            "PCC": pcc, "CCC": 2 * pcc * t.std() * p.std() / spread if spread else 0.0,
            "MSE": sklearn.mean_squared_error(t, p), "ACC": 1 - sklearn.mean_absolute_error(t, p),
        }  # fmt: skip
        for metric, value in expected.items():
            means[metric].append(value)
            if len(names) > 1:
                assert got[f"{metric}_{name}"] == pytest.approx(value, rel=1e-7, abs=1e-9)
    assert {m: got[m] for m in means} == pytest.approx({m: np.mean(v) for m, v in means.items()}, rel=1e-7, abs=1e-9)
