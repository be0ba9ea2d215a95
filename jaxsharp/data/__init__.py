"""Embedded real data as NumPy arrays, split and standardized; one data set a file."""

from jaxsharp.data._dataset import Dataset
from jaxsharp.data.diabetes import diabetes
from jaxsharp.data.digits import digits

__all__ = ["Dataset", "diabetes", "digits"]
