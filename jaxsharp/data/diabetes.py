"""A small regression task: progression of diabetes after one year."""

from jaxsharp.data import _prepare
from jaxsharp.data._dataset import Dataset


def diabetes(
    count: int | None = None,
    test_count: int | None = None,
    *,
    seed: int = 0,
    standardize: bool = True,
) -> tuple[Dataset, Dataset]:
    """Loads the 442 patients that scikit-learn bundles, split at random; nothing is downloaded.

    Args:
        count: number n of training patients; None takes 353, four fifths.
        test_count: number of test patients; None takes all that remain.
        seed: of the split.
        standardize: whether to map the features and the targets to mean 0 and variance 1 over the training set, and the test
            set alike.

    Returns:
        (train, test), each a `Dataset` with inputs (n, 10) and targets (n,), both float64.

    Raises:
        ValueError: for counts that the patients do not cover.

    Example:
        >>> import jaxsharp as js
        >>> train, test = js.data.diabetes()
        >>> train.inputs.shape, test.inputs.shape, round(float(train.targets.std()), 6)
        ((353, 10), (89, 10), 1.0)

    Source: Efron, Hastie, Johnstone, Tibshirani 2004, Least Angle Regression.
    """
    # imported here because scikit-learn takes longer to import than jaxsharp itself
    from sklearn.datasets import load_diabetes

    inputs, targets = load_diabetes(return_X_y=True, scaled=False)
    rows, test_rows = _prepare.split(len(inputs), 353 if count is None else count, test_count, seed)
    inputs, test_inputs = inputs[rows], inputs[test_rows]
    targets, test_targets = targets[rows], targets[test_rows]
    if standardize:
        inputs, test_inputs = _prepare.standardize(inputs, test_inputs)
        targets, test_targets = _prepare.standardize(targets, test_targets)
    return Dataset(inputs, targets), Dataset(test_inputs, test_targets)
