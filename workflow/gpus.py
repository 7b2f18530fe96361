"""One GPU a run: which GPUs there are, and one of them held for a process alone.

python workflow/gpus.py prints how many runs may go on at once.
"""

import contextlib
import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


def devices() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them: those that it names already, or all."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    except OSError:  # no driver
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


@contextlib.contextmanager
def held(folder: Path | None = None, wait: float = 1.0) -> Iterator[str | None]:
    """Holds a GPU that no other process holds, and waits for one; None on a machine without.

    The hold is a file lock, which the system lifts when the process ends, however it ends.

    Args:
        folder: where the locks lie; None: this user's, on this machine.
        wait: seconds between two looks at GPUs that are all taken.
    """
    names = devices()
    if not names:
        yield None
        return
    folder = folder or Path(tempfile.gettempdir()) / f"ltvit-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    job = os.environ.get("SLURM_JOB_ID", "")  # two Slurm jobs on one machine may both call their GPU 0
    while True:
        for name in names:
            if file := _locked(folder / f"{job}-{name}.lock"):
                with file:
                    yield name
                return
        time.sleep(wait)


def _locked(path: Path) -> TextIO | None:
    """The file, open and locked for this process; None while another one has it."""
    file = open(path, "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


if __name__ == "__main__":
    print(max(1, len(devices())))
