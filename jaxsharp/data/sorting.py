"""The sorting task: a decoder reads a sequence of integers and writes it in order."""

import numpy as np

from jaxsharp.data._dataset import Dataset

MOST_LISTED = 2**20
"""Up to so many sequences all are listed and shuffled; of more, random ones are drawn until enough differ."""


def sorting(
    count: int = 1000, test_count: int = 1000, *, length: int = 8, values: int = 8, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """Generates sequences of integers and the same in order, for next-token prediction; train and test share no sequence.

    A sequence s of `length` integers is uniform over {0, …, values − 1}^length, without repetition of whole sequences. With
    its sorted form t the inputs are s₁ … s_l t₁ … t_{l−1} and the targets t₁ … t_l, which belong to the last l positions: the
    last integer of s predicts t₁, t₁ predicts t₂, and so on. `js.problems.supervised(model, train, test,
    loss="cross_entropy")` takes the mean cross-entropy over these positions and ignores the others.

    Args:
        count: number n of training sequences.
        test_count: number of test sequences.
        length: l, of a sequence.
        values: number of different integers, the vocabulary.
        seed: of the draw.

    Returns:
        (train, test), each a `Dataset` with inputs (n, 2 l − 1) and targets (n, l), both int32.

    Raises:
        ValueError: for sizes below 1, or more sequences than there are.

    Example:
        >>> import jaxsharp as js
        >>> train, _ = js.data.sorting(2, 1, length=4, values=10)
        >>> train.inputs[0].tolist(), train.targets[0].tolist()
        ([7, 7, 5, 3, 3, 5, 7], [3, 5, 7, 7])

    Source: the task of minGPT's sorting demonstration, as used by Cohen, Damian et al. 2024; sizes are ours.
    """
    for name, value in {"count": count, "test_count": test_count, "length": length, "values": values}.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number, at least 1.")
    total = values**length
    if count + test_count > total:
        raise ValueError(
            f"count + test_count = {count + test_count}, but there are only {total} sequences; pass a larger length."
        )
    rng = np.random.default_rng(seed)
    if total <= MOST_LISTED:
        codes = rng.permutation(total)[: count + test_count]
        sequences = codes[:, None] // values ** np.arange(length) % values
    else:
        sequences = np.empty((0, length), int)
        while len(sequences) < count + test_count:
            sequences = np.concatenate([sequences, rng.integers(values, size=(count + test_count, length))])
            _, first = np.unique(sequences, axis=0, return_index=True)
            sequences = sequences[np.sort(first)]
        sequences = sequences[: count + test_count]
    ordered = np.sort(sequences, axis=1)
    inputs = np.concatenate([sequences, ordered[:, :-1]], axis=1).astype(np.int32)
    targets = ordered.astype(np.int32)
    return Dataset(inputs[:count], targets[:count]), Dataset(inputs[count:], targets[count:])
