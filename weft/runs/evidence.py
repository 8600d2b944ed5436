"""What a run or a script leaves of itself, so that it can be compared with another: events.

One event is one plain value. Arrays are not in it: a field of type `Array` holds the name of one
in the tensors beside it. Modules have the names that transformers gives them, without the wrappers
of PEFT and others (`model.layers.0.self_attn.q_proj`). A *pass* is one call of a whole model.

Shapes: B rows, T positions, V vocabulary, L blocks, D hidden size, R rank, K probes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Array = str
"""The name of an array in the tensors of a recording."""


class Part(BaseModel):
    """A plain value; a number that is not finite is written as a word and reads back."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


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
    sketches: dict[str, Array] = {}
    """[out, K] of linear modules without their adapters, W @ probes (see weft.runs.sketch)."""

    changed: dict[str, Array] = {}
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
    a: Array | None = None
    b: Array | None = None
    base_sketch: Array | None = None  # [out, K], of what the module computes without adapter


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
    ids: Array | None = None  # [B, T]
    mask: Array | None = None  # [B, past + T]; None: none was given
    positions: Array | None = None  # [B, T] as used by the model
    labels: Array | None = None  # [B, T], -100 where unsupervised
    loss: float | None = None
    logits: Array | None = None  # [B, V] float32 at each row's last real position
    nll: Array | None = None  # [B, T - 1] nats, of each next given token
    hidden: Array | None = None  # [L + 1, B, D] at each row's last real position
    sketch: Array | None = None  # [L + 1, B, T, 8] random projections of every position
    nonfinite: str | None = None  # first module whose output was not finite
    largest: dict[str, float] = {}  # largest magnitude before that, by module
    where: str | None = None


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
    targets: dict[str, Array] = {}
    """Labels [B, T] of passes that were not given any, by index of the pass: rows without padding,
    filled up with -100. The script gave them to a loss of its own."""

    lr: tuple[float, ...] = ()
    grad_norm: float | None = None  # before clipping
    grad_norms: dict[str, float] = {}  # by module
    update_norm: float | None = None
    adapter: str = ""  # digest of the adapter after it
    adapter_norm: float | None = None
    base: str = ""  # digest of the base after it (some tensors)
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
    name: Literal["repeat", "row", "cache", "ulp", "split", "float32"]
    """Same input twice; a row alone and in its batch; cached and recomputed; embeddings moved by
    one unit in the last place; a batch in two forwards; the same in float32."""

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
