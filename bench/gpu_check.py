"""Check the CUDA backend on a machine with an NVIDIA GPU, offline, in under ten minutes.

    python bench/gpu_check.py RESULTS                      # everything
    python bench/gpu_check.py RESULTS --sanitize memcheck  # the tests under compute-sanitizer instead
    python bench/gpu_check.py RESULTS --dry-run            # all but the GPU: builds for the CPU

Builds this working tree into a scratch folder for the card that is there, runs the tests marked
cuda (those of tests/simt hold the SIMT machine's instructions to the card's), then the benches. A
stage that fails or exceeds its limit is recorded and the next one runs.
Wants Python >= 3.11, CMake >= 3.26, a C++ compiler, nvcc, and torch for the benches; smaller
packages come from third_party/wheels, which bench/gather_wheels.py fills where there is a network.

Writes into RESULTS: report.json (machine, ceilings, stages, tests), bench.jsonl (one line a case, see
harness.py), tests.xml (JUnit), kernels.json (registers and spills) and log.txt (all output). The exit
code is 0 if all stages passed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
import zipfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBES = "tests/simt/probes/libernie_probes.so"
CUTLASS_HEADERS = "cutlass_library/source/include/"
NEEDED = ["jinja2", "ml_dtypes", "numpy", "pybind11", "pytest", "pytest_timeout", "sentencepiece",
          "tokenizers", "tqdm", "hypothesis", "PIL"]  # fmt: skip
COMPUTE_SANITIZER = ["compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all"]
MEMCHECK = ["--leak-check", "full", "--padding", "64"]


@dataclass
class Stage:
    name: str
    outcome: str  # passed, failed, timed out, or: not run (why)
    seconds: float = 0.0


@dataclass
class Report:
    commit: str
    arguments: list[str]
    machine: dict[str, str]
    ceilings: dict[str, float] = field(default_factory=dict)
    tests: dict[str, object] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)


class Check:
    """Runs stages against one deadline and keeps the report on disk up to date."""

    def __init__(self, results: Path, minutes: float, report: Report, scratch: Path) -> None:
        self.results, self.report, self.scratch = results, report, scratch
        self.deadline = time.monotonic() + 60 * minutes
        site, package = scratch / "site", scratch / "package"
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(package), str(site)]),
            "PYTHONUNBUFFERED": "1",
            "ERNIE_PROBES_LIBRARY": str(scratch / "build" / PROBES),
            "PATH": os.pathsep.join([str(site / "bin"), os.environ["PATH"]]),
        }

    def run(self, name: str, command: list[str], limit: float) -> bool:
        """Runs one stage for at most ``limit`` seconds; True if it passed."""
        left = self.deadline - time.monotonic()
        if left < 5:
            return self.skip(name, "no time left")
        begin = time.monotonic()
        with (self.results / "log.txt").open("a") as log:
            print(f"\n==== {name}\n$ {' '.join(command)}", file=log, flush=True)
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                outcome = "passed" if process.wait(min(limit, left)) == 0 else "failed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                outcome = "timed out"
        self.record(Stage(name, outcome, round(time.monotonic() - begin, 1)))
        return outcome == "passed"

    def skip(self, name: str, why: str) -> bool:
        self.record(Stage(name, f"not run: {why}"))
        return False

    def record(self, stage: Stage) -> None:
        self.report.stages.append(stage)
        self.write()
        print(f"{stage.name:20} {stage.outcome} ({stage.seconds:.0f} s)", flush=True)

    def write(self) -> None:
        (self.results / "report.json").write_text(json.dumps(asdict(self.report), indent=1) + "\n")


# ------------------------------------------------------------------------------------- the machine


def output_of(command: list[str]) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def describe_machine() -> dict[str, str]:
    fields = ["name", "compute_cap", "driver_version", "memory.total", "clocks.max.sm"]
    gpu = output_of(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"])
    machine = {"gpu": gpu.splitlines()[0] if gpu else "none"}
    if gpu:
        machine["compute_capability"] = machine["gpu"].split(", ")[1]
    machine["nvcc"] = (output_of(["nvcc", "--version"]).splitlines() or ["none"])[-1]
    machine["python"] = platform.python_version()
    machine["cores"] = str(len(os.sched_getaffinity(0)))
    try:
        machine["torch"] = version("torch")
    except PackageNotFoundError:
        machine["torch"] = "none"
    return machine


def architecture(compute_capability: str) -> str:
    """What CMake calls the code for this card; wgmma and setmaxnreg need the a of 90a."""
    if compute_capability == "9.0":
        return "90a-real"
    return compute_capability.replace(".", "") + "-real"


def refuse(machine: dict[str, str], dry_run: bool) -> str | None:
    """Why the check cannot begin here, or None."""
    if shutil.which("cmake") is None:
        return "no cmake on PATH; 3.26 or newer is needed"
    if dry_run:
        return None
    if machine["gpu"] == "none":
        return "no NVIDIA GPU here: nvidia-smi is missing or lists none; --dry-run needs none"
    if machine["nvcc"] == "none":
        return "no nvcc on PATH; put the CUDA toolkit's bin folder (12.3 or newer) on it"
    if float(machine["compute_capability"]) < 8:
        return f"the GPU ({machine['gpu']}) is older than compute capability 8.0"
    return None


# ------------------------------------------------------------------------------------------ stages


def install(check: Check, wheels: Path) -> bool:
    """Puts the gathered packages that this Python lacks, and CUTLASS, into the scratch folder."""
    (check.scratch / "site").mkdir()
    missing = []
    for wheel in sorted(wheels.glob("*.whl")):
        name = wheel.name.split("-")[0]
        if name == "nvidia_cutlass":
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    if member.startswith(CUTLASS_HEADERS):
                        archive.extract(member, check.scratch / "cutlass")
            continue
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(str(wheel))
    if missing:
        pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile"]
        if not check.run(
            "install wheels", [*pip, "--target", str(check.scratch / "site"), *missing], 120
        ):
            return False
    return check.run("import packages", [sys.executable, "-c", f"import {','.join(NEEDED)}"], 60)


def build(check: Check, architectures: str | None) -> bool:
    """Builds the native module, for the CPU alone when ``architectures`` is None."""
    folder, package = check.scratch / "build", check.scratch / "package"
    options = [f"-DPython_EXECUTABLE={sys.executable}", "-DERNIE_CUDA=OFF"]
    if architectures is not None:
        options[1:] = ["-DERNIE_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",
                       "-DERNIE_PROBES=ON",
                       f"-DERNIE_CUDA_JOBS={os.cpu_count()}"]  # fmt: skip
        gathered = check.scratch / "cutlass" / "cutlass_library" / "source"
        if gathered.exists():
            options.append(f"-DERNIE_CUTLASS_DIR={gathered}")
    if shutil.which("ninja", path=check.environment["PATH"]):
        options += ["-G", "Ninja"]
    shutil.copytree(ROOT / "python" / "ernie_kernels", package / "ernie_kernels",
                    ignore=shutil.ignore_patterns("*.so", "__pycache__"))  # fmt: skip
    return (
        check.run("configure", ["cmake", "-S", str(ROOT), "-B", str(folder), *options], 120)
        and check.run("build", ["cmake", "--build", str(folder), f"-j{os.cpu_count()}"], 360)
        and check.run(
            "install module", ["cmake", "--install", str(folder), "--prefix", str(package)], 60
        )
    )


def report_kernels(check: Check) -> None:
    command = [sys.executable, "bench/cuda_report.py", "--build-dir", str(check.scratch / "build")]
    check.run("kernel report", [*command, "--json", str(check.results / "kernels.json")], 60)


def test(check: Check, selection: list[str], sanitize: str | None) -> None:
    xml = check.results / "tests.xml"
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={xml}"]
    if sanitize is None:
        check.run("tests", [*pytest, *selection], 240)
    else:
        tool = [*COMPUTE_SANITIZER, "--tool", sanitize, *(MEMCHECK * (sanitize == "memcheck"))]
        check.run(f"tests: {sanitize}", [*tool, *pytest, "-o", "timeout=0", *selection], 480)
    if not xml.exists():
        return
    cases = list(ET.parse(xml).iter("testcase"))
    failed = [case for case in cases if {"failure", "error"} & {part.tag for part in case}]
    skipped = [case for case in cases if case.find("skipped") is not None]
    check.report.tests = {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped": len(skipped),
        "names_of_failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed][
            :100
        ],
    }
    if len(cases) == len(skipped):
        check.record(Stage("tests ran", "failed"))
    check.write()


def measure_ceilings(check: Check) -> None:
    path = check.scratch / "ceilings.json"
    if check.run("ceilings", [sys.executable, "bench/ceilings.py", "--json", str(path)], 60):
        check.report.ceilings = json.loads(path.read_text())
        check.write()


def run_benches(check: Check, dry_run: bool) -> None:
    options = ["--device", "cuda", "--samples", "30", "--seconds", "0.2"]
    # Those of op families: bench_model.py wants a checkpoint, and times the CPU.
    families = sorted(path.stem for path in (ROOT / "csrc" / "ops").glob("*.cpp"))
    scripts = [ROOT / "bench" / f"bench_{family}.py" for family in families]
    scripts = [script for script in scripts if script.exists()]
    if dry_run:
        options = ["--samples", "3", "--seconds", "0.01"]
        scripts = [ROOT / "bench" / "bench_norm.py"]
    for script in scripts:
        command = [sys.executable, str(script), *options]
        check.run(script.stem, [*command, "--json", str(check.results / "bench.jsonl")], 90)
    if not dry_run:
        command = [sys.executable, "bench/bench_decode.py", "--json"]
        check.run("bench_decode", [*command, str(check.results / "bench.jsonl")], 150)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder for the results, made if missing")
    parser.add_argument("--wheels", type=Path, default=ROOT / "third_party" / "wheels")
    parser.add_argument("--minutes", type=float, default=9.5, help="stop after this long")
    parser.add_argument("--sanitize", choices=["memcheck", "racecheck", "initcheck", "synccheck"])
    parser.add_argument("--tests", nargs="*", default=[], help="only these test files")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()

    machine = describe_machine()
    if why := refuse(machine, args.dry_run):
        print(f"gpu_check: {why}", file=sys.stderr)
        return 2
    args.results = args.results.resolve()
    args.results.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "bench.jsonl", "tests.xml", "kernels.json", "log.txt"):
        (args.results / name).unlink(missing_ok=True)
    commit = output_of(["git", "rev-parse", "HEAD"]) or "unknown"
    report = Report(commit, sys.argv[1:], machine)

    with tempfile.TemporaryDirectory(prefix="ernie_gpu_check_") as scratch:
        check = Check(args.results, args.minutes, report, Path(scratch))
        if not args.dry_run and args.sanitize is None:
            measure_ceilings(check)
        architectures = None if args.dry_run else architecture(machine["compute_capability"])
        if install(check, args.wheels) and build(check, architectures):
            marks = (
                ["-m", "not cuda and not slow and not oracle"] if args.dry_run else ["-m", "cuda"]
            )
            if not args.dry_run:
                report_kernels(check)
            test(check, [*marks, *(args.tests or ["tests"])], args.sanitize)
            if args.sanitize is None:
                run_benches(check, args.dry_run)
        else:
            check.skip("tests and benches", "nothing was built; see log.txt")
    failed = [stage.name for stage in report.stages if stage.outcome != "passed"]
    print(
        f"{args.results / 'report.json'}: {'failed: ' + ', '.join(failed) if failed else 'passed'}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
