"""The folder that a run writes to: checked before the computation, resumed after an interruption."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RESULTS, FIGURE, TABLE = "results.nc", "figure.png", "table.txt"

DPI = 200


class Interrupted(Exception):
    """A run that was stopped by the user, with the sentence that says how to go on."""


@dataclass(frozen=True)
class Output:
    """A folder with a finished result, an interrupted run (`checkpoint`), or nothing yet.

    Attributes:
        folder: where results go.
        again: the command that goes on after an interruption.
    """

    folder: Path
    again: str

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished run keeps its batches and its settings."""
        return self.folder / "checkpoint"

    @property
    def begun(self) -> bool:
        """Whether the checkpoint holds anything worth going on from."""
        return any(self.checkpoint.rglob("*.npz"))

    @property
    def results(self) -> Path:
        """The dataset."""
        return self.folder / RESULTS

    def open(self, *, resume: bool, force: bool) -> bool:
        """Makes the folder and makes sure that a run may write there, before anything is computed.

        Args:
            resume: whether to go on with what is there.
            force: whether to replace what is there.

        Returns:
            Whether the folder already holds a finished result that `resume` keeps.

        Raises:
            ValueError: for a folder that cannot be written, or that holds what neither option allows to touch.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ValueError(
                f"--out {str(self.folder)!r} cannot be written: {error.strerror or error}; choose another folder."
            ) from None
        if force:
            self.results.unlink(missing_ok=True)
        if force or not self.begun:
            self.clear()
        if resume and self.results.exists() and not self.begun:
            return True
        held = "an interrupted run" if self.begun else "results" if self.results.exists() else None
        if held and not resume:
            go_on = "--resume to go on with it, " if self.begun else ""
            raise ValueError(
                f"--out {str(self.folder)!r} already holds {held}; pass {go_on}--force to replace it, or another --out."
            )
        return False

    def remembered(self) -> dict | None:
        """Reads the settings of the interrupted run, or returns None where there is none."""
        path = self.checkpoint / "settings.json"
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise ValueError(f"the checkpoint {str(path)!r} cannot be read; pass --force to start again.") from None

    def remember(self, settings: dict) -> None:
        """Writes the settings of the run that begins."""
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        (self.checkpoint / "settings.json").write_text(json.dumps(settings, indent=1))

    def clear(self) -> None:
        """Removes the checkpoint."""
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Turns Ctrl-C into a sentence that says how to go on; a failed run leaves no checkpoint or folder that holds nothing."""
        try:
            yield
        except BaseException as error:
            begun = self.begun
            if not begun:
                self.clear()
                with contextlib.suppress(OSError):  # it holds something else
                    self.folder.rmdir()
            if not isinstance(error, KeyboardInterrupt):
                raise
            how = f"go on with `{self.again}`" if begun else "nothing was finished yet, so run it again from the start"
            raise Interrupted(f"interrupted; {how}.") from None


def write_figure(figure, path: Path) -> None:
    """Writes a figure in the format of the path's suffix.

    Args:
        figure: a matplotlib Figure.
        path: where.

    Raises:
        ValueError: for an unknown format or a path that cannot be written.
    """
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        raise ValueError(f"--out {str(path)!r} has no known image format; end it with .png, .pdf or .svg.")
    try:
        figure.savefig(path, dpi=DPI)
    except OSError as error:
        raise ValueError(
            f"the figure cannot be written to {str(path)!r}: {error.strerror or error}; choose another --out."
        ) from None


def add_output_arguments(parser, default: str) -> None:
    """Declares --out, --resume, --force and --no-progress."""
    parser.add_argument("--out", metavar="DIR", help=f"folder to write to (default: {default})")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in the folder; keep a finished one")
    parser.add_argument("--force", action="store_true", help="replace what the folder holds")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
