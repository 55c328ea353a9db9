"""The client's side: one message is one exchange. Model and state stay on the client's own disk."""

from functools import lru_cache
from pathlib import Path

from filelock import FileLock
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors import safe_open

from lscl import paths
from lscl.data.store import PRIVATE_FILE, private_folder, write_atomic
from lscl.errors import LsclError
from lscl.experiments.run import build_experiment
from lscl.federation.checkpoint import tensors_to_bytes
from lscl.federation.client import Client
from lscl.federation.loop import exchanges
from lscl.federation.payload import seal
from lscl.federation.training import answer, catch_up
from lscl.flower.messages import pack_record, unpack_config, unpack_record

STATES_KEPT = 3  # on disk: a server that starts again may ask once more for the two exchanges of its last round

app = ClientApp()
prepared = lru_cache(maxsize=1)(build_experiment)  # in a simulation one process serves many clients


@app.train()
def exchange(message: Message, context: Context) -> Message:
    """Apply what the client missed, do the exchange that the message asks for, save the state, and answer.

    Args:
        message: a ticket, and the payloads of this exchange and of missed ones.
        context: the run's config, and whose node this is.

    Returns:
        the answer with its ticket.

    Raises:
        LsclError: the message is for another client, or exchanges before it are missing.
    """
    ticket = dict(message.content["to"])
    config, number = unpack_config(context.run_config), int(ticket["client"])
    if number != context.node_config.get("client", number):
        raise LsclError(f"this node is client {context.node_config['client']}, the message is for client {number}")
    _, _, method, new_client = prepared(config)
    client, stages = new_client(number), exchanges(method)
    due = {int(key): record for key, record in message.content.array_records.items()}
    asked = int(ticket["exchange"])
    folder = private_folder(private_folder(paths.private() / config.name) / f"client{number}")
    run = str(message.metadata.run_id)
    with FileLock(folder / "lock", mode=PRIVATE_FILE):
        done = restore(folder, client, asked, run)
        client.task = stages[done].task if done >= 0 else -1
        while done + 1 < asked and done + 1 in due:
            done += 1
            catch_up(method, client, stages[done], unpack_record(due[done], "server"))
        if done != asked - 1:
            raise LsclError(f"exchange {asked} is asked for, but the state here is that of exchange {done}")
        reply = seal(answer(method, client, stages[asked], unpack_record(due[asked], "server")), f"client {number}")
        write_atomic(
            folder / f"{asked:06d}.safetensors", tensors_to_bytes(client.private_state(), run=run), PRIVATE_FILE
        )
        for old in sorted(folder.glob("*.safetensors"))[:-STATES_KEPT]:
            old.unlink()
    return Message(RecordDict({"answer": pack_record(reply, ticket)}), reply_to=message)


def restore(folder: Path, client: Client, asked: int, run: str) -> int:
    """Load the newest state of a client that is older than an exchange.

    Later states can exist if the server stopped before it saved its own. They are removed, because the same exchanges
    come again.

    Args:
        folder: where the states lie.
        client: who gets the state.
        asked: the number of the exchange.
        run: the id of Flower's run.

    Returns:
        the exchange that the state is from; -1 if there is none.

    Raises:
        LsclError: the later states belong to this very run, so messages have arrived in the wrong order.
    """
    for path in sorted(folder.glob("*.safetensors"), reverse=True):
        with safe_open(path, "pt") as file:
            if int(path.stem) < asked:
                client.load_private_state({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                return int(path.stem)
            if file.metadata()["run"] == run:
                raise LsclError(f"exchange {asked} comes too late, {int(path.stem)} is done")
        path.unlink()
    return -1
