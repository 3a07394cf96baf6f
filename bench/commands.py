"""`tinynet bench`: one command for each thing that is measured. They choose, show and print; what is measured stands in the
files beside this one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinynet.options import choice, sizes_of, terminal

_NETWORKS = "keras,tensorflow,lenet5,vgg,strided,bottleneck,alexnet"  # zoo.NETWORKS, which would import too much for a command line that only helps

bench = typer.Typer(help="Measure kernels and the machine: correctness first, then time.", no_args_is_help=True)


def wide() -> Console:
    """For tables of many columns: what is no terminal has no width that they must fit."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


@bench.command()
def roofline(as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON on standard output")] = False) -> None:
    """What this machine can do at most: multiply-adds on registers, and reading memory, measured with our own kernels."""
    import numpy as np

    from tinynet.bench.roofline import measure

    found = [measure(dtype) for dtype in (np.float32, np.float64)]
    if as_json:
        json.dump([{"dtype": r.dtype, "threads": r.threads, "peak_gflops": r.peak / 1e9, "bandwidth_gb_s": {str(k): v / 1e9 for k, v in r.bandwidth.items()}} for r in found], sys.stdout)
        return
    for r in found:
        reads = ", ".join(f"{size:g} MiB {b / 1e9:.0f} GB/s" for size, b in r.bandwidth.items())
        Console().print(f"{r.dtype}, {r.threads} threads: {r.peak / 1e9:.0f} GFLOP/s; reading again and again {reads}")


@bench.command()
def kernels(
    networks: Annotated[str, typer.Option(help=f"{_NETWORKS}; their layers are timed; keras,tensorflow if left out (keras and pytorch are one architecture)")] = "keras,tensorflow",
    batch_sizes: Annotated[str, typer.Option(help="images in a batch")] = "1,32,128",
    only: Annotated[str, typer.Option(help="names of kernels, like conv2d,matmul; all if left out")] = "",
    compiled: Annotated[bool, typer.Option("--compiled", help="the steps of compiled programs instead: fused kernels, losses, updates of optimisers, packing")] = False,
    runs: Annotated[str, typer.Option(help="with --compiled: forward, or training with sgd,momentum,adam,adamw; all if left out")] = "",
    maths: Annotated[str, typer.Option(help="with --compiled: strict,winograd; both if left out")] = "",
    rounds: Annotated[int, typer.Option(min=3)] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON on standard output")] = False,
) -> None:
    """Every variant of every CPU kernel on the networks' layers, or every step of their compiled programs: proved, timed in turns, beside the roofline."""
    from tinynet.bench.zoo import NETWORKS

    chosen, sizes = choice(networks, list(NETWORKS), "network"), sizes_of(batch_sizes)
    if compiled and only:
        raise typer.BadParameter("--only names single kernels; with --compiled, which times whole programs, choose --runs and --maths")
    if not compiled and (runs or maths):
        raise typer.BadParameter("--runs and --maths choose compiled programs; add --compiled")
    if compiled:
        _programs(chosen, sizes, runs, maths, rounds, as_json)
    else:
        _variants(chosen, sizes, only, rounds, as_json)


def _variants(networks: tuple[str, ...], sizes: tuple[int, ...], only: str, rounds: int, as_json: bool) -> None:
    import numpy as np
    from rich.progress import track

    from tinynet.bench import kernels as table
    from tinynet.bench.roofline import measure
    from tinynet.kernels.contract import CONTRACTS

    names = choice(only, list(CONTRACTS), "kernel")
    rng = np.random.default_rng(0)
    works = [(network, size, work) for network in networks for size in sizes for work in table.layers(network, size, rng) if work.name in names]
    if not works:
        raise typer.BadParameter(f"no layer of {', '.join(networks)} runs {' or '.join(names)}; --networks has others")
    roof, found = measure(), []
    for network, size, work in track(works, "measuring", console=terminal):
        found += [(network, size, r) for r in table.measure(work, roof, rounds=rounds, block_s=0.02)]
    if as_json:
        rows = [{"network": n, "images": s, "kernel": r.work.name, "layer": r.work.layer, "variant": r.variant, "verdict": r.verdict, "seconds": r.seconds, "low": r.low, "high": r.high, "gflops": r.gflops, "share_of_roofline": r.share} for n, s, r in found]
        json.dump({"peak_gflops": roof.peak / 1e9, "threads": roof.threads, "rows": rows}, sys.stdout)
    else:
        console = wide()
        console.print(f"{roof.peak / 1e9:.0f} GFLOP/s at most on {roof.threads} threads")
        view = Table("network", "images", "kernel", "layer", "variant", "oracle", "time", "GFLOP/s", "of the roofline")
        for network, size, r in found:
            cells = ("", "", "") if r.seconds is None else (f"{r.seconds * 1e6:,.0f} us", f"{r.gflops:,.1f}", "[red]IMPOSSIBLE[/]" if r.impossible else f"{r.share:.0%}")
            view.add_row(network, str(size), r.work.name, r.work.layer, r.variant, r.verdict, *cells)
        console.print(view)
    raise typer.Exit(0 if all(r.seconds is not None and not r.impossible for _, _, r in found) else 1)


def _programs(networks: tuple[str, ...], sizes: tuple[int, ...], runs: str, maths: str, rounds: int, as_json: bool) -> None:
    from rich.progress import Progress

    from tinynet.bench import programs, tables, truth
    from tinynet.bench.roofline import measure
    from tinynet.bench.zoo import NETWORKS, initial_state
    from tinynet.compare.job import record

    chosen, ways = choice(runs, programs.RUNS, "run"), choice(maths, programs.MATHS, "math")
    roof, found, console = measure(sizes=programs.LEVELS), [], wide()
    if not as_json:
        reads = ", ".join(f"{mib:g} MiB {rate / 1e9:.0f} GB/s" for mib, rate in roof.bandwidth.items())
        console.print(f"{roof.peak / 1e9:.0f} GFLOP/s at most on {roof.threads} threads; reading again and again {reads}")
    with Progress(console=terminal) as progress:
        bar = progress.add_task("measuring", total=len(networks) * len(sizes) * len(chosen) * len(ways))
        for network in map(NETWORKS.get, networks):
            state = initial_state(network)
            for size in sizes:
                x, y = truth.images(network, state, size)
                wants = {kind: truth.truth(network, kind, state, x, y) for kind in {"forward" if run == "forward" else "training" for run in chosen}}
                for run in chosen:
                    for math in ways:
                        table = programs.measure(network, state, x, y, run, math, wants["forward" if run == "forward" else "training"], rounds)
                        found.append(table)
                        progress.advance(bar)
                        if not as_json:
                            console.print(tables.steps(table, roof) if table.profile else f"[red]{table.title}: wrong, so not timed:[/] {'; '.join(table.wrong)}")
    if as_json:
        limits = {"peak_gflops": roof.peak / 1e9, "bandwidth_gb_s": {str(mib): rate / 1e9 for mib, rate in roof.bandwidth.items()}, "threads": roof.threads}
        json.dump({**record(programs.SCHEMA), **limits, "programs": [programs.as_data(t, roof) for t in found]}, sys.stdout)
    elif any(step.fewer for t in found if t.profile for step in t.profile.steps):
        console.print("* Winograd's algorithm multiplies less than the definition, whose operations are counted")
    fine = all(t.profile is not None and not any(programs.limit(step, roof).impossible for step in t.profile.steps) for t in found)
    raise typer.Exit(0 if fine else 1)


@bench.command()
def cliffs(
    only: Annotated[str, typer.Option(help="conv2d,conv2d_dx,conv2d_dw,matmul,max_pool2d,max_pool2d_dx,avg_pool2d,avg_pool2d_dx; all if left out")] = "",
    show: Annotated[int, typer.Option(min=1, help="pairs of each kernel, at most; all that are cliffs in any case")] = 5,
    bases: Annotated[int, typer.Option(min=1, show_default=False, help="shapes of each kernel to walk from; all if left out")] = sys.maxsize,
    as_json: Annotated[bool, typer.Option("--json", help="print the pairs as JSON on standard output")] = False,
) -> None:
    """Neighbouring shapes of which one takes far longer for what it computes: proved, swept, and the worst timed again in turns. Exit code 1 above 4 times."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from tinynet.bench import tables
    from tinynet.bench.cliffs import CLIFF, FAMILIES, SCHEMA, Sweep, as_data
    from tinynet.bench.roofline import measure
    from tinynet.compare.job import record

    chosen = choice(only, list(FAMILIES), "kernel")
    console, found, fine, roof = Console(), [], True, measure()
    with Progress(TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(), console=terminal) as progress:
        for kernel in chosen:
            sweep = Sweep(kernel, roof)
            walked = sweep.bases()[:bases]
            bar = progress.add_task(kernel, total=len(walked) + 1)
            for base in walked:
                sweep.walk(base)
                progress.advance(bar)
            worst = sweep.worst(show)
            progress.advance(bar)
            fine &= not sweep.wrong and all(pair.excess <= CLIFF for pair in worst)
            found.append(as_data(sweep, worst))
            if not as_json:
                for line in tables.cliffs(kernel, worst, sweep.timed, len(sweep.pairs)):
                    console.print(line, highlight=False, soft_wrap=True)
                for point in sweep.wrong:
                    console.print(f"[red]{kernel}: {point.verdict}, so not timed:[/] {escape(tables.text_of(point.shape))}")
    if as_json:
        json.dump({**record(SCHEMA), "kernels": found}, sys.stdout)
    raise typer.Exit(0 if fine else 1)


@bench.command("networks")
def bench_networks(
    networks: Annotated[str, typer.Option(help=f"{_NETWORKS}; all if left out (keras and pytorch are one architecture)")] = "",
    batch_sizes: Annotated[str, typer.Option(help="images in a batch, up to 4096; 1,32,128 if left out, for the article's networks 512 too")] = "",
    kinds: Annotated[str, typer.Option(help="forward,training; both if left out")] = "",
    contestants: Annotated[str, typer.Option(help="names like tinynet-compiled,torch-eager,onnxruntime; all if left out")] = "",
    threads: Annotated[int, typer.Option(min=1, help="for every contestant; the machine's cores if left out")] = os.cpu_count() or 1,
    rounds: Annotated[int, typer.Option(min=3, help="in which all take turns")] = 7,
    growth: Annotated[bool, typer.Option("--growth", help="images a second from 1 to 4096 images, of tinynet-compiled alone if no contestants are named")] = False,
    logs: Annotated[Path, typer.Option(file_okay=False, help="folder for what the contestants print")] = Path("out/bench"),
    as_json: Annotated[bool, typer.Option("--json", help="print the result, with all samples, as JSON on standard output")] = False,
) -> None:
    """Whole networks, forward and training, on tinynet and on everything else: proved, timed in turns, beside the targets."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from tinynet.bench import tables
    from tinynet.bench.networks import GROWTH, KINDS, Run, Settings
    from tinynet.bench.peers import CONTESTANTS
    from tinynet.bench.zoo import NETWORKS
    from tinynet.compare.report import as_json as to_json

    settings = Settings(
        networks=choice(networks, list(NETWORKS), "network"),
        kinds=choice(kinds, list(KINDS), "kind"),
        contestants=("tinynet-compiled",) if growth and not contestants else choice(contestants, list(CONTESTANTS), "contestant"),
        sizes=sizes_of(batch_sizes, most=GROWTH[-1]) if batch_sizes else GROWTH if growth else (),
        rounds=rounds,
        threads=threads,
    )
    console = Console()

    def show(table: dict) -> None:
        if not as_json:
            console.print(tables.growth(table) if growth else tables.times(table))
            for line in tables.lines(table):
                console.print(line)

    with Progress(TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(), console=terminal) as progress:
        bar = progress.add_task("starting", total=1)
        run = Run(settings, logs, lambda stage, done, of: progress.update(bar, description=stage, completed=done, total=of), show)
        try:
            run.run()
        except KeyboardInterrupt:
            terminal.print(f"stopped after {len(run.result['tables'])} tables")
    if as_json:
        sys.stdout.write(to_json(run.result))
    raise typer.Exit(0 if run.result["ok"] else 1)


@bench.command("gpu")
def bench_gpu(
    networks: Annotated[str, typer.Option(help=f"{_NETWORKS}; their layers are timed; keras,tensorflow if left out (keras and pytorch are one architecture)")] = "keras,tensorflow",
    batch_sizes: Annotated[str, typer.Option(help="images in a batch")] = "1,32,128",
    only: Annotated[str, typer.Option(help="names of kernels, like matmul,max_pool2d; all that have a CUDA kernel if left out")] = "",
    what: Annotated[str, typer.Option(help="kernels,networks: each kernel by itself, whole networks; both if left out")] = "",
    device: Annotated[str, typer.Option(help="cuda, or cuda:1 and so on")] = "cuda",
    logs: Annotated[Path, typer.Option(file_okay=False, help="folder for what the networks' contestants print")] = Path("out/bench"),
    rounds: Annotated[int, typer.Option(min=3)] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="print the result, with the machine's record, as JSON on standard output")] = False,
) -> None:
    """On a GPU, proved and timed in turns: every variant of every CUDA kernel on the networks' layers, beside torch, as a share of the
    GPU's measured peak; and the whole networks, forward and training, beside torch and TensorFlow."""
    from rich.progress import Progress

    from tinynet.bench import gpu, tables
    from tinynet.bench.zoo import NETWORKS
    from tinynet.compare.report import as_json as to_json
    from tinynet.devices import check_device

    try:
        found = check_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if found.gpu is None:
        raise typer.BadParameter(f"{device} is no GPU: nothing that it does says how fast one is; choose cuda, or cuda:1 and so on")
    chosen, sizes, names = choice(networks, list(NETWORKS), "network"), sizes_of(batch_sizes), choice(only, gpu.able(), "CUDA kernel")
    wanted = choice(what, ["kernels", "networks"], "part of the benchmark")
    if only and what and "kernels" not in wanted:
        raise typer.BadParameter("--only names single kernels; add kernels to --what")
    if found.reason:
        terminal.print(f"nothing was measured: {found.reason}", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    rows: list[gpu.Row] = []
    with Progress(console=terminal) as progress:
        bar = progress.add_task("measuring", total=None)
        show = lambda done, of, stage="kernels": progress.update(bar, completed=done, total=of, description=stage)
        result = gpu.run(device, chosen, sizes, names if "kernels" in wanted else (), rounds, rows.append, show)
        if "networks" in wanted and (what or not only):
            result |= gpu.whole_networks(device, chosen, sizes, rounds, logs, lambda stage, done, of: show(done, of, stage), result)
    if as_json:
        sys.stdout.write(to_json(result))
    else:
        for part in tables.on_gpu(result, rows):
            wide().print(part)
    raise typer.Exit(0 if result["ok"] else 1)


@bench.command("startup")
def bench_startup(
    network: Annotated[str, typer.Option(help="as in `tinynet bench networks`")] = "tensorflow",
    batch_size: Annotated[int, typer.Option(min=1, help="images in a batch")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="processes that are timed")] = 9,
) -> None:
    """From the start of a process to the first result of a compiled training step, when all kernels are on disk."""
    from tinynet.bench.startup import TARGET, measure
    from tinynet.bench.zoo import NETWORKS

    (name,) = choice(network, list(NETWORKS), "network", only_one=True)
    found, before = measure(name, batch_size, rounds), 0.0
    console, view = Console(), Table("until", "after the start", "of which")
    for stage, seconds in found.items():
        view.add_row(stage, f"{seconds * 1e3:,.0f} ms", f"{(seconds - before) * 1e3:,.0f} ms")
        before = seconds
    console.print(view)
    first = found["first step"]
    console.print(f"first result of a training step of {name} on {batch_size} images: {first:.2f} s after the start of the process; the target is {TARGET:.0f} s")
    raise typer.Exit(0 if first < TARGET else 1)


@bench.command("page")
def bench_page(
    results: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="files that networks, kernels --compiled and cliffs wrote with --json")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="the page")] = Path("out/benchmarks.md"),
) -> None:
    """What was measured, and written with --json, as a page of Markdown."""
    from tinynet.bench import page
    from tinynet.compare.report import replace

    try:
        found = [page.read(path) for path in results]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    replace(out, page.page(found))
    print(out)
