"""The client's side: what it keeps, what it refuses."""

import pytest

pytest.importorskip("flwr", reason="needs the extra flower: pip install -e '.[flower]'")
from stub_grid import EXTRA, StubGrid

from lscl.errors import LsclError
from lscl.flower import client_app


def test_nothing_private_is_in_any_message(over_flower, smoke, places):
    """What goes up is the payload; the state stays in the client's folder."""
    config = smoke()
    _, grid = over_flower(config)
    assert {name for message in grid.sent for record in message.content.values() for name in record} == {
        "payload",
        "client",
        "exchange",
        "nonce",
    }
    kept = sorted(path.name for path in (places / "private" / config.name / "client1").glob("*.safetensors"))
    assert kept == ["000003.safetensors", "000004.safetensors", "000005.safetensors"]


def test_a_late_answer_is_the_clients_own_affair(over_flower, smoke):
    """It has trained, so it goes on from there; nothing it was sent is taken in twice."""
    config = smoke(method="local_head")
    on_time, _ = over_flower(config)
    late, _ = over_flower(
        config,
        {"min-clients": 2, "timeout": 0.01},
        lambda exchange, client: "late" if (exchange, client) == (1, 1) else None,
    )
    assert late["accuracy"] == on_time["accuracy"]


def test_a_message_that_was_overtaken_does_not_undo_what_came_later(over_flower, smoke, places, one_line):
    config = smoke(method="local_head")
    _, grid = over_flower(config)
    state = {path: path.read_bytes() for path in (places / "private").rglob("*.safetensors")}
    first = grid.sent[0]
    with pytest.raises(LsclError) as caught:
        client_app.app(first, grid.contexts[first.metadata.dst_node_id])
    one_line(caught, "exchange 0 comes too late")
    assert state == {path: path.read_bytes() for path in (places / "private").rglob("*.safetensors")}


def test_a_node_that_serves_another_client_refuses(over_flower, smoke):
    config = smoke(method="local_head")

    class Mistaken(StubGrid):
        def get_nodes(self):
            self.contexts[EXTRA - 1].node_config["client"] = 2
            return self.nodes

    record, _ = over_flower(config, {"min-clients": 2}, grid=Mistaken)
    assert {line for lines in record["faults"] for line in lines} == {
        "client 1: this node is client 2, the message is for client 1"
    }


def test_a_client_that_lost_its_disk_says_so_and_is_left_out(over_flower, smoke, places):
    config = smoke(method="local_head")

    def lost(exchange, client):
        if (exchange, client) == (2, 1):
            for path in (places / "private" / config.name / "client1").glob("*.safetensors"):
                path.unlink()

    record, _ = over_flower(config, {"min-clients": 2}, lost)
    faults = [line for lines in record["faults"] for line in lines]
    assert faults == [
        f"client 1: exchange {n} is asked for, but the state here is that of exchange -1" for n in (2, 3, 4, 5)
    ]
