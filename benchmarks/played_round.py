"""Play one federated round and store what crossed in it: `lscl pages` draws the animated picture from that.

It also draws the image that social networks show of the site, which is no text and therefore not a piece of `lscl
pages`. Both take seconds: python benchmarks/played_round.py
"""

import json

from lscl import paths
from lscl.config import experiment
from lscl.data.store import write_atomic
from lscl.experiments import records
from lscl.results.animation import played_round
from lscl.results.social_image import social_image


def main() -> None:
    """Write results/federation/round.json and book/_static/social.png."""
    config = experiment(profile="demo", dataset="glyphs", clients=4, tasks=1)
    about = {"commit": records.source()["commit"], "hardware": records.hardware()}
    trace = {**played_round(config), **about}
    write_atomic(paths.results() / "federation" / "round.json", (json.dumps(trace, indent=1) + "\n").encode())
    write_atomic(paths.root() / "book" / "_static" / "social.png", social_image(trace))


if __name__ == "__main__":
    main()
