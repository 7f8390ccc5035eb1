"""The jinja2 environment of a chat template: only operations whose cost is bounded exist in it.

jinja2's immutable sandbox keeps a template away from Python's internals, not from the machine's
time and memory. Here the filters are those of ``_FILTERS`` and a few rewritten ones, the methods
those of ``_METHODS``, ``range`` is short, and whatever makes a long value from short ones is
measured before it runs. So what happens between two looks at the clock is short.
"""

from __future__ import annotations

import functools
import html
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from types import GeneratorType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.render_budget import ITEM_COST, RenderBudget, RenderLimits

MAX_RANGE = 100_000
MAX_INTEGER_BITS = 4096

# -------------------------------------------------------------------------------- what may be called

_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        [
            "strip",
            "lstrip",
            "rstrip",
            "split",
            "rsplit",
            "splitlines",
            "partition",
            "rpartition",
            "startswith",
            "endswith",
            "removeprefix",
            "removesuffix",
            "upper",
            "lower",
            "title",
            "capitalize",
            "casefold",
            "swapcase",
            "replace",
            "join",
            "find",
            "rfind",
            "index",
            "rindex",
            "count",
            "isdigit",
            "isdecimal",
            "isnumeric",
            "isalpha",
            "isalnum",
            "isspace",
            "isupper",
            "islower",
        ]
    ),
    list: frozenset(("index", "count")),
    tuple: frozenset(("index", "count")),
    dict: frozenset(("items", "keys", "values", "get")),
}

# jinja2's own filters whose result is no longer than their input and whose cost is linear in it.
_FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "first", "float", "int", "items", "last",
    "length", "lower", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "title",
    "trim", "truncate", "upper", "wordcount",
)  # fmt: skip
# Filters that look at all of a sequence at once: it is measured first.
_SEQUENCE_FILTERS = ("dictsort", "groupby", "max", "min", "sort", "unique")


class ForbiddenError(SecurityError):
    """Something that the sandbox lacks; the text is ours and says what."""


class _Namespace(Namespace):
    """jinja2's namespace without names that begin with an underscore."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise ForbiddenError("an attribute that begins with an underscore")
        super().__setitem__(name, value)


class TemplateRefusal(InputError):
    """The template called ``raise_exception``; the only argument is what it said."""


def _raise_exception(message: object = "") -> NoReturn:
    raise TemplateRefusal(message if isinstance(message, str) else "")


def _strftime_now(pattern: object) -> str:
    # Plain directives only: a width in one ("%999999999d") would be obeyed.
    if not isinstance(pattern, str) or not re.fullmatch(r"(?:%[A-Za-z%]|[^%]){0,256}", pattern):
        raise ForbiddenError("strftime_now with an unusual pattern")
    return time.strftime(pattern)


class _GenerationTag(Extension):
    """``{% generation %}``: marks the model's words for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012  (the base class says so)

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one template; several threads may render it at once."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, limits: RenderLimits) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
            finalize=_finalize,
            optimized=False,  # nothing is evaluated while compiling
            cache_size=0,
        )
        self.limits = limits
        self.local = threading.local()
        self.globals = {
            "range": self.bounded_range,
            "dict": self.bounded_dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        own = jinja2.defaults.DEFAULT_FILTERS
        self.filters = {name: own[name] for name in _FILTERS}
        self.filters |= {name: self._measured_filter(own[name]) for name in _SEQUENCE_FILTERS}
        self.filters |= {
            "e": self.escape_filter,
            "escape": self.escape_filter,
            "format": self.format_filter,
            "indent": self.indent_filter,
            "join": self.join_filter,
            "list": self.bounded_list,
            "replace": self.replace_filter,
            "round": self.round_filter,
            "safe": self.to_text,
            "string": self.to_text,
            "sum": self.sum_filter,
            "tojson": self.tojson_filter,
        }

    @property
    def budget(self) -> RenderBudget:
        return self.local.budget  # type: ignore[no-any-return]

    # -- what transformed templates call

    def step(self, characters: int) -> str:
        self.budget.step(characters)
        return ""

    def measured(self, value: Any) -> Any:
        """A container that the template has just made."""
        self.budget.spend(ITEM_COST * len(value))
        self.budget.size(value)
        return value

    def concat_values(self, *values: Any) -> str:
        texts = [self.to_text(value) for value in values]
        self.budget.spend(sum(map(len, texts)))
        return "".join(texts)

    def to_text(self, value: Any) -> str:
        """A value as it is printed. Only data can be: no function, generator or object."""
        if isinstance(value, str):
            return str(value)
        if value is None or isinstance(value, (bool, int, float, list, tuple, dict)):
            self.budget.spend(self.budget.size(value))
            return str(value)
        if isinstance(value, jinja2.Undefined):
            return str(value)
        raise ForbiddenError(f"printing a {type(value).__name__}")

    # -- operators and calls

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        budget = self.budget
        if operator == "%" and isinstance(left, str):
            return self.format_filter(left, *(right if isinstance(right, tuple) else (right,)))
        if operator == "+" and isinstance(left, (str, list, tuple)) and type(left) is type(right):
            self._spend_sum(left, right)
        elif operator == "*":
            sequence, count = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                budget.spend((budget.size(sequence) + ITEM_COST) * max(count, 0))
            elif isinstance(left, int) and isinstance(right, int):
                _check_integer(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_integer(left.bit_length() * max(right, 0))
        return super().call_binop(context, operator, left, right)

    def _spend_sum(self, left: Any, right: Any) -> None:
        if isinstance(left, str):
            self.budget.spend(len(left) + len(right))
        else:
            self.budget.spend(ITEM_COST * (len(left) + len(right)))
            if self.budget.size(left) + self.budget.size(right) > self.limits.value_characters:
                self.budget.spend(self.limits.value_characters + 1)

    def call(
        self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        self.budget.step()
        owner = getattr(function, "__self__", None)
        allowed = _METHODS.get(type(owner))
        if allowed is not None:
            if function.__name__ not in allowed:
                raise ForbiddenError(f"the method {function.__name__}")
            self._check_method(owner, function.__name__, args)
        elif not (
            isinstance(function, (Macro, LoopContext, jinja2.Undefined))
            or isinstance(owner, LoopContext)
            or owner is self
            or any(function is known for known in (_Namespace, _raise_exception, _strftime_now))
        ):
            raise ForbiddenError(f"calling a {type(function).__name__}")
        return super().call(context, function, *args, **kwargs)

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...]) -> None:
        """Account for the methods that make more than they are given."""
        if name == "replace" and len(args) >= 2:
            self._spend_replace(owner, args[0], args[1])
        elif name == "join" and args:
            if not isinstance(args[0], (str, list, tuple, dict)):
                raise ForbiddenError("joining what is no list")
            self.budget.spend(self.budget.size(args[0]) + len(owner) * len(args[0]))
        elif name in ("split", "rsplit", "splitlines"):
            separator = args[0] if args and isinstance(args[0], str) and args[0] else None
            parts = owner.count(separator) if separator else len(owner) // 2
            self.budget.spend(len(owner) + (ITEM_COST * parts if parts > 1 << 16 else 0))

    # -- globals and filters that replace jinja2's

    def bounded_range(self, *args: int) -> range:
        values = range(*args)
        if len(values[: MAX_RANGE + 1]) > MAX_RANGE:
            raise LimitError(f"chat template: a range of more than {MAX_RANGE} numbers")
        return values

    def bounded_dict(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return self.measured(dict(*args, **kwargs))  # type: ignore[no-any-return]

    def bounded_list(self, values: Any) -> list[Any]:
        if hasattr(values, "__len__"):
            self.budget.spend(ITEM_COST * len(values))
        result = []
        for value in values:
            result.append(value)
            if len(result) % 1024 == 0:
                self.budget.step(ITEM_COST * len(result))
        self.budget.size(result)
        return result

    def _measured_filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        position = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            values = args[position]
            if isinstance(values, (GeneratorType, range)) or not hasattr(values, "__len__"):
                values = self.bounded_list(values)
            self.budget.spend(ITEM_COST * len(values))
            self.budget.size(values)
            result = function(*args[:position], values, *args[position + 1 :], **kwargs)
            return self.bounded_list(result) if isinstance(result, GeneratorType) else result

        return measured

    def escape_filter(self, value: Any) -> str:
        text = self.to_text(value)
        self.budget.spend(6 * len(text))
        return html.escape(text)

    def format_filter(self, pattern: Any, *args: Any) -> str:
        # %-formatting without widths, which a file could set to a billion.
        if not isinstance(pattern, str) or re.search(r"%[^%A-Za-z]*(?:\d{3}|\*)", pattern):
            raise ForbiddenError("a format with a wide field")
        if any(not isinstance(arg, (str, int, float)) for arg in args):
            raise ForbiddenError("formatting what is no text or number")
        self.budget.spend(len(pattern) + sum(map(self.budget.size, args)) + 512 * len(args))
        return pattern % args

    def indent_filter(
        self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        text = self.to_text(value)
        indent = width if isinstance(width, str) else " " * min(max(int(width), 0), 65)
        if len(indent) > 64:
            raise ForbiddenError("indent by more than 64")
        self.budget.spend(len(text) + len(indent) * (text.count("\n") + 1))
        lines = text.split("\n")
        head = indent + lines[0] if first else lines[0]
        return "\n".join([head, *(indent + line if line or blank else line for line in lines[1:])])

    def join_filter(self, values: Any, d: str = "", attribute: Any = None) -> str:
        items: Iterator[Any] = iter(self.bounded_list(values))
        if attribute is not None:
            items = map(make_attrgetter(self, attribute), items)
        texts = [self.to_text(item) for item in items]
        separator = self.to_text(d)
        self.budget.spend(sum(map(len, texts)) + len(separator) * len(texts))
        return separator.join(texts)

    def replace_filter(self, value: Any, old: str, new: str, count: int = -1) -> str:
        text = self.to_text(value)
        self._spend_replace(text, old, new)
        return text.replace(old, new, count)

    def _spend_replace(self, text: str, old: Any, new: Any) -> None:
        if isinstance(old, str) and isinstance(new, str):
            self.budget.spend(len(text) + text.count(old) * len(new))

    def round_filter(self, value: Any, precision: int = 0, method: str = "common") -> Any:
        if not isinstance(precision, int) or abs(precision) > 32:
            raise ForbiddenError("rounding to more than 32 digits")
        return jinja2.filters.do_round(value, precision, method)  # type: ignore[arg-type]

    def sum_filter(self, values: Any, attribute: Any = None, start: int = 0) -> Any:
        items: Iterator[Any] = iter(self.bounded_list(values))
        if attribute is not None:
            items = map(make_attrgetter(self, attribute), items)
        numbers = list(items)
        if any(not isinstance(item, (int, float)) for item in (*numbers, start)):
            raise ForbiddenError("the sum of what is no number")
        return sum(numbers, start)

    def tojson_filter(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as transformers renders it: no HTML escapes, characters as themselves."""
        if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
            raise ForbiddenError("JSON indented by more than 16")
        self.budget.spend(self.budget.size(value) * (1 + (indent or 0)))
        return json.dumps(
            value,
            # An escaped mark of TextGuard would no longer be found; prompts are UTF-8 anyway.
            ensure_ascii=False,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )


@jinja2.pass_context
def _finalize(context: jinja2.runtime.Context, value: Any) -> str:
    # Taking the context keeps jinja2 from calling this while it compiles.
    environment: Any = context.environment
    text: str = environment.to_text(value)
    environment.budget.spend(len(text))
    return text


def _check_integer(bits: int) -> None:
    if bits > MAX_INTEGER_BITS:
        raise LimitError(f"chat template: an integer of more than {MAX_INTEGER_BITS} bits")
