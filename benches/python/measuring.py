"""What the benches share: who takes part, and what comes of it."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass
class Candidate:
    name: str
    #: Where it comes from; none where it is what the others are compared with.
    package: str | None


C = TypeVar("C", bound=Candidate)


@dataclass
class Case:
    candidate: str
    kind: str
    what: str
    call: Callable[[int], Any]
    samples: list[float] = field(default_factory=list)

    @property
    def case(self) -> tuple[str, str]:
        return self.kind, self.what

    @property
    def ns(self) -> float:
        return statistics.median(self.samples)


def asked(description: str, repeats: int, calls: int) -> argparse.Namespace:
    """What the command line asks for."""
    arguments = argparse.ArgumentParser(description=description.splitlines()[0])
    arguments.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments.add_argument("--repeats", type=int, default=repeats)
    arguments.add_argument(
        "--calls", type=int, default=calls, help="of the quickest cases; others may make fewer"
    )
    arguments.add_argument("--without-peers", action="store_true")
    return arguments.parse_args()


def present(candidates: list[C], without_peers: bool) -> Iterator[C]:
    """Those that are installed."""
    for candidate in candidates:
        is_peer = candidate.package not in (None, "kailash")
        if is_peer and without_peers:
            continue
        try:
            if candidate.package is not None:
                importlib.metadata.version(candidate.package)
        except importlib.metadata.PackageNotFoundError:
            print(f"skipped {candidate.name}: not installed", file=sys.stderr)
        else:
            yield candidate


def tell(cases: list[Case], units: list[str], asked: argparse.Namespace) -> None:
    """Prints what was measured, also as multiples of each candidate in `units`.

    `cargo xtask bench` takes the JSON, and has the bars.
    """
    if asked.json:
        rows = [{"name": it.candidate, "kind": it.kind, "case": it.what, "ns": it.ns} for it in cases]
        print(json.dumps({"python": platform.python_version(), "rows": rows}, indent=2))
        return
    version, calls = platform.python_version(), f"{asked.repeats} x {asked.calls:,} calls"
    print(f"CPython {version}, ns a call, medians of {calls}")
    for of_case in dict.fromkeys(case.case for case in cases):
        ns = {case.candidate: case.ns for case in cases if case.case == of_case}
        compared = [unit for unit in units if unit in ns]
        heads = "".join(f"{'x ' + unit:>16}" for unit in compared)
        print(f"\n{', '.join(of_case):<20}{'ns':>9}{heads}")
        for candidate, took in ns.items():
            times = "".join(f"{took / ns[unit]:>16.2f}" for unit in compared)
            print(f"{candidate:<20}{took:>9.0f}{times}")
