"""Data as NumPy arrays, embedded, generated, or from local files, split and standardized; one data set a file."""

from jaxsharp.data._dataset import Dataset
from jaxsharp.data.cifar10 import cifar10
from jaxsharp.data.diabetes import diabetes
from jaxsharp.data.digits import digits
from jaxsharp.data.low_rank import low_rank
from jaxsharp.data.mnist import mnist
from jaxsharp.data.sorting import sorting
from jaxsharp.data.text import text

__all__ = ["Dataset", "cifar10", "diabetes", "digits", "low_rank", "mnist", "sorting", "text"]
