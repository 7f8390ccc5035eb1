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

What a single operation may cost is bounded by ``template_sandbox``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import SecurityError
from jinja2.visitor import NodeTransformer

from ernie_kernels.errors import ConfigError, Error, LimitError
from ernie_kernels.render_budget import RenderBudget, RenderLimits
from ernie_kernels.template_sandbox import BoundedEnvironment, ForbiddenError

MAX_SOURCE_CHARACTERS = 256 << 10
MAX_NESTING = 64
MAX_NODES = 20_000

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
            TemplateRefusal: the template itself refuses the messages (``raise_exception``).
            ConfigError: the template fails, or does what the sandbox forbids.
        """
        environment = self._environment
        limits = environment.limits
        environment.local.budget = budget = RenderBudget(limits)
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
            what = str(error) if isinstance(error, ForbiddenError) else "an unsafe attribute"
            raise ConfigError(
                f"{self._file}: line {_line(error, self._file)}: forbidden in a chat template: {what}"
            ) from None
        except Exception as error:  # noqa: BLE001  (a template can fail in any way)
            raise ConfigError(
                f"{self._file}: line {_line(error, self._file)}: the chat template fails on these "
                f"messages ({type(error).__name__})"
            ) from None
        finally:
            del environment.local.budget
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
