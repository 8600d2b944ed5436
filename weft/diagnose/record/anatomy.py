"""What a model is made of, told by structure: blocks, positions, and modules that are LoRA.

Names of modules are those of transformers, without the wrappers of PEFT and others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from weft.model.positions import takes_positions

WRAPPED = ("_orig_mod", "module")
"""Where torch.compile, data parallelism and the like keep the model that they wrap."""

PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def unwrapped(module: Any) -> nn.Module:
    """The model below wrappers of PEFT, torch.compile and data parallelism."""
    while True:
        inner = next((x for name in WRAPPED if (x := _child(module, name)) is not None), None)
        if inner is None and hasattr(module, "peft_config"):
            inner = _child(module, "base_model")
            if _is_pefts(inner):  # what tunes prompts stands around the model itself
                inner = _child(inner, "model")
        if inner is None or inner is module:
            return module
        module = inner


def _child(module: Any, name: str) -> nn.Module | None:
    found = getattr(module, "_modules", {}).get(name)
    return found if isinstance(found, nn.Module) else None


def _is_pefts(module: Any) -> bool:
    return type(module).__module__.startswith("peft.tuners.")


def plain_name(name: str) -> str:
    """A module's or tensor's name without the wrappers in it."""
    for prefix in ("module.", "_orig_mod.", "base_model.model."):
        name = name.removeprefix(prefix)
    parts = [part for part in name.split(".") if part not in {"base_layer", "_orig_mod"}]
    return ".".join(parts)


def is_model(module: nn.Module) -> bool:
    """Whether it can be a whole model: some part of it embeds tokens."""
    if _is_pefts(module) and _child(module, "model") is None:
        return False  # what makes the vectors of a tuned prompt
    return not isinstance(module, nn.Embedding) and any(
        isinstance(part, nn.Embedding) or type(part).__name__.endswith("Embedding")
        for part in module.modules()
    )


@dataclass(frozen=True)
class Plan:
    """Where a pass is looked at."""

    blocks: tuple[nn.Module, ...]
    """Of a decoder: the longest list of modules of one class."""

    positions: tuple[nn.Module, ...]
    """Modules that are called with the positions of tokens: rotary and learned ones."""

    places: tuple[tuple[nn.Module, str, nn.Module], ...]  # of both: parent, name, module

    def holds(self) -> bool:
        """Whether the model is still built like that."""
        return all(parent._modules.get(name) is part for parent, name, part in self.places)


_PLANS: WeakKeyDictionary[nn.Module, Plan] = WeakKeyDictionary()


def plan_of(root: nn.Module) -> Plan:
    """The plan of a model, made once and again when it is built otherwise."""
    plan = _PLANS.get(root)
    if plan is None or not plan.holds():
        plan = _PLANS[root] = _plan(root)
    return plan


def _plan(root: nn.Module) -> Plan:
    blocks: list[tuple[nn.Module, str, nn.Module]] = []
    positions: list[tuple[nn.Module, str, nn.Module]] = []
    for module in root.modules():
        children = [(module, name, part) for name, part in module.named_children()]
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(children) > len(blocks):
            first = children[0][2]
            if all(type(part) is type(first) for _, _, part in children) and len(first._modules):
                blocks = children
        positions += [each for each in children if takes_positions(*each[1:])]
    return Plan(
        tuple(part for _, _, part in blocks),
        tuple(part for _, _, part in positions),
        (*blocks, *positions),
    )


def is_linear(module: nn.Module) -> bool:
    """A linear layer by its looks: a matrix of its own, also that of GPT-2's Conv1D."""
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, torch.Tensor)
        and weight.dim() == 2
        and not isinstance(module, nn.Embedding)
        and not any(True for _ in module.children())
    )


def is_transposed(module: nn.Module) -> bool:
    """Whether its matrix is [in, out], as that of GPT-2's Conv1D is."""
    return type(module).__name__ == "Conv1D"


@dataclass(eq=False)
class Lora:
    """A module that is LoRA: `module(x) = base(x) + scale * (x @ A^T) @ B^T`, if it is right."""

    name: str
    module: nn.Module
    base: nn.Module  # the linear layer, or the module itself where its own matrix is the base
    view: Callable[[], tuple[torch.Tensor, torch.Tensor]]  # A [R, in] and B [out, R] as they are
    parts: list[torch.Tensor]  # the live tensors that A and B are made of
    style: str
    alpha: float | None = None
    scale: float | None = None
    dropout: float = 0.0
    active: bool = True
    merged: bool = False
    declared: dict[str, Any] = field(default_factory=dict)
    hooks: tuple[Callable[..., Any], ...] = ()  # forward hooks in which it is, if it is in some

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A [R, in] and B [out, R], detached."""
        a, b = self.view()
        return a.detach(), b.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        a, b = self.view()
        return b.shape[0], a.shape[1]


def loras(root: nn.Module) -> list[Lora]:
    """All LoRA modules of a model in order, PEFT's and hand-written ones."""
    shape = tuple(
        (
            id(part),
            type(part),
            len(part._parameters),
            len(part._forward_hooks),
            "forward" in vars(part),
        )
        for part in root.modules()
    )
    known = _ADAPTED.get(root)
    if known is not None and known[0] == shape:
        return [lora for name, module in known[1] for lora in _lora(name, module)]
    found: list[Lora] = []
    around: set[int] = set()  # what has one inside is none itself
    for name, module in reversed(list(root.named_modules())):
        if any(id(part) in around for part in module.children()):
            around.add(id(module))
            continue
        made = _lora(name, module)
        if made:
            found += made
            around.add(id(module))
    _ADAPTED[root] = shape, [(lora.name, lora.module) for lora in found[::-1]]
    return found[::-1]


_ADAPTED: WeakKeyDictionary[nn.Module, tuple[Any, list[tuple[str, nn.Module]]]]
_ADAPTED = WeakKeyDictionary()
"""How a model was built when its LoRA modules were looked for, and those that were found."""


def _lora(name: str, module: nn.Module) -> list[Lora]:
    made = list(_peft(name, module)) if hasattr(module, "lora_A") else []
    if not made and not hasattr(module, "base_layer"):
        made = list(_hand_written(name, module))
    return made


def _peft(name: str, module: Any) -> Iterator[Lora]:
    """The adapters of a LoRA layer of PEFT; several active ones are one, factors side by side."""
    if not isinstance(module.lora_A, nn.ModuleDict) or not hasattr(module, "base_layer"):
        return
    names = [each for each in module.lora_A if each in getattr(module, "scaling", {})]
    active = [each for each in getattr(module, "active_adapters", names) if each in names]
    chosen = active or names[:1]
    if not chosen:
        return
    scales = [float(module.scaling[each]) for each in chosen]
    downs: Any = module.lora_A
    ups: Any = module.lora_B
    a = [downs[each].weight for each in chosen]
    b = [ups[each].weight for each in chosen]
    first = scales[0] or 1.0

    def view() -> tuple[torch.Tensor, torch.Tensor]:
        if len(a) == 1:
            return a[0], b[0]
        scaled = [each * (scale / first) for each, scale in zip(b, scales, strict=True)]
        return torch.cat(a), torch.cat(scaled, dim=1)

    yield Lora(
        plain_name(name),
        module,
        module.base_layer,
        view,
        [*a, *b],
        "peft",
        alpha=float(module.lora_alpha[chosen[0]]),
        scale=scales[0],
        dropout=max(float(getattr(module.lora_dropout[each], "p", 0.0)) for each in chosen),
        active=bool(active) and not getattr(module, "disable_adapters", False),
        merged=bool(getattr(module, "merged", False)),
        declared={"adapters": chosen},
    )


def _hand_written(name: str, module: nn.Module) -> Iterator[Lora]:
    """A module with a linear base and two factors whose product has its shape."""
    base = _base(module)
    if base is None or not _takes_one(type(module).forward):
        return
    weight: torch.Tensor = base.weight  # type: ignore[assignment]
    outputs, inputs = weight.shape[::-1] if is_transposed(base) else weight.shape
    hooks = tuple(hook for hook in module._forward_hooks.values() if any(_held(hook)))
    outside = (*hooks, *([vars(module)["forward"]] if "forward" in vars(module) else []))
    tensors = _own_tensors(module, base)
    tensors += [each for function in outside for each in _held(function)]
    for index, (one_name, one) in enumerate(tensors):
        for two_name, two in tensors[index + 1 :]:
            view = _oriented(one_name, one, two_name, two, (outputs, inputs))
            if view is not None:
                rates = [part.p for part in module.modules() if isinstance(part, nn.Dropout)]
                yield Lora(
                    plain_name(name),
                    module,
                    base,
                    view,
                    [one, two],
                    "hand-written",
                    dropout=max(rates, default=0.0),
                    hooks=hooks,
                    **_declared(module),
                )
                return


@cache
def _takes_one(forward: Callable[..., Any]) -> bool:
    """Whether a forward needs a single argument, as that of a linear layer does."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return False
    needed = [each for each in parameters if each.default is each.empty and each.kind in PLAIN]
    return len(needed) <= 1


def _base(module: nn.Module) -> nn.Module | None:
    """The largest linear layer that a module is or directly holds."""
    own = [module] if is_linear(module) else []
    held = [part for part in module.children() if is_linear(part)]
    found = [*own, *held]
    return max(found, key=lambda part: part.weight.numel(), default=None)  # type: ignore[operator]


def _own_tensors(module: nn.Module, base: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Matrices of a module that are not its base's: its own, and those of its direct children.

    Those of children with a linear layer of their own are the child's (attention holds LoRA layers
    beside a linear one, and is none).
    """
    whole = [part for part in module.children() if any(is_linear(x) for x in part.children())]
    skip = {id(each) for each in (getattr(base, "weight", None), getattr(base, "bias", None))}
    found = []
    for owner in (module, *(part for part in module.children() if part not in whole)):
        prefix = "" if owner is module else _name_in(module, owner) + "."
        tensors = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
        if owner is module:  # a list of factors is a child, a plain attribute is none
            tensors += [
                (key, value)
                for key, value in vars(module).items()
                if isinstance(value, torch.Tensor)
            ]
        for key, tensor in tensors:
            if tensor.dim() == 2 and id(tensor) not in skip and tensor.is_floating_point():
                found.append((prefix + key, tensor))
    return found


def _held(function: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Matrices that a function or hook has from where it was made, and those of modules there."""
    if isinstance(function, partial):
        held = {**{str(i): value for i, value in enumerate(function.args)}, **function.keywords}
        function = function.func
    elif inspect.isfunction(function):
        held = {}
    else:
        held = dict(vars(function)) if hasattr(function, "__dict__") else {}
    if inspect.isfunction(function):
        held |= inspect.getclosurevars(function).nonlocals
        names = [*inspect.signature(function).parameters.values()]
        held |= {each.name: each.default for each in names if each.default is not each.empty}
    for name, value in held.items():
        found: list[tuple[str, Any]]
        if isinstance(value, nn.Module) and not is_linear(value):
            found = [(f"{name}.{key}", part) for key, part in value.named_parameters()]
        elif isinstance(value, nn.Module):
            found = [(f"{name}.weight", value.weight)]
        else:
            found = [(name, value)]
        for key, part in found:
            if isinstance(part, torch.Tensor) and part.dim() == 2 and part.is_floating_point():
                yield key, part


def _name_in(module: nn.Module, part: nn.Module) -> str:
    return next(name for name, each in module.named_children() if each is part)


def _oriented(
    one_name: str,
    one: torch.Tensor,
    two_name: str,
    two: torch.Tensor,
    shape: tuple[int, int],
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]] | None:
    """The two as A [R, in] and B [out, R], whichever way they lie; None if they are no factors.

    Where several ways fit (a square layer), names decide, then zeros: B is what begins at zero.
    """
    best: tuple[float, Callable[[], tuple[torch.Tensor, torch.Tensor]]] | None = None
    for a_name, a, b_name, b in ((one_name, one, two_name, two), (two_name, two, one_name, one)):
        for turned in (False, True):
            view = partial(_viewed, a, b, turned)
            first, second = view()
            rank = first.shape[0]
            fits = (second.shape[0], first.shape[1]) == shape and second.shape[1] == rank
            if not fits or not 0 < rank < min(shape):
                continue
            votes = _vote(a_name, b_name) + 0.5 * float(not b.any()) + 0.1 * (not turned)
            if best is None or votes > best[0]:
                best = votes, view
    return None if best is None else best[1]


def _viewed(a: torch.Tensor, b: torch.Tensor, turned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return (a.T, b.T) if turned else (a, b)


def _vote(a_name: str, b_name: str) -> float:
    """How much two names sound like A and B, in this order."""
    one, two = a_name.lower(), b_name.lower()
    ends = [("a", "b"), ("a.weight", "b.weight"), ("down", "up"), ("down.weight", "up.weight")]
    return float(any(one.endswith(x) and two.endswith(y) for x, y in ends))


def _declared(module: nn.Module) -> dict[str, Any]:
    """Alpha and scale, where the module has attributes of such names."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            if "alpha" in name.lower():
                found["alpha"] = float(value)
            elif "scal" in name.lower():
                found["scale"] = float(value)
    return found
