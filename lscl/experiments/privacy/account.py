"""The (epsilon, delta) account of the noise in a run: Opacus' accountant adds up all exchanges."""

import warnings
from typing import Any

from lscl.config import Experiment
from lscl.errors import LsclError
from lscl.federation.method import Method

ALPHAS = [1 + 10 ** (k / 50) for k in range(-250, 250)]  # orders of RDP, from 1.00001 on


def adds_noise(config: Experiment) -> bool:
    """Whether the clients of a run add noise to what they send."""
    return "dp_noise" in config.values_read() and config.dp_noise > 0


def check_accountant(config: Experiment) -> None:
    """Refuse a run with noise if its account cannot be computed.

    Raises:
        LsclError: the package of the accountant is missing.
    """
    if adds_noise(config):
        epsilon_of(1.0, 1, config.dp_delta)


def epsilon_of(noise: float, releases: int, delta: float) -> float:
    """Epsilon of a number of Gaussian mechanisms, by Renyi differential privacy (Mironov 2017, arXiv 1702.07476).

    Args:
        noise: standard deviation in units of the sensitivity, above 0.
        releases: how many.
        delta: of the account.

    Returns:
        The smallest epsilon that the accountant finds; 0 if nothing is released.

    Raises:
        LsclError: Opacus is not installed.
    """
    try:
        from opacus.accountants import RDPAccountant
    except ModuleNotFoundError as error:
        raise LsclError(
            f"no package {error.name}: dp_noise > 0 needs the extra privacy, pip install 'fed-lscl[privacy]'"
        ) from None
    if releases == 0:
        return 0.0
    accountant = RDPAccountant()
    accountant.history = [(noise, 1.0, releases)]  # every client takes part in every exchange
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Optimal order"
        )  # at the end of ALPHAS the bound holds, it is not the tightest
        return float(accountant.get_epsilon(delta, alphas=ALPHAS))


def account_of(method: Method) -> dict[str, Any] | None:
    """The guarantee that the noise of a run gives.

    Args:
        method: the system.

    Returns:
        Unit, releases, noise multiplier, delta and epsilon; None without noise.

    Raises:
        LsclError: Opacus is not installed.
    """
    config = method.config
    if not adds_noise(config):
        return None
    unit, releases = method.releases()
    return {
        "unit": unit,
        "releases": releases,
        "noise": config.dp_noise,
        "delta": config.dp_delta,
        "epsilon": round(epsilon_of(config.dp_noise, releases, config.dp_delta), 6),
    }
