"""`tinynet bench page`: what `--json` of `networks`, `kernels --compiled` and `cliffs` said, as one page of Markdown. docs/benchmarks.md
is one: every figure in it was measured by the command that stands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tinynet.bench import cliffs, networks, programs
from tinynet.bench.cliffs import CLIFF, text_of
from tinynet.bench.networks import GROWTH, KINDS
from tinynet.bench.peers import CONTESTANTS
from tinynet.bench.tables import QUIET, beyond
from tinynet.bench.zoo import NETWORKS
from tinynet.compare.report import seconds

HEAD = """# What the benchmarks found

Made by `tinynet bench page` from what the commands below wrote with `--json`; none of it is typed by hand. Times are medians of
rounds in which all contestants took turns, each in a process of its own, on equally many threads; each was right to within the bounds of
docs/oracle.md before it was timed. Machines differ, and a shared one differs from minute to minute: run the command on yours.
"""


def read(path: Path) -> dict:
    """A result. Raises ValueError for a file that holds none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); give files that `tinynet bench networks --json` and the like wrote") from None
    if not isinstance(found, dict) or found.get("schema") not in SECTIONS:
        schema = found.get("schema") if isinstance(found, dict) else None
        raise ValueError(f"{path} is no result that a page can show (schema {schema!r}); those are {', '.join(SECTIONS)}")
    return found


def page(results: Iterable[dict]) -> str:
    return "\n".join([HEAD, *(line for result in results for line in SECTIONS[result["schema"]](result))]) + "\n"


def _table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |"
    yield ""


def _where(result: dict) -> str:
    m = result["machine"]
    vectors = f" ({m['vectors']})" if m.get("vectors") else ""  # older results don't say
    return f"{result['created'][:10]}, {m['cpu']}{vectors}, {m['cores']} cores, {m['memory_gb']} GB, Python {m['python']}, numpy {m['numpy']}"


# --- networks -----------------------------------------------------------------------------------------------------------


def _networks(result: dict) -> Iterator[str]:
    settings = result["settings"]
    grows = tuple(settings["sizes"]) == GROWTH
    yield from (f"## {'How time grows with the batch' if grows else 'Whole networks'}", "")
    yield from (f"`{_command(settings, grows)}`, {settings['threads']} threads. {_where(result)}.", "")
    versions = {row["version"] for table in result["tables"] for row in table["rows"] if row["version"]}
    yield from ("; ".join(sorted(versions)) + ".", "")
    if not grows:
        yield from ("A ratio is the time of the best of the others, which is named, divided by tinynet's; in brackets the least and the largest of a round. Targets are bench/targets.py's, and so is the floor." + _peak(result), "")
    for table in result["tables"]:
        yield from (f"### {table['title']}, {table['kind']}: {'images a second' if grows else 'time of a call'}", "")
        if table["busy_percent"] > QUIET:
            yield from (f"Others used {table['busy_percent']:.0f} % of the machine when this table began.", "")
        yield from _times(table, (lambda s, size: f"{size / s:,.0f}") if grows else lambda s, size: seconds(s))
        if not grows and table["ratios"]:
            yield from _ratios(table)
        reasons = {f"{row['contestant']}, {size} image{'s' if int(size) > 1 else ''}: {cell['status']}: {' '.join(cell['reason'].split())}" for row in table["rows"] for size, cell in row["cells"].items() if cell["reason"]}
        yield from (f"* {reason}" for reason in sorted(reasons))
        yield ""


def _peak(result: dict) -> str:
    peak = result.get("peak_gflops")  # older results have none
    return f" The processor's peak is {peak:.0f} GFLOP/s, measured: where strict math could not reach a target even at that, it is said how far it would get." if peak else ""


def _command(settings: dict, grows: bool) -> str:
    """What measures the same, with the choices that are not the command's own."""
    chosen = [f"--{name} {','.join(settings[name])}" for name, every in (("networks", NETWORKS), ("kinds", KINDS), ("contestants", CONTESTANTS)) if set(settings[name]) != set(every)]
    sizes = [] if grows or not settings["sizes"] else [f"--batch-sizes {','.join(map(str, settings['sizes']))}"]
    return " ".join(["tinynet bench networks", *["--growth"] * grows, *chosen, *sizes, f"--rounds {settings['rounds']}"])


def _times(table: dict, text: Callable[[float, int], str]) -> Iterator[str]:
    sizes = [str(size) for size in table["sizes"]]
    rows = []
    for row in table["rows"]:
        cells = [row["cells"][size] for size in sizes]
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}"
        rows.append([row["contestant"], *(cell["status"] if cell["median_s"] is None else text(cell["median_s"], int(size)) for cell, size in zip(cells, sizes)), peak])
    return _table(["images", *sizes, "peak MiB"], rows)


def _ratios(table: dict) -> Iterator[str]:
    cells = {(entry["contestant"], entry["size"]): _ratio(entry) for entry in table["ratios"]}
    names = dict.fromkeys(name for name, _ in cells)
    return _table(["ratio", *map(str, table["sizes"])], [[name, *(cells.get((name, size), "") for size in table["sizes"])] for name in names])


def _ratio(entry: dict) -> str:
    """To those that the target names, where there is one: it may be held against fewer contestants."""
    target = entry["target"]
    found = target["against"] if target else entry
    text = f"**{found['ratio']:.2f}** ({found['low']:.2f} to {found['high']:.2f}) {found['other']}"
    if target is None:
        return text
    return f"{text}; target {target['ratio']:g}: {'met' if target['met'] else 'not met' if target['floor_met'] else 'not met, nor the floor of ' + format(target['floor'], '.3g')}{beyond(target)}"


# --- programs -----------------------------------------------------------------------------------------------------------


def _programs(result: dict) -> Iterator[str]:
    yield from ("## Every step of the compiled programs", "")
    reads = ", ".join(f"{float(mib):g} MiB at {rate:.0f} GB/s" for mib, rate in result["bandwidth_gb_s"].items())
    chosen = [f"--{option} {','.join(dict.fromkeys(str(program[key]) for program in result['programs']))}" for option, key in (("networks", "network"), ("batch-sizes", "images"), ("runs", "run"), ("maths", "math"))]
    yield from (f"`tinynet bench kernels --compiled {' '.join(chosen)}`. {_where(result)}. At most {result['peak_gflops']:.0f} GFLOP/s on {result['threads']} threads, measured; reading {reads}.", "")
    yield "In place: what the step takes in the program, where its neighbours have their part of caches and memory. By itself: alone, again and again;"
    yield from ("what it reaches then is of what bounds it, the peak or the memory that it fits into. * has fewer multiplications than the definition, which are counted.", "")
    for program in result["programs"]:
        name = f"{program['network']}, {program['images']} image{'s' if program['images'] > 1 else ''}, {program['run']}, {program['math']}"
        if program["seconds"] is None:
            yield from (f"### {name}: wrong: {'; '.join(program['wrong'])}", "")
            continue
        yield from (f"### {name}: {seconds(program['seconds'])}, {program['waited'] / program['stamped']:.0%} of it waiting", "")
        rows = []
        for step in program["steps"]:
            rate = "" if step["gflops"] is None else f"{step['gflops']:,.0f}{'*' if step['fewer_operations'] else ''}"
            rows.append([f"{step['step']}, {step['on']}: {step['kernel']}", f"{step['share_of_time']:.0%}", seconds(step["in_place"]), seconds(step["seconds"]), rate, f"{step['share_of_bound']:.0%} of {step['bound']}"])
        yield from _table(["step", "of all", "in place", "by itself", "GFLOP/s", "reaches"], rows)


# --- cliffs -------------------------------------------------------------------------------------------------------------


def _cliffs(result: dict) -> Iterator[str]:
    yield from ("## Cliffs", "")
    yield from (f"`tinynet bench cliffs`. {_where(result)}. Of neighbouring shapes, how many times as long the slower one takes as the roofline and the faster one say it should; above {CLIFF:g} it is a cliff.", "")
    rows = []
    for kernel in result["kernels"]:
        for place, pair in enumerate(kernel["worst"]):
            slow, fast = pair["slow"], pair["fast"]
            name = f"{kernel['kernel']}, of {kernel['shapes']:,} shapes" if place == 0 else ""
            step = f"{pair['dimension']} {fast['shape'][pair['dimension']]} to {slow['shape'][pair['dimension']]}: {text_of(slow['shape'], pair['dimension'])}"
            rows.append([step, name, f"{seconds(fast['seconds'])} to {seconds(slow['seconds'])}", f"{pair['times_as_long']:.1f}"])
        rows += [[f"{text_of(point['shape'])}", kernel["kernel"], point["verdict"], ""] for point in kernel["wrong"]]
    yield from _table(["step", "kernel", "time", "times as long"], rows)


SECTIONS: dict[str, Callable[[dict], Iterator[str]]] = {networks.SCHEMA: _networks, programs.SCHEMA: _programs, cliffs.SCHEMA: _cliffs}
