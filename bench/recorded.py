"""Results of `tinynet bench networks --json` as a page: what was measured where and when.

    python -m tinynet.bench.recorded first.json second.json > docs/measured.md

Of one network and kind the last file's table counts. Times are medians of rounds' medians; nothing is computed here that is not in
the files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

from tinynet.compare.report import seconds

HEAD = """# What was measured

Written by `python -m tinynet.bench.recorded` from what `tinynet bench networks --json` said. Every contestant was held against float64
before it was timed, and ran in a process of its own, in turns with all others, on as many threads. "best of the others": of all
contestants beside tinynet; "target": of those that the target names (`bench/targets.py`), with its floor; [low, high] of a round. A number
in one line is a ratio of times on this machine in that hour, and no more.
"""


def page(results: list[dict]) -> str:
    tables = {(table["network"], table["kind"]): (table, result) for result in results for table in result["tables"]}
    parts, before = [HEAD], None
    for table, result in tables.values():
        if result is not before:
            parts.append(_machine(result))
            before = result
        parts.append(_table(table))
    return "\n".join(parts)


def _machine(result: dict) -> str:
    m, versions = result["machine"], dict.fromkeys(row["version"] for table in result["tables"] for row in table["rows"] if row["version"])
    return f"## {result['created'][:10]}, {m['cpu']}, {result['settings']['threads']} threads\n\n{m['os']}, Python {m['python']}; {'; '.join(versions)}. {result['settings']['rounds']} rounds.\n"


def _table(table: dict) -> str:
    sizes = [str(size) for size in table["sizes"]]
    lines = [f"### {table['title']}: {table['kind']}\n", f"Others used {table['busy_percent']:.0f} % of the machine when it began.\n"]
    lines += ["| images | " + " | ".join(sizes) + " | peak MiB |", "|---" * (len(sizes) + 2) + "|"]
    for row in table["rows"]:
        cells = [seconds(median(median(block) for block in cell["samples"])) if cell["samples"] else cell["status"] for cell in row["cells"].values()]
        lines.append(f"| {row['contestant']} | {' | '.join(cells)} | {'' if row['peak_mb'] is None else format(row['peak_mb'], ',.0f')} |")
    lines += ["", "| tinynet | images | ratio to the best of the others | target (floor) | ratio | |", "|---|---|---|---|---|---|"]
    for entry in table["ratios"]:
        ratio, target = f"**{entry['ratio']:.2f}** [{entry['low']:.2f}, {entry['high']:.2f}] {entry['other']}", entry["target"]
        met = "" if target is None else "met" if target["met"] else "floor met" if target["floor_met"] else "**not met**"
        beside = ["", "", ""] if target is None else [f"{target['ratio']:g} ({target['floor']:g})", f"{target['against']['ratio']:.2f} {target['against']['other']}", met]
        lines.append(f"| {entry['contestant']} | {entry['size']} | {ratio} | {' | '.join(beside)} |")
    for row in table["rows"]:
        for reason in dict.fromkeys(cell["reason"] for cell in row["cells"].values() if cell["reason"]):
            lines.append(f"\n{row['contestant']}: {' '.join(reason.split())}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page([json.loads(Path(file).read_text("utf-8")) for file in sys.argv[1:]]))
