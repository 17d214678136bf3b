"""Metrics against small cases worked out by hand."""

import numpy as np
import pytest

from avfmae.metrics import classification, concordance, confusion_matrix, pearson, regression


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
