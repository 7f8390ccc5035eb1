"""``ernie-kernels doctor``: what this machine has, and whether everything computes right on it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.cli.command import add_command, add_json
from ernie_kernels.doctor import Examination, examine
from ernie_kernels.doctor.examination import DEMO_PROMPT

EXIT_UNHEALTHY = 1

DESCRIPTION = """\
Look at this machine and this installation, check every op against float64 on every device, and let
the demo model answer a prompt. Takes seconds.

Exit code: 0 everything is fine, 1 something is not; the last lines say what.

  ernie-kernels doctor
  ernie-kernels doctor --json > doctor.json
      to send with a report of trouble
  ERNIE_CPU_ISA=avx2 ernie-kernels doctor
      another CPU tier
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "doctor",
        run,
        summary="check this machine and installation",
        description=DESCRIPTION,
    )
    add_json(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="say on stderr what is loaded")


def run(arguments: argparse.Namespace) -> int:
    found = examine()
    if arguments.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        print_report(found)
    return EXIT_UNHEALTHY if found.problems else 0


def print_report(found: Examination) -> None:
    section = None
    for fact in found.facts:
        if fact.section != section:
            section = fact.section
            print(f"{section}")
        value = "not known" if fact.value is None else fact.value
        print(f"  {fact.name:<24} {value}{'   PROBLEM' if fact.problem else ''}")
    print_ops(found)
    print("demo model")
    for fact in found.demo:
        answer = "-" if fact.value is None else quoted(str(fact.value))
        verdict = "FAIL" if fact.problem else "pass"
        print(f"  {fact.name:<10} {quoted(DEMO_PROMPT)} -> {answer}   {verdict}")
    problems = found.problems
    if not problems:
        print("\neverything is fine")
        return
    print(f"\n{len(problems)} problem{'s' if len(problems) > 1 else ''}:")
    for problem in problems:
        print(f"  {problem}")


def print_ops(found: Examination) -> None:
    if not found.ops:
        return
    wide = max(len(each.op) for each in found.ops)
    print("ops, against float64")
    print(f"  {'':<{wide}} {'device':<7} {'dtype':<9} {'error':>9} {'bound':>9} {'ms':>8}")
    for each in found.ops:
        numbers = (
            f"{number(each.error, '.2e'):>9} {number(each.bound, '.2e'):>9} "
            f"{number(each.milliseconds, '.3f'):>8}"
        )
        verdict = "FAIL" if each.problem else "pass"
        print(f"  {each.op:<{wide}} {each.device:<7} {each.dtype:<9} {numbers}   {verdict}")


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
