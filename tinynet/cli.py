"""The command line: `tinynet compare`, `tinynet train`, `tinynet bench`, `tinynet doctor`. Exit code 0 only if every check passed."""

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

app = typer.Typer(help="A small autograd engine, held against TensorFlow, Keras and PyTorch.", no_args_is_help=True, pretty_exceptions_enable=False)
bench = typer.Typer(help="Measure kernels and the machine: correctness first, then time.", no_args_is_help=True)
app.add_typer(bench, name="bench")
terminal = Console(stderr=True)


def _choice(text: str, allowed, what: str, only_one: bool = False) -> tuple[str, ...]:
    """A comma-separated option; all of `allowed` if it is empty."""
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip())) or tuple(allowed)
    for name in chosen:
        if name not in allowed:
            raise typer.BadParameter(f"there is no {what} {name!r}; choose from {', '.join(allowed)}")
    if only_one and len(chosen) != 1:
        raise typer.BadParameter(f"one {what} is wanted, not {text!r}; choose from {', '.join(allowed)}")
    return chosen


def _sizes(text: str, most: int = 1437) -> tuple[int, ...]:
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or not all(1 <= s <= most for s in sizes):
        raise typer.BadParameter(f"batch sizes must be numbers from 1 to {most}, separated by commas; got {text!r}")
    return sizes


def _wide() -> Console:
    """For tables of many columns: what is no terminal has no width that they must fit."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


@app.command()
def compare(
    networks: Annotated[str, typer.Option(help="tensorflow,keras,pytorch; all if left out")] = "",
    peers: Annotated[str, typer.Option(help="tinynet,tensorflow,keras,keras-jax,keras-torch,pytorch; all if left out")] = "",
    modes: Annotated[str, typer.Option(help="eager,graph,xla,jit,compile,channels_last; all if left out")] = "",
    batch_sizes: Annotated[str, typer.Option(help="images in a timed batch")] = "1,32,128,512",
    threads: Annotated[int, typer.Option(min=1, help="for every peer; the machine's cores if left out")] = os.cpu_count() or 1,
    epochs: Annotated[int, typer.Option(min=1, help="of training on the digits")] = 8,
    quick: Annotated[bool, typer.Option(help="the four main peers, plain modes, batches of 1 and 32, fewer rounds, training of the smallest network alone")] = False,
    out: Annotated[Path, typer.Option(file_okay=False, help="folder for report.html, report.md, report.json and logs")] = Path("out/compare"),
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON on standard output")] = False,
) -> None:
    """Runs the article's networks on every peer: do they agree, do they learn, how fast are they."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from tinynet.compare import networks as table
    from tinynet.compare import report
    from tinynet.compare.job import Job, Settings
    from tinynet.compare.peers import PEERS, make
    from tinynet.data import load_digits

    try:
        report.check_ready()
        load_digits()
    except ModuleNotFoundError as error:
        raise typer.BadParameter(str(error)) from None
    known_modes = list(dict.fromkeys(mode for name in PEERS for mode in make(name).modes))
    main_peers = ("tinynet", "tensorflow", "keras", "pytorch")
    settings = Settings(
        networks=_choice(networks, list(table.NETWORKS), "network"),
        peers=_choice(peers, list(PEERS), "peer") if peers or not quick else main_peers,
        modes=_choice(modes, known_modes, "mode") if modes else ("eager", "graph") if quick else (),
        batch_sizes=_sizes("1,32" if quick and batch_sizes == "1,32,128,512" else batch_sizes),
        threads=threads,
        rounds=3 if quick else 6,
        block_s=0.03 if quick else 0.15,
        epochs=epochs,
        quick=quick,
    )
    with Progress(TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(), console=terminal) as progress:
        bar = progress.add_task("starting", total=1)
        job = Job(settings, out, lambda stage, done, of: progress.update(bar, description=stage, completed=done, total=of))
        try:
            result = job.run()
        except BaseException as error:  # whatever it was: what is finished is kept
            page = report.write(job.result, out)
            terminal.print(f"stopped; what was finished is in {page.resolve()}", markup=False)
            if isinstance(error, KeyboardInterrupt):
                raise typer.Exit(130) from None
            raise
        progress.update(bar, description="writing the report", completed=1, total=1)
        page = report.write(result, out)
    if as_json:
        sys.stdout.write(report.as_json(result))
    else:
        _show(result, report)
        terminal.print(f"\nreport: {page.resolve()}", markup=False)
    raise typer.Exit(0 if result["ok"] else 1)


def _show(result: dict, report) -> None:
    console = Console()
    view = report.summary(result)
    table = Table(title="the same network? (largest share of the derived bound; 1 is the bound)")
    for column in ("network", "peer", "mode", "worst", "where", "verdict"):
        table.add_column(column)
    for r in view["parity"]:
        table.add_row(r["network"], r["peer"], r["mode"], report.number(r["worst"]["ratio"]), r["worst"]["name"], "[green]ok[/]" if r["ok"] else "[red]WRONG[/]")
    console.print(table)
    table = Table(title="accuracy on the held-out digits")
    for column in ("network", "peer", "mode", "epochs", "loss", "accuracy", f"past {view['wanted']:.0%} in epoch"):
        table.add_column(column)
    for r in result["training"]:
        last = r["epochs"][-1]
        table.add_row(r["network"], r["peer"], r["mode"], str(last["epoch"]), report.number(last["loss"]), f"[{'green' if r['ok'] else 'red'}]{last['accuracy']:.1%}[/]", str(r["passed_in"] or "never"))
    console.print(table)
    for t in view["speed"]:
        table = Table(title=f"network {t['network']}, {t['kind']}: median time of a call")
        table.add_column("images")
        for size in t["sizes"]:
            table.add_column(str(size), justify="right")
        for label, cells in t["rows"].items():
            table.add_row(label, *(report.seconds(cells[s]["median_s"]) if s in cells else "" for s in t["sizes"]))
        console.print(table)
    for w in view["wrong"]:
        console.print(f"[red]{w['network']}, {w['peer']} {w['mode']}[/]: {escape(w['explanation'])}")
    for f in result["failures"]:
        console.print(f"[red]{f['peer']} {f['mode'] or ''} {f['network'] or ''}, {f['stage']}: {f['status']}: {escape(f['reason'])}[/] {escape(f['install'])}")


@app.command()
def train(
    network: Annotated[str, typer.Option(help="tensorflow, keras or pytorch")] = "pytorch",
    device: Annotated[str, typer.Option(help="where to compute; `tinynet doctor` lists the devices")] = "cpu",
    epochs: Annotated[int, typer.Option(min=1)] = 8,
    batch_size: Annotated[int, typer.Option(min=1, max=1437)] = 32,
    learning_rate: Annotated[float, typer.Option(min=0)] = 0.03,
    momentum: Annotated[float, typer.Option(min=0)] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="of the initial weights and of the batches' order")] = 0,
    save: Annotated[Path | None, typer.Option(help="write the weights here after every epoch (safetensors)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the epochs as JSON on standard output")] = False,
) -> None:
    """Trains one of the article's networks on handwritten digits."""
    from dataclasses import asdict

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    import tinynet
    from tinynet.compare import networks
    from tinynet.compare.peers.convert import images_to_nhwc
    from tinynet.compare.peers.tinynet_peer import TinynetPeer, loss_of
    from tinynet.data import load_digits
    from tinynet.train import fit

    (name,) = _choice(network, list(networks.NETWORKS), "network", only_one=True)
    (device,) = _choice(device, list(tinynet.devices()), "device", only_one=True)
    if tinynet.devices()[device] is not None:
        raise typer.BadParameter(f"device {device!r} is not ready: {tinynet.devices()[device]}")
    if save is not None and not save.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {save.resolve().parent}; create it first")
    if save is not None and save.is_dir():
        raise typer.BadParameter(f"{save} is a folder; give the name of a file, like {save / 'weights.safetensors'}")
    chosen = networks.get(name)
    peer = TinynetPeer()
    peer.build(chosen, "eager")
    peer.set_state(networks.canonical_state(chosen, seed))
    model = peer.model.to(device)
    splits = [(images_to_nhwc(s.images) if peer.channels_last else s.images, s.classes) for s in load_digits()]
    optimizer = tinynet.optim.SGD(model.parameters(), learning_rate, momentum=momentum)
    history = []
    steps = -(-len(splits[0][0]) // batch_size)
    with Progress(TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), console=terminal) as progress:
        bar = progress.add_task(f"network {name} on {device}", total=steps * epochs)
        run = fit(model, lambda output, y: loss_of(chosen, output, y), optimizer, *splits, epochs=epochs, batch_size=batch_size, seed=seed, device=device, on_step=lambda _: progress.advance(bar))
        try:
            for epoch in run:
                history.append(asdict(epoch))
                progress.console.print(f"epoch {epoch.number}: loss {epoch.loss:.4f}, {epoch.accuracy:.1%} of the held-out digits")
                if save is not None:
                    tinynet.save(model, save)
        except KeyboardInterrupt:
            kept = f"; the weights after epoch {len(history)} are in {save}" if save is not None and history else ""
            terminal.print(f"stopped in epoch {len(history) + 1}{kept}")
            raise typer.Exit(130) from None
        except FloatingPointError as error:
            terminal.print(f"[red]{error}[/]")
            raise typer.Exit(1) from None
    if as_json:
        json.dump({"network": name, "device": device, "epochs": history}, sys.stdout)


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
    networks: Annotated[str, typer.Option(help="keras,tensorflow,lenet5,vgg,strided,bottleneck; their layers are timed; keras,tensorflow if left out (keras and pytorch are one architecture)")] = "keras,tensorflow",
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

    chosen, sizes = _choice(networks, list(NETWORKS), "network"), _sizes(batch_sizes)
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

    names = _choice(only, list(CONTRACTS), "kernel")
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
        console = _wide()
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

    chosen, ways = _choice(runs, programs.RUNS, "run"), _choice(maths, programs.MATHS, "math")
    roof, found, console = measure(sizes=programs.LEVELS), [], _wide()
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
        json.dump({"peak_gflops": roof.peak / 1e9, "bandwidth_gb_s": {str(mib): rate / 1e9 for mib, rate in roof.bandwidth.items()}, "threads": roof.threads, "programs": [programs.as_data(t, roof) for t in found]}, sys.stdout)
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
    from tinynet.bench.cliffs import CLIFF, FAMILIES, Sweep, as_data
    from tinynet.bench.roofline import measure

    chosen = _choice(only, list(FAMILIES), "kernel")
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
        json.dump(found, sys.stdout)
    raise typer.Exit(0 if fine else 1)


@bench.command("networks")
def bench_networks(
    networks: Annotated[str, typer.Option(help="keras,tensorflow,lenet5,vgg,strided,bottleneck; all if left out (keras and pytorch are one architecture)")] = "",
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
        networks=_choice(networks, list(NETWORKS), "network"),
        kinds=_choice(kinds, list(KINDS), "kind"),
        contestants=("tinynet-compiled",) if growth and not contestants else _choice(contestants, list(CONTESTANTS), "contestant"),
        sizes=_sizes(batch_sizes, most=GROWTH[-1]) if batch_sizes else GROWTH if growth else (),
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


@bench.command("startup")
def bench_startup(
    network: Annotated[str, typer.Option(help="as in `tinynet bench networks`")] = "tensorflow",
    batch_size: Annotated[int, typer.Option(min=1, help="images in a batch")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="processes that are timed")] = 9,
) -> None:
    """From the start of a process to the first result of a compiled training step, when all kernels are on disk."""
    from tinynet.bench.startup import TARGET, measure
    from tinynet.bench.zoo import NETWORKS

    (name,) = _choice(network, list(NETWORKS), "network", only_one=True)
    found, before = measure(name, batch_size, rounds), 0.0
    console, view = Console(), Table("until", "after the start", "of which")
    for stage, seconds in found.items():
        view.add_row(stage, f"{seconds * 1e3:,.0f} ms", f"{(seconds - before) * 1e3:,.0f} ms")
        before = seconds
    console.print(view)
    first = found["first step"]
    console.print(f"first result of a training step of {name} on {batch_size} images: {first:.2f} s after the start of the process; the target is {TARGET:.0f} s")
    raise typer.Exit(0 if first < TARGET else 1)


@app.command()
def doctor() -> None:
    """Says what is installed, which devices are ready, how many threads there are, and what to do about each shortfall."""
    from importlib.metadata import PackageNotFoundError, version

    import psutil

    import tinynet

    console = Console()
    console.print(f"tinynet {tinynet.__version__}, Python {sys.version.split()[0]}, {psutil.cpu_count(logical=False)} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB")
    table = Table("package", "version", "for", "if missing")
    for package, purpose, install in (
        ("numpy", "everything", "pip install numpy"),
        ("numba", "device cpu", "pip install numba"),
        ("safetensors", "save and load", "pip install safetensors"),
        ("scikit-learn", "the digits", "pip install scikit-learn"),
        ("tensorflow", "peer tensorflow, keras", "pip install tensorflow"),
        ("keras", "peer keras", "pip install keras"),
        ("torch", "peer pytorch", "pip install torch"),
        ("jax", "peer keras-jax", "pip install jax"),
        ("onnxruntime", "bench networks", "pip install 'tinynet-engine[bench]'"),
        ("matplotlib", "the report's plots", "pip install matplotlib"),
        ("jinja2", "the report", "pip install jinja2"),
        ("pygments", "the report's listings", "pip install pygments"),
    ):
        for name in (package, f"{package}-cpu"):
            try:
                found = version(name)
                break
            except PackageNotFoundError:
                found = None
        table.add_row(package, found or "[red]missing[/]", purpose, "" if found else install)
    console.print(table)
    ready = True
    for name, reason in tinynet.devices().items():
        ready &= reason is None
        console.print(f"device {name}: {'ready' if reason is None else reason}")
    if tinynet.devices()["cpu"] is None:
        import numba

        @numba.njit(parallel=True)
        def launch():
            total = 0
            for i in numba.prange(8):
                total += i
            return total

        launch()
        console.print(f"numba: {numba.get_num_threads()} threads, threading layer {numba.threading_layer()}")
        from tinynet.kernels.cpu.target import TARGET

        console.print(f"vectors: {TARGET.name}, {TARGET.bits} bits, {TARGET.registers} registers (TINYNET_SIMD chooses others)")
        if numba.threading_layer() == "workqueue":
            console.print("  workqueue takes 100 us and more to start a parallel loop, which the variants `loops` are made of; install OpenMP (Debian: apt-get install libgomp1) for about 2 us")
        console.print("programs (`simd`, `winograd`, tinynet.compile) run on threads of their own, which start within 2 us")
    raise typer.Exit(0 if ready else 1)


def main() -> None:
    app()
