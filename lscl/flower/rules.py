"""The rules by which a round of a federation counts, checked before the start and again by the server."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lscl.config import Experiment
from lscl.errors import LsclError, shorten, value_text

WEEK = 7 * 24 * 3600  # seconds
Kind = TypeVar("Kind", bound=BaseModel)


class Rules(BaseModel):
    """How many clients must answer, by when, and how large an answer may be; aliases are names of Flower's config."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=lambda name: name.replace("_", "-"), populate_by_name=True
    )

    min_clients: int = Field(0, ge=0, description="good answers that an exchange needs, 0 = those of all clients")
    timeout: float = Field(
        600.0,
        gt=0,
        le=WEEK,
        allow_inf_nan=False,
        description="seconds that an exchange may take; who is late is left out",
    )
    max_mb: float = Field(
        512.0, gt=0, le=10**6, allow_inf_nan=False, description="largest answer of a client in megabytes"
    )


def rules(config: Experiment, values: Mapping[str, Any]) -> Rules:
    """The rules of a run.

    Args:
        config: the run.
        values: by name (`min_clients`) or by alias (`min-clients`); other names are passed over.

    Returns:
        the rules, with defaults for what is not given.

    Raises:
        LsclError: naming the value and what is allowed.
    """
    found = validate_values(Rules, values)
    if found.min_clients > config.clients:
        raise LsclError(
            f"min-clients = {found.min_clients}: the run has {config.clients} clients, "
            f"allowed are 0 (all) to {config.clients}"
        )
    return found


def validate_values(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """Check values against a pydantic model.

    Args:
        kind: the model.
        values: by the names or aliases of its fields.

    Returns:
        an instance.

    Raises:
        LsclError: naming the first wrong value and what is allowed.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("-", "_")
        said = f"{first['msg'][0].lower()}{first['msg'][1:]} ({kind.model_fields[name].description})"
        raise LsclError(
            f"{name.replace('_', '-')} = {shorten(value_text(first['input'], repr), 200)}: {said}"
        ) from None
