"""The exercises' judge: silent on no answer, content with a right one, exact about a wrong one."""

from ltvit_lib.exercises import check

import pytest
import torch


def test_right_answer(capsys):
    check(lambda x: x * 2, lambda x: x + x, (1,), (torch.arange(3.0),))
    assert "right on 2 cases" in capsys.readouterr().out


def test_no_answer_is_not_judged(capsys):
    check(lambda x: None, lambda x: x, (1,))
    assert "not answered yet" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [lambda x: x + 1e-2, lambda x: [x, x], lambda x: float("nan")])
def test_wrong_answer_names_case_and_values(answer):
    with pytest.raises(AssertionError, match=r"\(3\.0,\) gave .*expected 3\.0"):
        check(answer, lambda x: x, (3.0,))
