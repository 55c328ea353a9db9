"""What each file of results must hold, for the one reader `lscl.files`; a file may hold more."""

from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from annotated_types import Len
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from lscl.files import Shape
from lscl.registry import METHODS

Row = TypeVar("Row")


def _registered(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r:.80}")
    return name


System = Annotated[str, AfterValidator(_registered)]


class Rows(Shape, Generic[Row]):
    """A file of measurements, one row each."""

    rows: list[Row]


class MeasuredOn(Shape):
    """Where something was measured."""

    cpu: str


class Cores(MeasuredOn):
    """The same with its cores."""

    cores: int


class BusyCores(Cores):
    """The same with its load before a measurement."""

    load: int | float


class WholeMachine(Cores):
    """All of that, as README and book show it."""

    memory_gb: int
    gpu: str | None


class ExpectedProfile(Shape):
    """What a whole profile took and gave (results/expected/, see `readme.expect`)."""

    profile: str
    command: str
    minutes: int | float
    runs_seconds: int | float
    notebooks: dict[str, int | float]
    hardware: WholeMachine
    task: int | float
    seen: int | float


class VerifiedRun(Shape):
    """One record that was computed again."""

    name: str
    equal: bool
    differs: list[str]
    seconds: int | float
    hardware: MeasuredOn
    recorded_at: str | None
    verified_at: str | None
    outcome: Literal["equal", "rounding", "different"] = "equal"  # came later
    gaps: dict[str, int | float] = Field(default_factory=dict)  # likewise
    allowed: int | float = 0  # likewise


class RoundingPair(Shape):
    """A run on two processors (`experiments.rounding.pair_row`)."""

    name: str
    method: str
    profile: str
    dataset: str
    seed: int
    code: str
    machines: Annotated[list[str], Len(2, 2)]
    gaps: Annotated[dict[str, int | float], Len(1)]
    note: str


class RoundingPairs(Rows[RoundingPair]):
    """Runs on two processors (results/rounding/pairs.json)."""

    rows: Annotated[list[RoundingPair], Len(1)]
    allowed: int | float


Place = Annotated[list[int | float], Len(2, 2)]


class PlayingClient(Shape):
    """One client of a round that was played to be drawn."""

    classes: list[str]
    pictures: list[Annotated[str, Field(pattern="^[A-Za-z0-9+/=]+$")]]
    bytes_up: Annotated[int, Field(ge=0)]
    bytes_down: Annotated[int, Field(ge=0)]


class PlayedPoints(Shape):
    """Where the clients' generators are in such a round, a place for each client."""

    before: list[Place]
    trained: list[Place]
    fused: list[Place]


class PlayedRound(Shape):
    """A round that was played to be drawn (results/federation/round.json, see `animation.played_round`)."""

    label: str
    dataset: str
    round: PositiveInt
    sent: list[str]
    points: PlayedPoints
    clients: Annotated[list[PlayingClient], Len(1)]

    @model_validator(mode="after")
    def _one_place_for_each_client(self) -> Self:
        for name in ("before", "trained", "fused"):
            if len(getattr(self.points, name)) != len(self.clients):
                raise ValueError(f"points.{name} must have one place for each of the {len(self.clients)} clients")
        return self


class VerifiedProfile(Shape):
    """The outcome of `lscl verify` (results/verified/)."""

    seed: int
    runs: list[VerifiedRun]
    dataset: str | None = None  # of the draw; came later
    without_outcome: list[str] = Field(default_factory=list)  # names of drawn runs that failed; came later


class Weights(Shape):
    """The description of the mini model's file."""

    images: int


class Accuracies(Shape):
    """Accuracy with the image's own update and with none."""

    own: int | float
    none: int | float


class AllAccuracies(Accuracies):
    """And with another image's and the mean one."""

    another: int | float
    mean: int | float


class Generators(Shape):
    """Accuracy with a generator as trained, as fused, and with the mean of all."""

    own: int | float
    fused: int | float
    mean: int | float


class Steps(Shape):
    """How far the server's step goes."""

    bias: int | float


class AllSteps(Steps):
    """In the weights, too."""

    weight: int | float


class StaticComponents(Shape):
    """What benchmarks/components.py measures of a static update (results/components/)."""

    seed: int
    collaboration: Literal["static"]
    lr_generator: float
    generator: Generators
    server_step: Steps
    update: dict[Literal["training", "test"], Accuracies]
    same_as_record: bool | None  # None: there is no record

    @field_validator("update")
    @classmethod
    def _both(cls, found: dict) -> dict:
        if len(found) < 2:
            raise ValueError("needs training and test")
        return found


class WrittenComponents(StaticComponents):
    """And of one written per image."""

    collaboration: Literal["written"]
    server_step: AllSteps
    update: dict[Literal["training", "test"], AllAccuracies]


class Components(Shape):
    """Where and with what `StaticComponents` and `WrittenComponents` were measured."""

    rows: list[WrittenComponents | StaticComponents]
    tasks: int
    machine: MeasuredOn
    commit: str | None
    dirty: bool


class Ratio(Shape):
    """A measured ratio."""

    ratio: int | float


class Outcome(Ratio):
    """One with a goal."""

    better: Literal["lower", "higher"]
    goal: int | float | None = None


class Benchmark(Outcome):
    """A recorded benchmark."""

    name: str
    machine: MeasuredOn
    commit: str | None
    rows: list[dict[str, Any]] = Field(default_factory=list)


class SmokeOnGpu(Shape):
    """A check that passed: a system on a GPU beside the CPU, and twice."""

    check: str = Field(pattern=r"^a\.")
    outcome: Literal["passed"]
    points_apart: float
    repeats: bool


class StepOnGpu(Shape):
    """A training step that was timed, and what was timed beside it."""

    check: str = Field(pattern=r"^b[123]\.")
    outcome: Literal["passed"]
    method: System
    mode: str
    batch: int
    seconds: float
    placed_seconds: float | None = None
    plain_seconds: float | None = None
    peft_seconds: float | None = None
    peft_and_cnn_seconds: float | None = None


class PaceOnGpu(Shape):
    """Steps a second of several processes together, by their number."""

    check: str = Field(pattern=r"^b4\.")
    outcome: Literal["passed"]
    steps_per_second: dict[str, PositiveFloat] = Field(min_length=1)


class OtherOnGpu(Shape):
    """A check of which only the outcome is shown."""

    check: str = Field(pattern=r"^[cde]\.")
    outcome: Literal["passed"]


class NotPassedOnGpu(Shape):
    """A check that failed or was not made."""

    check: str = Field(pattern=r"^[a-e]\d?\.")
    outcome: Literal["failed", "not run"]
    reason: str


class GpuChecks(Shape):
    """The checks of a card, results/benchmarks/gpu--<card>.json (see benchmarks/gpu.py)."""

    machine: WholeMachine
    commit: str | None
    rows: list[SmokeOnGpu | StepOnGpu | PaceOnGpu | OtherOnGpu | NotPassedOnGpu]


class MeasuredBenchmark(Shape):
    """Where and with which code a benchmark was made."""

    machine: MeasuredOn
    threads: int
    commit: str | None


class GrowthRow(Shape):
    """How one system grows with one size, see benchmarks/scaling.py."""

    method: System
    size: Literal["clients", "tasks", "classes_per_task", "images_per_class"]
    points: list[dict[str, int | float]]
    time_exponent: Ratio
    memory_exponent: Ratio

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.points or any({self.size, "cpu_seconds", "peak_memory_mb"} - set(point) for point in self.points):
            raise ValueError(f"points: each must have {self.size}, cpu_seconds and peak_memory_mb")
        return self


class FederationRow(Shape):
    """A row of a federation's measurements: where, and with what."""

    machine: BusyCores
    flwr: str
    commit: str | None


class ParityRow(FederationRow):
    """A federation compared with the same run in one process; see `WiredParityRow` for one with `wire_up`."""

    method: System
    profile: str
    transport: Literal["tls", "simulation"]
    accuracies: int
    byte_counts: int
    differs: list[str]
    wire_up: None = None


class WiredParityRow(ParityRow):
    """One whose bytes on the wire were counted, too."""

    clients: PositiveInt
    exchanges: Annotated[list[PositiveInt], Len(1)]
    seconds: int | float
    wire_up: list[int | float]
    wire_down: list[int | float]
    payload_up: list[int | float]
    payload_down: list[int | float]


class MissedRounds(Shape):
    """What came of one killed client."""

    rounds_missed: int
    came_back: bool
    while_it_computed: bool


class ClientKilled(FederationRow):
    """Clients that were killed in one run."""

    fault: Literal["client killed"]
    points: list[MissedRounds]
    rounds: int
    rounds_finished: int


class ServerKilled(FederationRow):
    """A server that was killed."""

    fault: Literal["server killed"]
    killed: str
    finished_rounds: int
    of: int
    resumed_after: int
    then: str


class BadPayload(Shape):
    """What was sent, and what the server said to it."""

    kind: str
    server_says: str


class Stranger(Shape):
    """Who asked to be let in, and what was said."""

    node: str
    says: str


class RefusedRow(FederationRow):
    """Bad payloads and strange nodes of one run, by what was said to them."""

    fault: str
    bad_payloads: list[BadPayload]
    strangers: list[Stranger]
    rounds: int
    rounds_finished: int


class ScaleRow(FederationRow):
    """A simulation of many clients."""

    clients: int
    rounds: int
    seconds_per_exchange: int | float
    cpu_seconds_per_exchange: int | float
    memory_mb: Annotated[list[int | float], Len(1)]
    differs_from_one_process: list[str]


# The parts of results/federation/, each with the shape of its rows.
FEDERATION_ROWS = {
    "parity": WiredParityRow | ParityRow,
    "faults": ClientKilled | ServerKilled | RefusedRow,
    "scale": ScaleRow,
}
