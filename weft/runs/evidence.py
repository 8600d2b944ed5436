"""What a run or a script leaves of itself, so that it can be compared with another: events.

One event is one plain value. Arrays are not in it: a field of type `Array` holds the name of one
in the tensors beside it. Modules have the names that transformers gives them, without the wrappers
of PEFT and others (`model.layers.0.self_attn.q_proj`). A *pass* is one call of a whole model.

Shapes: B rows, T positions, V vocabulary, L blocks, D hidden size, P projections, R rank,
O outputs and I inputs of a module, K probes, S bytes of a generator's state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from weft.runs.sketch import PROBES, PROJECTIONS

Array = str
"""The name of an array in the tensors of a recording."""

WHOLE, REAL = "integers", "real numbers"


@dataclass(frozen=True)
class Form:
    """What an array that a field names has to be.

    `axes` are letters of the legend: `T-1` is one less, `T+` at least T, `B-` at most B; `...` is
    any shape of any numbers.
    """

    axes: str
    numbers: str = REAL

    def misfit(
        self, shape: tuple[int, ...], numbers: str | None, lengths: dict[str, int]
    ) -> str | None:
        """What an array is instead; None where it fits. Lengths of new letters go to `lengths`."""
        if numbers is None or (self.axes != "..." and numbers != self.numbers):
            return f"holds {numbers or 'no numbers of NumPy'}, not {self.numbers}"
        axes = self.axes.split()
        if self.axes == "..." or (len(shape) == len(axes) and self._fits(shape, lengths)):
            return None
        known = ", ".join(f"{x[0]} = {lengths[x[0]]}" for x in axes if x[0] in lengths)
        told = f"has shape {list(shape)}, not [{', '.join(axes)}]"
        return f"{told} with {known}" if known else told

    def _fits(self, shape: tuple[int, ...], lengths: dict[str, int]) -> bool:
        for axis, length in zip(self.axes.split(), shape, strict=True):
            letter, change = axis[0], axis[1:]
            if change == "+":
                fits = length >= lengths.get(letter, 0)
            elif change == "-":
                fits = length <= lengths.get(letter, length)
            else:
                more = int(change or 0)
                fits = length == lengths.setdefault(letter, length - more) + more
            if not fits:
                return False
        return True


class Part(BaseModel):
    """A plain value; a number that is not finite is written as a word and reads back."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    @property
    def lengths(self) -> dict[str, int]:
        """Axes of its arrays whose lengths it says."""
        return {}


class Settings(Part):
    """Settings as they were really used, under dotted keys; those of Weft where it has one."""

    kind: Literal["settings"] = "settings"
    values: dict[str, Any]
    origins: dict[str, str] = {}
    """Where a value came from: file, command line, default, hub file, computed, seen."""

    where: str | None = None
    """The line of the user's code that caused an event, as `file.py:12`. Likewise below."""


class Seeded(Part):
    """A generator of a library was seeded."""

    kind: Literal["seeded"] = "seeded"
    library: str  # torch, numpy, python, mlx, weft
    seed: int
    where: str | None = None


class TokenizerSeen(Part):
    """A tokenizer, when it was first used."""

    kind: Literal["tokenizer"] = "tokenizer"
    name: str
    size: int
    vocabulary: str  # SHA-256 of tokens and ids
    template: str | None  # SHA-256 of the chat template
    added: tuple[str, ...] = ()
    special: dict[str, int] = {}  # bos, eos, pad, unk
    padding_side: str = "right"
    truncation_side: str = "right"
    where: str | None = None


class Slot(Part):
    """A part of a text that is the field of a data record, by characters."""

    start: int
    stop: int
    record: str  # `file.jsonl:17`, lines and elements counted from 1
    field: str


class Encoded(Part):
    """A text became token ids, in one call of a tokenizer; one event a text."""

    kind: Literal["encoded"] = "encoded"
    text: str
    ids: tuple[int, ...]  # without padding
    special: bool = True  # whether special tokens were asked for
    full_length: int | None = None  # of ids before truncation, where ids were cut
    truncation_side: str | None = None
    templated: bool = False  # the text came out of a chat template
    slots: tuple[Slot, ...] = ()
    where: str | None = None


class TensorSeen(Part):
    """A tensor of a model."""

    shape: tuple[int, ...]
    dtype: str
    digest: str  # of its bytes, at least 16 hex digits
    norm: float


class Weights(Part):
    """The weights of a model besides adapters, when it was first used or had changed."""

    kind: Literal["weights"] = "weights"
    model: str  # model-0, model-1, ... in order of first use
    name: str  # where it was loaded from
    load: str | None = None  # a directory or id from which it can be loaded again
    architecture: str = ""
    dtype: str = ""
    attention: str = ""
    config: dict[str, Any] = {}
    tensors: dict[str, TensorSeen] = {}
    tied: tuple[tuple[str, ...], ...] = ()  # names that share storage
    sketches: Annotated[dict[str, Array], Form("O K")] = {}
    """Of linear modules without their adapters, W @ probes (see weft.runs.sketch)."""

    changed: Annotated[dict[str, Array], Form("...")] = {}
    """Tensors that are not as in `load`, whole, where there was room: a replica needs them."""

    step: int | None = None  # after this training step; None: before any
    where: str | None = None


class AdapterModule(Part):
    """An adapter at one module. The update is `scale * B @ A`, A [R, in] and B [out, R]."""

    rank: int
    shape: tuple[int, int]  # (out, in)
    alpha: float | None = None  # as declared
    scale: float | None = None  # as declared
    seen_scale: float | None = None
    """Measured: c of the least-squares fit `module(x) - base(x) = c * B @ A @ x` on probes."""

    unexplained: float | None = None
    """Relative norm of what that fit leaves; near 0 where the module computes what A, B say."""

    dropout: float = 0.0
    active: bool = True
    merged: bool = False
    trainable: bool = True
    norm_a: float
    norm_b: float
    norm_update: float  # Frobenius norm of scale * B @ A, the measured scale if there is one
    digest_a: str
    digest_b: str
    a: Annotated[Array | None, Form("R I")] = None
    b: Annotated[Array | None, Form("O R")] = None
    base_sketch: Annotated[Array | None, Form("O K")] = None
    """Of what the module computes without its adapter."""

    @property
    def lengths(self) -> dict[str, int]:
        """Rank, outputs and inputs."""
        return {"R": self.rank, "O": self.shape[0], "I": self.shape[1]}


class Snapshot(Part):
    """An adapter at one moment."""

    kind: Literal["adapter"] = "adapter"
    model: str
    when: Literal["use", "step", "merge", "end"]
    step: int | None = None  # training steps taken
    style: str  # peft, hand-written, weft, mlx
    modules: dict[str, AdapterModule]
    trainable: dict[str, int] = {}  # parameters: adapter, base, total
    declared: dict[str, Any] = {}  # its configuration as given
    load: str | None = None  # the directory it came from
    where: str | None = None


class Pass(Part):
    """One call of a whole model."""

    kind: Literal["pass"] = "pass"
    model: str
    index: int
    phase: Literal["prefill", "decode", "score", "train"]
    rows: int
    length: int  # positions fed, with padding
    training: bool = False  # the model was in training mode
    dropouts: int = 0  # modules that dropped something: in training mode, with a rate above 0
    grad: bool = False
    dtype: str = ""  # of what it computed
    past: int = 0  # positions in the cache before
    ids_digest: str = ""
    ids: Annotated[Array | None, Form("B T", WHOLE)] = None
    mask: Annotated[Array | None, Form("B T+", WHOLE)] = None
    """Of the cache and of what was fed; None: none was given."""

    positions: Annotated[Array | None, Form("B T", WHOLE)] = None  # as used by the model
    labels: Annotated[Array | None, Form("B T", WHOLE)] = None  # -100 where unsupervised
    loss: float | None = None
    logits: Annotated[Array | None, Form("B- V")] = None  # at each row's last real position
    nll: Annotated[Array | None, Form("B- T-1")] = None  # nats, of each next given token
    row_nll: Annotated[Array | None, Form("B")] = None  # nats, of each row's supervised tokens
    hidden: Annotated[Array | None, Form("L+1 B- D")] = None  # at each row's last real position
    sketch: Annotated[Array | None, Form("L+1 B- T P")] = None
    """Random projections of every position."""

    nonfinite: str | None = None  # first module whose output was not finite
    largest: dict[str, float] = {}  # largest magnitude before that, by module
    where: str | None = None

    @property
    def lengths(self) -> dict[str, int]:
        """Rows and positions."""
        return {"B": self.rows, "T": self.length}


class Draw(Part):
    """How one token was chosen."""

    row: int
    step: int
    token: int
    how: Literal["argmax", "draw", "unknown"]
    temperature: float | None = None
    """Fitted: log(probabilities drawn from) = log_softmax(logits) / temperature + const."""

    kept: int | None = None  # tokens that could be drawn
    probability: float | None = None  # under softmax(logits)


class Generation(Part):
    """Completions of some prompts."""

    kind: Literal["generation"] = "generation"
    model: str
    driver: str  # generate, loop, mlx, weft
    settings: dict[str, Any] = {}
    """As resolved: max_tokens, temperature, top_k, top_p, repetition_penalty, greedy, eos, stop."""

    prompts: tuple[tuple[int, ...], ...]  # ids without padding, a row each
    tokens: tuple[tuple[int, ...], ...]  # new ones
    texts: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()  # eos, length, stop, unknown
    passes: tuple[int, ...] = ()  # indices of its passes, in order
    draws: tuple[Draw, ...] = ()
    random: str | None = None  # digest of the generator's state before the first draw
    state: Annotated[Array | None, Form("S", WHOLE)] = None
    """That state itself, as PyTorch gives it for the CPU: of the first completions."""

    where: str | None = None


class TrainStep(Part):
    """One step of an optimiser."""

    kind: Literal["step"] = "step"
    step: int  # counted from 1
    model: str = ""
    passes: tuple[int, ...] = ()
    loss: float | None = None  # mean of what backward was called on, or as the run defines it
    losses: tuple[float, ...] = ()  # what backward was called on, one by one
    supervised: int | None = None  # tokens
    batch: str = ""  # digest of the ids of its rows, in any order
    rows: tuple[str, ...] = ()  # names of the records, where they are known
    labels: str = ""  # digest of the supervised (row, position, label) triples
    targets: Annotated[dict[str, Array], Form("B T", WHOLE)] = {}
    """Labels that a script gave a loss of its own, by index of the pass; filled up with -100."""

    lr: tuple[float, ...] = ()
    grad_norm: float | None = None  # before clipping
    grad_norms: dict[str, float] = {}  # by module
    update_norm: float | None = None
    adapter: str = ""  # digest of the adapter after it
    adapter_norm: float | None = None
    base: str = ""  # digest of the base after it (some tensors)
    base_before: str = ""  # likewise before it, where no step came before
    random: str | None = None  # digest of the generator's state before it
    where: str | None = None


class Happened(Part):
    """Something was done between passes and steps."""

    kind: Literal["event"] = "event"
    what: str  # merge, unmerge, reset, commit, save, load, freeze, unfreeze, disable
    step: int | None = None  # training steps taken before it
    place: str = ""
    facts: dict[str, Any] = {}
    where: str | None = None


class Check(Part):
    """A run compared with itself: what must not change anything was changed."""

    kind: Literal["check"] = "check"
    name: Literal["repeat", "row", "cache", "ulp", "split", "float32", "attached", "bare"]
    """Same input twice; a row alone and in its batch; cached and recomputed; embeddings moved by an
    ulp; a batch in two forwards; in float32; beside a forward with the adapter, or without it."""

    model: str = ""
    unit: str
    """nats: mean KL over rows; relative: relative change of a loss; hidden: relative L2 of the last
    hidden state; logits: largest absolute difference of log-probabilities."""

    values: tuple[float, ...]  # one a draw
    in_float32: float | None = None  # the largest draw of the same null in float32
    words: str = ""


class Notice(Part):
    """What could not be observed, and why."""

    kind: Literal["notice"] = "notice"
    text: str


Event = (
    Settings | Seeded | TokenizerSeen | Encoded | Weights | Snapshot | Pass | Generation
    | TrainStep | Happened | Check | Notice
)  # fmt: skip

EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])
"""Reads and checks one event."""


@dataclass(frozen=True)
class Named:
    """An array that an event names."""

    field: str
    name: Array
    form: Form
    lengths: dict[str, int]  # of axes, as far as the event and its arrays before this one tell


def arrays_of(part: Part, place: str = "") -> Iterator[Named]:
    """The arrays of an event, in order of its fields."""
    lengths = {"K": PROBES, "P": PROJECTIONS, **part.lengths}
    for field, form in _fields(type(part)):
        value = getattr(part, field)
        if form is None:
            for key, inner in value.items():
                yield from arrays_of(inner, f"{place}{field}.{key}.")
        elif isinstance(value, dict):
            for key, name in value.items():
                yield Named(f"{place}{field}.{key}", name, form, dict(lengths))
        elif value is not None:
            yield Named(place + field, value, form, lengths)


@cache
def _fields(kind: type[Part]) -> tuple[tuple[str, Form | None], ...]:
    """Fields that name arrays with their form, and those that hold parts which do, by name."""
    found: list[tuple[str, Form | None]] = []
    for name, field in kind.model_fields.items():
        form = next((each for each in field.metadata if isinstance(each, Form)), None)
        inner = [each for each in get_args(field.annotation) if isinstance(each, type)]
        if form is not None or any(issubclass(each, Part) and _fields(each) for each in inner):
            found.append((name, form))
    return tuple(found)
