"""One run as a job: a GPU of its own, papermill on a runner of notebooks/full, and an error in one sentence.

python workflow/one_run.py RUNNER PAGE PARAMETERS LOG

RUNNER is the notebook, PAGE where it goes with its outputs, PARAMETERS its parameters as JSON. What went wrong goes to
the terminal and to LOG; PAGE has the whole traceback of what this project did not refuse itself.
"""

import json
import os
import sys
from pathlib import Path

import gpus
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError


def execute(runner: str, page: str, parameters: dict) -> str:
    """Executes a notebook on a GPU of its own. Returns what went wrong, empty if nothing did."""
    Path(page).parent.mkdir(parents=True, exist_ok=True)
    os.environ["TQDM_DISABLE"] = "1"  # nobody watches: progress is in the run folder's metrics.csv
    with gpus.held() as device:
        if device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = device
        try:
            papermill.execute_notebook(runner, page, parameters, progress_bar=False, start_timeout=600)
        except PapermillExecutionError as error:
            return error.evalue.splitlines()[0] if error.evalue else error.ename
        except DeadKernelError:
            return "the process was killed: is there enough memory?"
    return ""


def main(runner: str, page: str, parameters: str, log: str) -> int:
    """Returns the exit status: 0, or 1 after a failure."""
    chosen = json.loads(parameters)
    wrong = execute(runner, page, chosen)
    if wrong:
        sentence = f"{chosen['recipe']}, seed {chosen['seed']}: {wrong} (its page: {page})"
        Path(log).write_text(sentence + "\n")
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
