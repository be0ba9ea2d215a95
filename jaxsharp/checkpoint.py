"""Checkpoints of a grid: a folder of plain NumPy archives and JSON; nothing in them is executed."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsharp._types import PyTree

FORMAT = "4"
"""Changes with what the files hold, so that those of an older release are refused rather than misread."""


def fingerprint(arrays: PyTree, **settings: Any) -> dict[str, str]:
    """Names a grid by the content of its arrays and by its settings.

    Args:
        arrays: every array that the result depends on.
        **settings: anything with a stable `str`; arrays are hashed.

    Returns:
        name -> text, equal for equal grids.

    Example:
        >>> fingerprint([1.0], steps=3)["steps"]
        '3'
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    texts = {}
    for name, value in settings.items():
        text = hashlib.sha256(value.tobytes()).hexdigest() if isinstance(value, np.ndarray) else str(value)
        texts[name] = re.sub(r" at 0x[0-9a-f]+", "", text)  # functions are named, not located
    return {"format": FORMAT, "arrays": digest.hexdigest(), **texts}


class Store:
    """A folder with a plan that names the grid, a file for each finished batch, and one for the running batch.

    Files are written beside their place and then renamed, so that an interruption leaves the previous one whole.

    Args:
        folder: made where it is missing.
        identity: from `fingerprint`.

    Raises:
        ValueError: for a folder that holds another grid or cannot be used.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict[str, str]):
        """Opens the folder, or refuses it."""
        self.folder = Path(folder)
        plan = self.folder / "plan.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = json.loads(plan.read_text()) if plan.exists() else None
            if found is None:
                plan.write_text(json.dumps(identity, indent=1))
        except json.JSONDecodeError:
            raise ValueError(
                f"checkpoint={str(folder)!r} has an unreadable plan.json; delete the folder to start again."
            ) from None
        except OSError as error:
            raise ValueError(f"checkpoint={str(folder)!r} cannot be used: {error}") from None
        different = [name for name in identity if found is not None and found.get(name) != identity[name]]
        if different:
            raise ValueError(
                f"checkpoint={str(folder)!r} holds another run (different: {', '.join(different)}); "
                "choose another folder or delete this one."
            )

    def finished(self, number: int) -> tuple[PyTree | None, float]:
        """Reads a finished batch and the seconds that it took, or returns None and 0."""
        found = self._read(f"batch-{number:04d}.npz")
        return (None, 0.0) if found is None else (found["done"], float(found["seconds"]))

    def finish(self, number: int, done: PyTree, seconds: float) -> None:
        """Writes a finished batch, a tree of dictionaries and arrays, and forgets the running one."""
        self._write(f"batch-{number:04d}.npz", {"done": done, "seconds": np.asarray(seconds)})
        (self.folder / f"running-{number:04d}.npz").unlink(missing_ok=True)

    def running(self, number: int, like: PyTree) -> tuple[int, PyTree, PyTree, float] | None:
        """Reads a running batch: its position in the schedule, its carry in the structure of `like`, its records, its seconds."""
        found = self._read(f"running-{number:04d}.npz")
        if found is None:
            return None
        leaves = [jnp.asarray(found["carry"][f"{index}"]) for index in range(len(jax.tree.leaves(like)))]
        carry = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return int(found["position"]), carry, found["records"], float(found["seconds"])

    def save_running(self, number: int, position: int, carry: PyTree, records: PyTree, seconds: float) -> None:
        """Writes a running batch, with the seconds that it has taken so far."""
        leaves = {f"{index}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(carry))}
        state = {"position": np.asarray(position), "carry": leaves, "records": records, "seconds": np.asarray(seconds)}
        self._write(f"running-{number:04d}.npz", state)

    def _write(self, name, tree):
        temporary = self.folder / f"{name}.partial"
        with temporary.open("wb") as file:
            np.savez(file, **_flatten(tree))
        os.replace(temporary, self.folder / name)

    def _read(self, name):
        path = self.folder / name
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return _unflatten({key: archive[key] for key in archive.files})
        except Exception as error:
            raise ValueError(
                f"the checkpoint {str(path)!r} cannot be read ({error}); delete this file to redo its batch."
            ) from None


def _flatten(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: leaf for name, value in tree.items() for key, leaf in _flatten(value, f"{prefix}/{name}" if prefix else name).items()
    }


def _unflatten(flat):
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
