"""The (epsilon, delta) account."""

import math
import sys

import pytest

from lscl import cli
from lscl.errors import LsclError
from lscl.experiments.privacy.account import account_of, adds_noise, epsilon_of
from lscl.experiments.run import run


def test_epsilon_is_that_of_renyi_dp_for_a_gaussian():
    sigma, delta = 2.0, 1e-5
    plain = min(a / (2 * sigma**2) + math.log(1 / delta) / (a - 1) for a in [1 + k / 100 for k in range(1, 5000)])
    assert 0.8 * plain < epsilon_of(sigma, 1, delta) <= plain  # the accountant's conversion is tighter


def test_more_releases_cost_more_and_more_noise_less():
    assert epsilon_of(1.0, 1, 1e-5) < epsilon_of(1.0, 10, 1e-5) < epsilon_of(0.1, 10, 1e-5)
    assert epsilon_of(2.0, 4, 1e-5) == pytest.approx(epsilon_of(1.0, 1, 1e-5), rel=1e-6)
    assert epsilon_of(1.0, 0, 1e-5) == 0


def test_the_account_of_a_run_counts_all_exchanges(played):
    account = account_of(played(dp_noise=1.0)[0])
    assert (account["unit"], account["releases"]) == ("client", 4)  # one task of two rounds, two tensors each
    assert account["epsilon"] == pytest.approx(epsilon_of(1.0, 4, 1e-5), abs=1e-5)
    assert account_of(played("fed_ncm", dp_noise=1.0)[0])["releases"] == 1
    assert account_of(played()[0]) is None and not adds_noise(played("fedavg")[0].config)


def test_it_stands_in_the_record_of_a_run_with_noise_and_in_no_other(smoke):
    assert run(smoke(method="fed_ncm", dp_noise=1.0), quiet=True)["privacy"]["unit"] == "image"
    assert "privacy" not in run(smoke(method="fed_ncm"), quiet=True)


def test_without_the_accountant_a_run_with_noise_does_not_begin(smoke, monkeypatch, places):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(LsclError, match=r"dp_noise > 0 needs the extra privacy, pip install 'fed-lscl\[privacy\]'"):
        run(smoke(method="fed_ncm", dp_noise=1.0), quiet=True)
    run(smoke(method="fed_ncm"), quiet=True)


@pytest.mark.parametrize(("more", "told"), [(["--dp-noise", "1"], True), ([], False)])
def test_the_command_says_the_epsilon_of_a_run_with_noise(capsys, more, told):
    with pytest.raises(SystemExit):
        cli.main(["run", "--method", "fed_ncm", "--profile", "smoke", "--stop-after", "1", *more])
    said = f"noise: epsilon {epsilon_of(1.0, 1, 1e-5):.4g} at delta 1e-05 for each image, 1 release\n"
    assert (said in capsys.readouterr().out) == told
