"""What the `tinynet bench` commands show: of whole networks times, ratios beside their targets, and who failed why; of
compiled programs every step beside the roofline; of cliffs the worst pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tinynet.bench.cliffs import CLIFF, Pair, text_of
from tinynet.bench.programs import Table as Program
from tinynet.bench.programs import limit
from tinynet.bench.roofline import Roofline
from tinynet.compare.report import seconds

QUIET = 10.0  # percent of the machine


def times(table: dict):
    """A row for each contestant, a column for each batch size."""
    return _view(table, "median time", lambda cell, size: seconds(cell["median_s"]))


def growth(table: dict):
    return _view(table, "images a second", lambda cell, size: f"{size / cell['median_s']:,.0f}")


def _view(table: dict, what: str, text: Callable[[dict, int], str]):
    from rich.table import Table

    view = Table(title=f"{table['title']}, {table['kind']}: {what}")
    view.add_column("images")
    for size in table["sizes"]:
        view.add_column(str(size), justify="right")
    view.add_column("peak MiB", justify="right")
    for row in table["rows"]:
        cells = [text(cell, size) if cell["median_s"] is not None else f"[red]{cell['status']}[/]" for size, cell in row["cells"].items()]
        view.add_row(row["contestant"], *cells, "" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}")
    return view


def lines(table: dict) -> Iterator[str]:
    """A warning if others were computing, the ratios, one a line, and every failure once; with rich's markup."""
    from rich.markup import escape

    if table["busy_percent"] > QUIET:
        # threads that spin while they wait, as OpenMP's do, lose a whole time slice to whoever else computes
        yield f"[red]others used {table['busy_percent']:.0f} % of this machine when the table began:[/] its times say little, least of all of torch; measure again when it is idle"
    for entry in table["ratios"]:
        yield f"{entry['contestant']}, {entry['size']} image{'s' if entry['size'] > 1 else ''}: {_times(entry)}{_target(entry)}"
    for row in table["rows"]:
        reasons = {cell["reason"]: cell for cell in row["cells"].values() if cell["reason"]}
        for reason, cell in reasons.items():
            log = "" if cell["status"] in ("missing", "wrong") else f" ({escape(row['log'])})"
            yield f"[red]{row['contestant']}: {cell['status']}:[/] {escape(' '.join(reason.split()))}{log}"


def _times(entry: dict) -> str:
    return f"[bold]{entry['ratio']:.2f} x[/] the best of the others ({entry['other']}; {entry['low']:.2f} to {entry['high']:.2f} in the rounds)"


def _target(entry: dict) -> str:
    target = entry["target"]
    if target is None:
        return ""
    against = target["against"]
    other = "" if against["other"] == entry["other"] else f" against {against['other']}, {against['ratio']:.2f} x"
    return f"; target {target['ratio']:g}{other}: {_met(target['met'])}, floor {target['floor']:g}: {_met(target['floor_met'])}{beyond(target)}"


def beyond(target: dict) -> str:
    """Of a target that is not met, since no program could: how near to it the processor's peak is. (Older results don't have it.)"""
    at_peak = target.get("at_peak")
    missed = target["ratio"] if target["floor_met"] else target["floor"]
    return "" if target["met"] or at_peak is None or at_peak >= missed else f" (all products at the processor's peak would be {at_peak:.2f} x)"


def _met(met: bool) -> str:
    return "[green]met[/]" if met else "[red]not met[/]"


# --- compiled programs ---


def steps(program: Program, roof: Roofline):
    """A row for each step, in the order in which they run."""
    from rich.table import Table

    profile = program.profile
    view = Table(title=f"{program.title}: the whole {seconds(profile.seconds)}, {profile.waited / profile.stamped:.0%} of it waiting; {len(profile.steps)} steps by themselves {seconds(profile.sum)}")
    for column in ("step", "on", "kernel"):
        view.add_column(column)
    for column in ("share", "in place", "by itself", "GFLOP/s", "GB/s", "reaches"):
        view.add_column(column, justify="right", no_wrap=True)
    for step in profile.steps:
        bound = limit(step, roof)
        limited = f"{bound.share:.0%} of " + ("peak" if bound.by == "peak" else f"{bound.rate / 1e9:.0f} GB/s")
        if step.fewer:
            limited += " *"
        rate = "" if step.gflops is None else f"{step.gflops:,.1f}"
        view.add_row(step.name, step.on, step.kernel, f"{step.in_place / profile.stamped:.1%}", seconds(step.in_place), seconds(step.seconds), rate, f"{step.gb_s:,.1f}", "[red]IMPOSSIBLE[/]" if bound.impossible else limited)
    return view


# --- CUDA kernels ---


def on_gpu(result: dict, rows: list) -> Iterator:
    """What the GPU can do at most, and each variant, or torch, beside that."""
    from rich.table import Table

    yield f"{result['gpu']['name']}: {result['peak_gflops']:,.0f} GFLOP/s and {result['bandwidth_gb_s']:,.0f} GB/s at most; torch: {result['torch']}"
    view = Table("network", "images", "kernel", "layer", "variant", "oracle", "time", "GFLOP/s", "GB/s", "of the GPU")
    for row in rows:
        cells = ("", "", "", "") if row.seconds is None else (f"{row.seconds * 1e6:,.1f} us", f"{row.gflops:,.0f}", f"{row.gb_s:,.0f}", "[red]IMPOSSIBLE[/]" if row.impossible else f"{row.share:.0%}")
        view.add_row(row.network, str(row.images), row.kernel, row.layer, row.variant, row.verdict, *cells)
    if rows:
        yield view
    for table in result.get("networks", ()):
        yield times(table)
        yield from lines(table)


# --- cliffs ---


def cliffs(kernel: str, pairs: list[Pair], shapes: int, neighbours: int) -> Iterator[str]:
    """The worst neighbours of one kernel, the worst first; with rich's markup."""
    yield f"[bold]{kernel}[/]: {shapes:,} shapes, {neighbours:,} pairs of neighbours, the worst:"
    for pair in pairs:
        times, shares = (" to ".join(texts) for texts in ([text(p) for p in (pair.fast, pair.slow)] for text in (lambda p: seconds(p.seconds), lambda p: f"{p.least / p.seconds:.2%}")))
        ratio = f"[red]{pair.excess:.1f} x[/]" if pair.excess > CLIFF else f"{pair.excess:.1f} x"
        step = f"{pair.dimension} {pair.fast.shape[pair.dimension]} to {pair.slow.shape[pair.dimension]}"
        yield f"  {ratio}  {step}: {times}, {shares} of the roofline; {text_of(pair.slow.shape, pair.dimension)}"
