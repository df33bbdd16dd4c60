"""`python -m tests.sim --seed N` tells the story of one seed; `--count 1000` runs many, on all CPUs."""

from __future__ import annotations

import argparse
import os
import sys
import time

from .many import run_many
from .run import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one, and print what happens")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--mutation", default="", help="a defect to put in: see mutations.py")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first seed that fails")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of strings is part of a run
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]])
    if options.seed is not None:
        result = run_seed(options.seed, mutation=options.mutation, verbose=True)
        print(result.summary, f"{result.cpu_s:.2f} s of CPU")
        print("\n".join(["FAILED:", *result.violations]) if result.violations else "passed", flush=True)
        os._exit(1 if result.violations else 0)
    began = time.monotonic()
    seeds = range(options.first, options.first + options.count)
    failed, done, totals, cpu = 0, 0, dict[str, int](), 0.0
    for result in run_many(seeds, jobs=options.jobs, mutation=options.mutation):
        done += 1
        cpu += result.cpu_s
        for name, value in result.summary.items():
            if name != "seed":
                totals[name] = totals.get(name, 0) + value
        if result.violations:
            failed += 1
            text = "; ".join(result.violations)[:600]
            print(f"seed {result.seed} FAILED: {text}\n  again: python -m tests.sim --seed {result.seed}", flush=True)
            if not options.keep_going:
                break
    spent = time.monotonic() - began
    print(f"{done} seeds, {failed} failed, {spent:.1f} s, {1000 * cpu / max(done, 1):.0f} ms of CPU a seed; {totals}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
