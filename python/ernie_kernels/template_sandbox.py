"""Compiling and running a chat template that came with a checkpoint: untrusted, and bounded.

jinja2's immutable sandbox keeps a template away from Python's internals. It does not bound what a
template may consume; this module does, by what follows.

========================  ========================================================================
source, nesting, nodes    checked when the template is loaded, before it is compiled
loop iterations, calls    one step each; a call of ``step`` is compiled into every loop and macro
time                      looked at in every step, and between two pieces of output
size of one value         whatever can make a long value from short ones (``+ * % ~``, list and
                          dict displays, ``join``, ``replace``, ...) is measured
memory of all values      their lengths are added up, with the literal text in loops and macros
recursion                 Python's own limit
========================  ========================================================================

Only operations with a bounded cost exist at all: the filters of ``_FILTERS``, the methods of
``_METHODS``, a short ``range``. So what runs between two looks at the clock is short.
"""

from __future__ import annotations

import functools
import html
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import GeneratorType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .checkpoint_file import quoted
from .errors import ConfigError, Error, InputError, LimitError

MAX_SOURCE_CHARACTERS = 256 << 10
MAX_NESTING = 64
MAX_NODES = 20_000
MAX_RANGE = 100_000
MAX_INTEGER_BITS = 4096
_ITEM_COST = 16  # of a list element or dict entry, in characters


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What one rendering may consume."""

    steps: int = 200_000  # loop iterations and calls
    value_characters: int = 16 << 20  # of one string, or of all strings in one container
    total_characters: int = 256 << 20  # of all values made on the way
    output_characters: int = 16 << 20
    seconds: float = 5.0


class _Budget:
    """What is left of the limits in one rendering."""

    def __init__(self, limits: RenderLimits) -> None:
        self.limits = limits
        self.steps = limits.steps
        self.characters = limits.total_characters
        self.deadline = time.monotonic() + limits.seconds
        # Sizes of the containers met so far; the container is kept so that its id stays its own.
        self.sizes: dict[int, tuple[object, int]] = {}

    def step(self, characters: int = 0) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise LimitError(f"chat template: more than {self.limits.steps} steps")
        self.spend(characters)
        self.check_time()

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise LimitError(f"chat template: ran longer than {self.limits.seconds:g} seconds")

    def spend(self, characters: int) -> None:
        """Account for a value of this length before it is made."""
        self.characters -= characters
        if characters > self.limits.value_characters or self.characters < 0:
            raise LimitError(
                f"chat template: a value of more than {self.limits.value_characters} characters, "
                f"or more than {self.limits.total_characters} in all"
            )

    def size(self, value: object) -> int:
        """Characters that a value would print, roughly; shared parts count each time."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, (list, tuple, dict)):
            return _ITEM_COST
        known = self.sizes.get(id(value))
        if known is not None:
            return known[1]
        parts = itertools.chain(value, value.values()) if isinstance(value, dict) else value
        size = sum(_ITEM_COST + self.size(part) for part in parts)
        if size > self.limits.value_characters:
            raise LimitError(
                f"chat template: a value of more than {self.limits.value_characters} characters"
            )
        self.sizes[id(value)] = (value, size)
        return size


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


class _Forbidden(SecurityError):
    """Something that the sandbox lacks; the text is ours and says what."""


class _Namespace(Namespace):
    """jinja2's namespace without names that begin with an underscore."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise _Forbidden("an attribute that begins with an underscore")
        super().__setitem__(name, value)


def _raise_exception(message: object = "") -> NoReturn:
    raise InputError(f"chat template: refuses these messages: {quoted(str(message)[:512])}")


def _strftime_now(pattern: object) -> str:
    # Plain directives only: a width in one ("%999999999d") would be obeyed.
    if not isinstance(pattern, str) or not re.fullmatch(r"(?:%[A-Za-z%]|[^%]){0,256}", pattern):
        raise _Forbidden("strftime_now with an unusual pattern")
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
        self._local = threading.local()
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
    def budget(self) -> _Budget:
        return self._local.budget  # type: ignore[no-any-return]

    # -- what transformed templates call

    def step(self, characters: int) -> str:
        self.budget.step(characters)
        return ""

    def measured(self, value: Any) -> Any:
        """A container that the template has just made."""
        self.budget.spend(_ITEM_COST * len(value))
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
        raise _Forbidden(f"printing a {type(value).__name__}")

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
                budget.spend((budget.size(sequence) + _ITEM_COST) * max(count, 0))
            elif isinstance(left, int) and isinstance(right, int):
                _check_integer(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_integer(left.bit_length() * max(right, 0))
        return super().call_binop(context, operator, left, right)

    def _spend_sum(self, left: Any, right: Any) -> None:
        if isinstance(left, str):
            self.budget.spend(len(left) + len(right))
        else:
            self.budget.spend(_ITEM_COST * (len(left) + len(right)))
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
                raise _Forbidden(f"the method {function.__name__}")
            self._check_method(owner, function.__name__, args)
        elif not (
            isinstance(function, (Macro, LoopContext, jinja2.Undefined))
            or isinstance(owner, LoopContext)
            or owner is self
            or any(function is known for known in (_Namespace, _raise_exception, _strftime_now))
        ):
            raise _Forbidden(f"calling a {type(function).__name__}")
        return super().call(context, function, *args, **kwargs)

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...]) -> None:
        """Account for the methods that make more than they are given."""
        if name == "replace" and len(args) >= 2:
            self._spend_replace(owner, args[0], args[1])
        elif name == "join" and args:
            if not isinstance(args[0], (str, list, tuple, dict)):
                raise _Forbidden("joining what is no list")
            self.budget.spend(self.budget.size(args[0]) + len(owner) * len(args[0]))
        elif name in ("split", "rsplit", "splitlines"):
            separator = args[0] if args and isinstance(args[0], str) and args[0] else None
            parts = owner.count(separator) if separator else len(owner) // 2
            self.budget.spend(len(owner) + (_ITEM_COST * parts if parts > 1 << 16 else 0))

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
            self.budget.spend(_ITEM_COST * len(values))
        result = []
        for value in values:
            result.append(value)
            if len(result) % 1024 == 0:
                self.budget.step(_ITEM_COST * len(result))
        self.budget.size(result)
        return result

    def _measured_filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        position = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            values = args[position]
            if isinstance(values, (GeneratorType, range)) or not hasattr(values, "__len__"):
                values = self.bounded_list(values)
            self.budget.spend(_ITEM_COST * len(values))
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
            raise _Forbidden("a format with a wide field")
        if any(not isinstance(arg, (str, int, float)) for arg in args):
            raise _Forbidden("formatting what is no text or number")
        self.budget.spend(len(pattern) + sum(map(self.budget.size, args)) + 512 * len(args))
        return pattern % args

    def indent_filter(
        self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        text = self.to_text(value)
        indent = width if isinstance(width, str) else " " * min(max(int(width), 0), 65)
        if len(indent) > 64:
            raise _Forbidden("indent by more than 64")
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
            raise _Forbidden("rounding to more than 32 digits")
        return jinja2.filters.do_round(value, precision, method)  # type: ignore[arg-type]

    def sum_filter(self, values: Any, attribute: Any = None, start: int = 0) -> Any:
        items: Iterator[Any] = iter(self.bounded_list(values))
        if attribute is not None:
            items = map(make_attrgetter(self, attribute), items)
        numbers = list(items)
        if any(not isinstance(item, (int, float)) for item in (*numbers, start)):
            raise _Forbidden("the sum of what is no number")
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
            raise _Forbidden("JSON indented by more than 16")
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


# --------------------------------------------------------------------------- compile and render

_FORBIDDEN = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)
_LEFT_OPERANDS = (nodes.BinExpr, nodes.Filter, nodes.Test, nodes.Getattr, nodes.Getitem, nodes.Call)


class _Meter(NodeTransformer):
    """Puts the calls of ``step``, ``measured`` and ``concat_values`` into a template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._metered(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._metered(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._metered(node)

    def _metered(self, node: Any) -> nodes.Node:
        literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        step = _call("step", nodes.Const(literal))
        node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno, override=True))
        return node  # type: ignore[no-any-return]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concat_values", *node.nodes)

    def _display(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _call("measured", node)

    visit_List = visit_Dict = visit_Tuple = _display


def _call(name: str, *arguments: nodes.Node) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name)
    call = nodes.Call(function, list(arguments), [], None, None)
    return call.set_lineno(1)  # type: ignore[return-value]


def _check_tree(tree: nodes.Template, file: str) -> None:
    """Refuse forbidden statements, too many nodes, and nesting too deep to compile safely.

    A chain of operators or filters is a sequence to its author: its left side adds no depth.
    """
    stack: list[tuple[nodes.Node, int]] = [(tree, 0)]
    count = 0
    while stack:
        node, depth = stack.pop()
        count += 1
        if isinstance(node, _FORBIDDEN):
            raise ConfigError(
                f"{file}: line {node.lineno}: {type(node).__name__.lower()} is forbidden in a "
                "chat template"
            )
        if depth > MAX_NESTING or count > MAX_NODES:
            raise ConfigError(
                f"{file}: expected nesting of at most {MAX_NESTING} and at most {MAX_NODES} "
                "syntax nodes, got more"
            )
        left = (
            getattr(node, "left", None) or getattr(node, "node", None)
            if isinstance(node, _LEFT_OPERANDS)
            else None
        )
        stack.extend(
            (child, depth if child is left else depth + 1) for child in node.iter_child_nodes()
        )


class BoundedTemplate:
    """A compiled template; ``render`` may be called from several threads.

    Raises:
        ConfigError: too long, too deep, malformed, or with something that the sandbox lacks.
    """

    def __init__(self, source: str, file: str, limits: RenderLimits | None = None) -> None:
        self._file = file
        self._environment = BoundedEnvironment(limits or RenderLimits())
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise ConfigError(
                f"{file}: expected a chat template of at most {MAX_SOURCE_CHARACTERS} characters, "
                f"got {len(source)}"
            )
        try:
            tree = self._environment.parse(source)
            _check_tree(tree, file)
            code = self._environment.compile(_Meter().visit(tree), name=file, filename=file)
        except Error:
            raise
        except jinja2.TemplateSyntaxError as error:
            # Also an unknown filter or test; jinja2's text would quote the file.
            raise ConfigError(
                f"{file}: line {error.lineno}: chat template syntax, filter or test not understood"
            ) from None
        except (RecursionError, MemoryError):
            raise ConfigError(
                f"{file}: expected nesting of at most {MAX_NESTING}, got more"
            ) from None
        except Exception:  # noqa: BLE001  (Python's compiler has limits of its own)
            raise ConfigError(f"{file}: this chat template cannot be compiled") from None
        self._template = jinja2.Template.from_code(
            self._environment, code, self._environment.globals
        )

    def render(self, variables: Mapping[str, Any]) -> str:
        """The rendered text.

        Raises:
            LimitError: the template ran into one of ``RenderLimits``.
            InputError: the template itself refuses the messages (``raise_exception``).
            ConfigError: the template fails, or does what the sandbox forbids.
        """
        environment = self._environment
        limits = environment.limits
        environment._local.budget = budget = _Budget(limits)
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(variables):
                budget.check_time()
                pieces.append(piece)
                size += len(piece)
                if size > limits.output_characters:
                    raise LimitError(
                        f"chat template: more than {limits.output_characters} characters of output"
                    )
        except Error:
            raise
        except RecursionError:
            raise LimitError("chat template: recursion too deep") from None
        except SecurityError as error:
            what = str(error) if isinstance(error, _Forbidden) else "an unsafe attribute"
            raise ConfigError(
                f"{self._file}: line {_line(error, self._file)}: forbidden in a chat template: {what}"
            ) from None
        except Exception as error:  # noqa: BLE001  (a template can fail in any way)
            raise ConfigError(
                f"{self._file}: line {_line(error, self._file)}: the chat template fails on these "
                f"messages ({type(error).__name__})"
            ) from None
        finally:
            del environment._local.budget
        return "".join(pieces)


def _line(error: BaseException, file: str) -> int:
    """The line of the template at which an exception left it; 0 if it does not say."""
    line = 0
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
