"""README.md says what is so: its op table, its Python, its variables and its links."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from ernie_kernels import ops
from ernie_kernels.cli import COMMANDS
from op_calls import NO_OPS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = ["README.md", "csrc/README.md", "bench/README.md", "third_party/README.md"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_op_table_lists_exactly_the_ops():
    listed = re.findall(r"^\| `(\w+)` \|.*\| (?:yes|no) \|.*\|$", README, re.MULTILINE)
    functions = {name for name in ops.__all__ if not inspect.isclass(getattr(ops, name))} - NO_OPS
    assert sorted(listed) == sorted(functions)


def test_python_examples_parse():
    examples = blocks("python")
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")


def test_set_up_is_two_commands_and_the_tests_one():
    install, test, _ = blocks("sh")
    assert install.splitlines()[0] == "pip install ."
    assert install.splitlines()[1].startswith("ernie-kernels generate --prompt")
    assert test == 'pip install ".[test]" && pytest\n'


def test_shell_section_names_every_command():
    """CI runs its block; the others are told of in its text."""
    section = README.partition("## From a shell")[2].partition("\n## ")[0]
    named = set(re.findall(r"ernie-kernels (\w+)", section)) | set(re.findall(r"`(\w+)`", section))
    assert set(COMMANDS) <= named
    run = [line.split()[1] for line in blocks("sh")[2].splitlines()]
    assert run == ["doctor", "verify", "bench", "fit"]


def test_environment_variables_are_those_that_the_code_reads():
    sources = [*(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "python").rglob("*.py")]
    read = set()
    for path in sources:
        text = path.read_text(encoding="utf-8")
        read |= set(re.findall(r"""(?:getenv\(|environ\W+(?:get\()?)["'](ERNIE_\w+)""", text))
    run_time = README.partition("| at run time |")[2]
    assert set(re.findall(r"^\| `(ERNIE_\w+)` \|", run_time, re.MULTILINE)) == read


@pytest.mark.parametrize("guide", GUIDES)
def test_links_lead_somewhere(guide):
    path = ROOT / guide
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
