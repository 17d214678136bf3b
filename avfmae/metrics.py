"""What results are reported in. Classes are counted by a confusion matrix (rows: truth, columns: prediction)."""

from collections.abc import Sequence

import numpy as np


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(N,) class numbers each -> (classes, classes) counts."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def classification(matrix: np.ndarray) -> dict[str, float]:
    """UAR (mean recall), WAR (accuracy), weighted F1 and UF1 (mean F1) of a confusion matrix, in 0..1.

    A class that no clip has does not count for UAR; for UF1 it does, with 0, where it is predicted. This is scikit-learn's
    ``balanced_accuracy_score`` and macro ``f1_score``, and how micro-expression challenges count.
    """
    matrix = np.asarray(matrix, np.float64)
    hits, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    occurs = truth > 0
    recall = hits[occurs] / truth[occurs]
    named = truth + predicted > 0
    f1 = 2 * hits[named] / (truth + predicted)[named]
    weighted = (f1 * truth[named]).sum() / truth.sum()
    values = {"UAR": recall.mean(), "WAR": hits.sum() / matrix.sum(), "WF1": weighted, "UF1": f1.mean()}
    return {name: float(value) for name, value in values.items()}


def recalls(matrix: np.ndarray) -> list[float | None]:
    """Recall of each class of a confusion matrix, in 0..1; None where no clip is of it."""
    return [float(row[i] / row.sum()) if row.sum() else None for i, row in enumerate(matrix)]


def of_each_class(matrix: np.ndarray) -> list[dict[str, float]]:
    """Of each class of a confusion matrix: ``clips``; ``recall``, ``precision`` and ``F1`` in 0..1, 0 where undefined."""
    matrix = np.asarray(matrix, np.float64)
    hits, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    shares = {"recall": hits / np.maximum(1, truth), "precision": hits / np.maximum(1, predicted)}
    shares["F1"] = 2 * hits / np.maximum(1, truth + predicted)
    return [{"clips": int(truth[i])} | {name: float(v[i]) for name, v in shares.items()} for i in range(len(matrix))]


def multilabel(truth: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Of classes that are there or not, (N, classes) booleans and scores, above 0 for those predicted.

    Returns:
        mAP: mean over classes of the average precision; UF1: mean of F1; F1: of all decisions together; exact: clips without a
        wrong decision. Classes that no clip has count neither for mAP nor for UF1.
    """
    predicted, occurs = scores > 0, np.flatnonzero(truth.any(0))
    hits = (truth & predicted).sum(0)
    totals = truth.sum(0) + predicted.sum(0)
    precisions = [average_precision(truth[:, i], scores[:, i]) for i in occurs]
    values = {"mAP": np.mean(precisions or 0.0), "UF1": np.mean(2 * hits[occurs] / totals[occurs] if len(occurs) else 0.0),
              "F1": 2 * hits.sum() / max(1, totals.sum()), "exact": (truth == predicted).all(1).mean()}  # fmt: skip
    return {name: float(value) for name, value in values.items()}


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean precision at each clip that is there, in the order of falling scores; clips of equal scores come together."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of clips of equal scores
    found = np.cumsum(truth[order])[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def pearson(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson's correlation of two (N,) vectors; 0 where one of them is constant."""
    if not np.ptp(truth) or not np.ptp(predicted):  # around a rounded mean, equal numbers would vary
        return 0.0
    t, p = truth - truth.mean(), predicted - predicted.mean()
    return float((t * p).sum() / np.sqrt((t**2).sum() * (p**2).sum()))


def concordance(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Lin's concordance correlation of two (N,) vectors: 2 cov / (var + var + (mean − mean)²); 0 where one is constant."""
    if not np.ptp(truth) or not np.ptp(predicted):
        return 0.0
    t, p = truth - truth.mean(), predicted - predicted.mean()
    return float(2 * (t * p).mean() / ((t**2).mean() + (p**2).mean() + (truth.mean() - predicted.mean()) ** 2))


def regression(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str] = ()) -> dict[str, float]:
    """Metrics of (N, D) numbers each, over the dimensions and, of several, one by one.

    Args:
        names: of the dimensions, such as arousal; none: their numbers.

    Returns:
        PCC and CCC, averaged over dimensions; MSE; ACC, the mean of 1 − |error|, for numbers in 0..1 as the traits of First
        Impressions are; ``PCC_arousal`` and so on.
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    each = {
        "PCC": [pearson(t, p) for t, p in zip(truth.T, predicted.T, strict=True)],
        "CCC": [concordance(t, p) for t, p in zip(truth.T, predicted.T, strict=True)],
        "MSE": ((truth - predicted) ** 2).mean(0),
        "ACC": 1 - np.abs(truth - predicted).mean(0),
    }
    names = names or [str(i) for i in range(truth.shape[1])]
    whole = {metric: float(np.mean(values)) for metric, values in each.items()}
    if len(names) == 1:
        return whole
    return whole | {f"{m}_{name}": float(v) for m, values in each.items() for name, v in zip(names, values, strict=True)}
