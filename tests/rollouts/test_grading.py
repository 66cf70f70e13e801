from __future__ import annotations

import threading

import pytest

from opd_probe.rollouts.grading import grade

RIGHT = [
    (r"so the answer is \boxed{142}.", "142.0"),
    (r"\boxed{1} no, \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{\dfrac{3}{4}}", r"\frac{3}{4}"),
    (r"\boxed{1,234}", "1234"),
    ("we get 3, then 17", "17"),
    ("the total is 1,200.", "1200"),
    ("it is -5", "-5"),
    (r"\boxed{x^2+2x+1}", "(x+1)^2"),
    (r"\boxed{204}", "204"),
    ("a has 3 . total answer 12", "12"),
    ("it is 1/2", "0.5"),
    ("10-5 = 3+2, so 10-5", "5"),
    (r"\boxed{50\%}", "50"),
    ("it is 50%", "50%"),
    (r"\boxed{\text{yes}}", "yes"),
    (r"\boxed{-\frac{1}{2}}", "-1/2"),
    (r"\boxed{(1,2)}", "(1,2)"),
]
WRONG = [
    (r"\boxed{3} and then 4", "4"),
    (r"\boxed{\frac{1}{3}}", "0.5"),
    ("17 then 3", "17"),
    ("", "3"),
    ("no number", "3"),
    (r"\boxed{5", "4"),
    ("12.5", "12"),
    ("it is 5", "-5"),
    (r"\boxed{}", "4"),
    ("it is 1/2", "2"),
    (r"\boxed{12}", "1,2"),
    ("3, 4", "34"),
    (r"\boxed{no}", "yes"),
    ("1e999999999", "3"),
    ("1" * 20_000, "3"),
    ("(" * 3_000, "3"),
    (r"\boxed{1/0}", "3"),
]


@pytest.mark.parametrize(("response", "answer"), RIGHT)
def test_right_answers(response: str, answer: str) -> None:
    assert grade(response, answer) is True


@pytest.mark.parametrize(("response", "answer"), WRONG)
def test_wrong_answers(response: str, answer: str) -> None:
    assert grade(response, answer) is False


def test_an_expression_that_never_ends_is_wrong(capfd: pytest.CaptureFixture[str]) -> None:
    assert grade(r"\boxed{9^{9^{9}}}", "3") is False
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(grade(r"\boxed{9^{9^{9^{9}}}}", "3")))
    thread.start()
    thread.join()
    assert results == [False]
    assert capfd.readouterr().err == ""


def test_outside_the_main_thread() -> None:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(grade(r"\boxed{\frac{2}{4}}", r"\frac{1}{2}")))
    thread.start()
    thread.join()
    assert results == [True]
