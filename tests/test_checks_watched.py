"""What no answer shows: how it was found; and what a function that raises has shown before."""

import sys

import pytest
import torch

from mistral_lab import checks, nf4


def printed(name, function, capsys) -> str:
    capsys.readouterr()
    getattr(checks, name)(function)
    return capsys.readouterr().out.removeprefix(f"{name}: ").strip()


def test_the_packages_own_round_trip_is_what_the_check_goes_on_with(capsys):
    ours = checks.round_trip(lambda w, block_size, codebook: NotImplemented)
    w = torch.randn(6, 64, generator=torch.Generator().manual_seed(3))
    for codebook in (nf4.CODEBOOK, nf4.FP4_CODEBOOK):
        back = nf4.dequantize(nf4.quantize(w, block_size=32, codebook=codebook))
        assert torch.allclose(
            ours(w, 32, codebook), back, rtol=1e-6, atol=0
        )  # one divides, the other multiplies by 1/x


def test_a_profile_that_runs_goes_on_after_a_check(capsys):
    def note(frame, event, argument):
        pass

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        assert "calls `nearest_numbers`" in printed("round_trip", lambda w, b, c: nf4.nearest_numbers(w, c), capsys)
        assert sys.getprofile() is note
    finally:
        sys.setprofile(before)


def test_a_constant_of_the_package_may_be_read(capsys):
    assert "calls" not in printed("round_trip", lambda w, b, c: w * nf4.CODEBOOK.max(), capsys)


def test_a_function_that_raises_later_is_told_what_its_first_answers_show(capsys):
    def function(W, A, B, alpha):
        return W + alpha / len(A) * (B @ A).T

    with pytest.raises(RuntimeError):
        function(torch.ones(4, 6), torch.ones(3, 6), torch.ones(4, 3), 1)
    assert "your change is transposed" in printed("merged_weight", function, capsys)


def test_a_function_that_raises_later_and_shows_no_known_slip_is_told_where_it_raises(capsys):
    def odd(W, A, B, alpha):
        return W + 0.1 * alpha * (B @ A).T + W.T

    assert "raises RuntimeError" in printed("merged_weight", odd, capsys)
