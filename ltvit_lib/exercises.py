"""Checks for the notebooks' exercises: a reader's function against a reference, case by case."""

from collections.abc import Callable

import torch


def check(answer: Callable, reference: Callable, *cases: tuple, tolerance: float = 1e-4) -> None:
    """Says whether `answer` agrees with `reference` on every case (a tuple of arguments), or where it first differs.

    An answer that still returns None is not judged, so a notebook runs from top to bottom before it is solved.

    Raises:
        AssertionError: a wrong answer, with the case, the value got and the value wanted.
    """
    for case in cases:
        got = answer(*case)
        if got is None:
            print(f"{answer.__name__}: not answered yet")
            return
        wanted = reference(*case)
        got_values, wanted_values = (torch.as_tensor(v, dtype=torch.float64) for v in (got, wanted))
        same = got_values.shape == wanted_values.shape
        if not same or not torch.allclose(got_values, wanted_values, rtol=tolerance, atol=tolerance, equal_nan=True):
            raise AssertionError(f"{answer.__name__}{case} gave {got}, expected {wanted}")
    print(f"{answer.__name__}: right on {len(cases)} cases")
