"""One commit against another: is the engine slower, and are its results the same? For every change of the engine.

    python -m benchmarks.regression main                    # main against the checked out commit
    python -m benchmarks.regression v0.1.0 HEAD --rounds 9 --cases ml reml
    python -m benchmarks.regression main --working-tree     # against the files as they are, uncommitted changes too

Both commits are checked out into temporary worktrees. Each is served by a process that compiles first and then waits;
the parent asks them in turn, in an order that alternates, so that whatever else the machine does falls on both. Printed
are, for every case, the ratios head / base of CPU and wall seconds (median over the rounds and their range), and the
largest differences of the results. The exit code is 1 where results differ by more than `--tolerance` or the median
ratio of CPU seconds is above `--max-ratio`, and 0 otherwise.

Only `scglmm.tl.nbmm` is called, so that any two commits that have it can be compared; arguments that a commit does not
know make its case fail, with the message. The first run of a fresh worktree compiles for a minute or two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scglmm
from benchmarks.measure import ONE_THREAD, RESULT, ROOT, WorkerFailed, machine
from benchmarks.simulate import FORMULA, Study, simulate

WORKER = Path(__file__).with_name("regression_worker.py")


@dataclass(frozen=True)
class Case:
    """A call that is timed.

    Attributes
    ----------
    data
        Which of `write_data`.
    formula, how
        Arguments of `scglmm.tl.nbmm`.
    """

    data: str
    formula: str
    how: dict[str, Any] = field(default_factory=dict)


CASES = {
    "ml": Case("psychad", FORMULA, {"method": "ml"}),
    "reml": Case("psychad", FORMULA, {"moderate": False}),
    "moderated": Case("psychad", FORMULA, {"moderate": True}),
    "slopes": Case("paired", "~ offset(log(libSize)) + stim + (1+stim|SubID)", {"moderate": False}),
    "nested": Case("paired", "~ offset(log(libSize)) + stim + (1|SubID) + (1|SubID:stim)", {"moderate": False}),
    "crossed": Case("paired", "~ offset(log(libSize)) + stim + (1|SubID) + (1|batch)", {"method": "ml"}),
    "compression": Case("many cells", FORMULA, {"method": "ml"}),
}


def write_data(folder: Path, names: set[str], scale: float = 1.0) -> None:
    """Write the data sets of the cases, smaller by a factor for a smoke run."""
    if "psychad" in names:
        adata = scglmm.datasets.psychad()
        adata[:, : max(4, int(220 * scale))].copy().write_h5ad(folder / "psychad.h5ad")
    if "many cells" in names:
        simulate(Study(int(200_000 * scale), max(4, int(100 * scale)), 200)).write_h5ad(folder / "many cells.h5ad")
    if "paired" in names:
        adata = simulate(Study(max(800, int(8_000 * scale)), max(4, int(60 * scale)), 16, density=0.3))
        rng = np.random.default_rng(0)
        adata.obs["stim"] = pd.Categorical(rng.choice(["no", "yes"], adata.n_obs))
        adata.obs["batch"] = pd.Categorical(rng.choice(list("abcdef"), adata.n_obs))
        adata.write_h5ad(folder / "paired.h5ad")


class Side:
    """A process that runs cases with the scglmm of one tree."""

    def __init__(self, tree: Path, data: Path) -> None:
        # -P: the worker's own folder is not searched for modules; the tree is, before any installed scglmm.
        command = [sys.executable, "-P", str(WORKER), str(tree), str(data)]
        env = os.environ | ONE_THREAD | {"PYTHONPATH": str(tree)}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, as long as the process
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=data
        )

    def run(self, case: Case) -> dict[str, Any]:
        """Run a case once.

        Raises
        ------
        WorkerFailed
            The process ended, or scglmm refused the call.
        """
        request = json.dumps({"data": case.data, "formula": case.formula, "how": case.how})
        with suppress(BrokenPipeError):  # it ended; what it said follows
            print(request, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith(RESULT):
                answer = json.loads(line.removeprefix(RESULT))
                if "error" in answer:
                    raise WorkerFailed(answer["error"])
                return answer
        self._log.seek(0)
        raise WorkerFailed((self._log.read().strip() or "the process ended without a word").splitlines()[-1])

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._log.close()


@contextmanager
def worktree(commit: str, root: Path = ROOT) -> Iterator[Path]:
    """Check a commit out into a temporary worktree.

    Raises
    ------
    ValueError
        There is no such commit.
    """
    git = ["git", "-C", str(root)]
    known = subprocess.run(
        [*git, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"], capture_output=True, text=True, check=False
    )
    if known.returncode != 0:
        raise ValueError(f"There is no commit {commit!r} in {root}.")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run([*git, "worktree", "add", "--detach", "--quiet", str(tree), known.stdout.strip()], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)


def compare(base: Side, head: Side, case: Case, rounds: int) -> dict[str, Any]:
    """Run a case on both sides in turn.

    Returns
    -------
    `cpu` and `wall`: ratios head / base, one per round; `base_cpu`: seconds of the base, one per round; and what
    `differences` returns.
    """
    sides = {"base": base, "head": head}
    found = {name: side.run(case) for name, side in sides.items()}  # compiles; its results are compared
    changes = differences(found["base"], found["head"])
    cpu, wall, base_cpu = [], [], []
    for k in range(rounds):
        names = ["base", "head"] if k % 2 == 0 else ["head", "base"]
        took = {name: sides[name].run(case) for name in names}
        cpu.append(took["head"]["cpu"] / took["base"]["cpu"])
        wall.append(took["head"]["wall"] / took["base"]["wall"])
        base_cpu.append(took["base"]["cpu"])
    return {"cpu": cpu, "wall": wall, "base_cpu": base_cpu} | changes


def differences(base: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """Largest differences between two sets of results.

    Returns
    -------
    `loglik`: absolute; `coef`: in standard errors of the base; `se`: relative; `status`: genes whose status changed;
    `lost`: genes that one side alone has estimates of. NaN where there is nothing to compare.
    """
    a, b = ({name: np.array(side[name], float) for name in ("loglik", "coef", "se")} for side in (base, head))
    if a["coef"].shape != b["coef"].shape:
        raise WorkerFailed(f"tables of shape {a['coef'].shape} in base and {b['coef'].shape} in head")

    def largest(values: np.ndarray) -> float:
        values = np.abs(values[np.isfinite(values)])
        return float(values.max()) if values.size else float("nan")

    with np.errstate(all="ignore"):
        return {
            "loglik": largest(b["loglik"] - a["loglik"]),
            "coef": largest((b["coef"] - a["coef"]) / a["se"]),
            "se": largest(b["se"] / a["se"] - 1),
            "status": int(np.sum(np.array(base["status"]) != np.array(head["status"]))),
            "lost": int((np.isfinite(a["coef"]) != np.isfinite(b["coef"])).any(axis=1).sum()),
        }


def report(name: str, found: dict[str, Any], tolerance: float) -> tuple[str, bool]:
    """One line about a case, and whether the results agree."""
    agree = found["status"] == found["lost"] == 0 and not any(
        found[key] > tolerance for key in ("loglik", "coef", "se")
    )
    ratios = {
        key: f"{np.median(found[key]):.3f} ({min(found[key]):.3f} to {max(found[key]):.3f})" for key in ("cpu", "wall")
    }
    text = (
        f"{name}: head / base CPU {ratios['cpu']}, wall {ratios['wall']}; base {np.median(found['base_cpu']):.2f} s; "
        f"results {'agree' if agree else 'DIFFER'}: log-likelihood {found['loglik']:.1e}, coefficients "
        f"{found['coef']:.1e} standard errors, standard errors {found['se']:.1e} relative, {found['status']} statuses "
        f"changed, {found['lost']} genes gained or lost"
    )
    return text, agree


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two commits; the exit code says whether head is as good."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="commit")
    parser.add_argument("head", nargs="?", default="HEAD", help="commit, HEAD by default")
    parser.add_argument("--working-tree", action="store_true", help="head is the files as they are")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual size of the data")
    parser.add_argument("--tolerance", type=float, default=1e-6)
    parser.add_argument("--max-ratio", type=float, default=1.1)
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trees = [stack.enter_context(worktree(options.base))]
        trees.append(ROOT if options.working_tree else stack.enter_context(worktree(options.head)))
        write_data(data, {CASES[name].data for name in options.cases}, options.scale)
        print(machine(), flush=True)
        sides = [Side(tree, data) for tree in trees]
        for side in sides:
            stack.callback(side.close)
        good = True
        for name in options.cases:
            try:
                found = compare(*sides, CASES[name], options.rounds)
            except WorkerFailed as error:
                print(f"{name}: {error}", flush=True)
                good = False
                continue
            text, agree = report(name, found, options.tolerance)
            print(text, flush=True)
            good = good and agree and float(np.median(found["cpu"])) <= options.max_ratio
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
