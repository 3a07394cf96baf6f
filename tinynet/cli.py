"""The command line: `tinynet compare`, `tinynet train`, `tinynet bench`, `tinynet explain`, `tinynet doctor`. Exit code 0 only if every check passed."""

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

from tinynet.bench.commands import bench
from tinynet.options import choice, sizes_of, terminal

app = typer.Typer(help="A small autograd engine, held against TensorFlow, Keras and PyTorch.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(bench, name="bench")


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
        networks=choice(networks, list(table.NETWORKS), "network"),
        peers=choice(peers, list(PEERS), "peer") if peers or not quick else main_peers,
        modes=choice(modes, known_modes, "mode") if modes else ("eager", "graph") if quick else (),
        batch_sizes=sizes_of("1,32" if quick and batch_sizes == "1,32,128,512" else batch_sizes),
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

    (name,) = choice(network, list(networks.NETWORKS), "network", only_one=True)
    (device,) = choice(device, list(tinynet.devices()), "device", only_one=True)
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


@app.command()
def explain(
    kernel: Annotated[str, typer.Argument(help="a kernel's name, like matmul; may be left out with --occupancy")] = "",
    device: Annotated[str, typer.Option(help="where its variants are counted; the emulator alone can")] = "cuda-emulator",
    occupancy: Annotated[bool, typer.Option("--occupancy", help="compile all CUDA kernels for real GPUs instead, and print the table of docs/cuda.md")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the counts as JSON on standard output")] = False,
) -> None:
    """What a kernel computes, and what each CUDA variant asks of a GPU's memory: counted without one, so structure and not time."""
    if occupancy:
        from tinynet.kernels.cuda import occupancy as compiler

        if why := compiler.reason():
            raise typer.BadParameter(why)
        sys.stdout.write(compiler.table())
        return
    from tinynet import explain as counting

    choice(device, [counting.DEVICE], "device that counts", only_one=True)
    try:
        found = counting.count(kernel)
    except (ValueError, RuntimeError) as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        json.dump(counting.as_json(kernel, found), sys.stdout)
        return
    from tinynet.kernels.contract import CONTRACTS

    arrays, parameters = counting.sample(kernel)
    shapes = ", ".join(f"{' x '.join(map(str, a.shape))} {a.dtype}" for a in arrays)
    console = Console()
    console.print(escape(f"{kernel}: {CONTRACTS[kernel].definition}\n\non {shapes}{' ' * bool(parameters)}{parameters or ''}; simplest first"))
    table = Table("", *(c.variant for c in found))
    for what, count in (
        ("blocks x threads", lambda c: f"{c.blocks} x {c.threads}"),
        ("barriers a block", lambda c: f"{c.barriers:,}"),
        ("global requests", lambda c: f"{c.requests:,}"),
        ("  sectors a request", lambda c: f"{c.sectors / c.requests:.1f}"),
        ("  of them asked for", lambda c: f"{c.least_sectors / c.sectors:.0%}"),
        ("  KiB moved", lambda c: f"{c.bytes_moved / 1024:,.0f}"),
        ("  x the least", lambda c: f"{c.bytes_moved / c.least_bytes:.1f}"),
        ("  FLOP a byte", lambda c: f"{c.flops_per_byte:.2f}"),
        ("shared requests", lambda c: f"{c.shared_requests:,}"),
        ("  passes", lambda c: f"{c.passes:,}"),
        ("  by conflicts", lambda c: f"{c.passes - c.least_passes:,}"),
    ):
        table.add_row(what, *map(count, found))
    console.print(table)
    console.print(
        "Requests are of warps. Global memory moves in sectors of 32 bytes: where requests are coalesced, all of what moves was asked for. The least: the "
        "contract's, every input and output once. Shared memory answers in one pass (two or four where lanes ask for 8 or 16 bytes), unless lanes want "
        "different words of one bank: a conflict. "
        "These counts are structure, not time: caches are left out, and nothing here ran on a GPU."
    )


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
        ready &= reason is None or name.startswith("cuda")  # most machines have no GPU: nothing is wrong with them
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

        console.print(f"vectors: {TARGET}, {TARGET.registers} registers (TINYNET_SIMD chooses others)")
        if numba.threading_layer() == "workqueue":
            console.print("  workqueue takes 100 us and more to start a parallel loop, which the variants `loops` are made of; install OpenMP (Debian: apt-get install libgomp1) for about 2 us")
        console.print("programs (`simd`, `winograd`, tinynet.compile) run on threads of their own, which start within 2 us")
    from tinynet.kernels.cuda import occupancy

    for where, device in (("a GPU", "cuda"), ("the emulator", "cuda-emulator")):
        console.print(f"CUDA kernels on {where}: {'make test verifies them here' if tinynet.devices()[device] is None else f'can not be verified here: see device {device}'}")
    without = occupancy.reason()
    console.print(f"CUDA kernels, compiled: {without or 'NVRTC %d.%d takes them for ' % occupancy.version() + ', '.join(f'sm_{gpu}' for gpu in occupancy.gpus())}")
    raise typer.Exit(0 if ready else 1)


def main() -> None:
    app()
