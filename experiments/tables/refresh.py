"""Write all committed tables again from their JSON, and copy them into the documents: ``tables/refresh.py``.

Each script that measures something writes its table beside its JSON. Run this script after a change to the layout of a
table, or to update the tables that compare several checkpoints. In a document a table stands between the two lines
``<!-- begin PATH.md -->`` and ``<!-- end PATH.md -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.bench import bench, bench_gpu, bench_solve, survive
from experiments.scaling import summary
from experiments.studies import amortization, filtering, gap, selection, sizes
from experiments.tables import headline, paper_table, readme_table
from experiments.tables.headline import CHECKPOINTS, ROOT, SAMPLING_CHECKPOINTS, SOLVING_CHECKPOINTS
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import read_json, write_bytes

TABLES = ROOT / "experiments" / "tables"
STUDIES = ROOT / "experiments" / "studies"
BENCH = ROOT / "experiments" / "bench"
DOCUMENTS = (ROOT / "README.md", STUDIES / "README.md")  # they hold copies; pages of docs/ include the files
TABLE_MARKERS = re.compile(r"(<!-- begin (\S+\.md) -->)\n.*?(<!-- end \2 -->)", re.DOTALL)
GPUS = 8  # number of processes in the table about the exchange of gradients

Markdown = Callable[[dict[str, Any]], str]
FROM_ONE_JSON: dict[Path, Markdown] = {
    BENCH / "bench.json": bench.markdown,
    BENCH / "bench_gpu.json": bench_gpu.markdown,
    BENCH / "bench_solve.json": bench_solve.markdown,
    BENCH / "survive.json": survive.markdown,
    STUDIES / "amortization.json": amortization.markdown,
    STUDIES / "filtering.json": filtering.markdown,
    STUDIES / "selection.json": selection.markdown,
    **dict.fromkeys(sorted(STUDIES.glob("gap_*.json")), gap.markdown),
    **dict.fromkeys(sorted(STUDIES.glob("sizes_*.json")), sizes.markdown),
    **dict.fromkeys(sorted(TABLES.glob("table*.json")), paper_table.markdown),
}


def render_tables() -> dict[Path, str]:
    """Return the text of every committed table. The keys are the paths of the tables."""
    texts = {path.with_suffix(".md"): markdown(read_json(path)) for path, markdown in FROM_ONE_JSON.items()}
    texts[BENCH / "bench_gpu_shared.md"] = bench_gpu.exchange_table(read_json(BENCH / "bench_gpu.json"), GPUS)
    scaling = [read_json(CHECKPOINTS / f"{name}.scaling.json") for name in SOLVING_CHECKPOINTS]
    diagnoses = {
        name: read_json(CHECKPOINTS / f"{name}.diagnosis.json")
        for name in (*SOLVING_CHECKPOINTS, *SAMPLING_CHECKPOINTS)
    }
    over_checkpoints = {
        "summary": readme_table.summary_table(),
        "lookup": headline.lookup_table(),
        "seeds": headline.seeds_table(),
        "main_job": headline.main_job_table(),
        "generated": headline.generated_table(read_json(STUDIES / "mnist_deterministic.json")),
        "diagnoses": headline.diagnoses_table(diagnoses),
        "selection": summary.selection_table(scaling, read_json(STUDIES / "no_noise.json")),
        "compute": summary.compute_table(scaling),
        "spreads": summary.scheme_table(scaling),
    }
    texts |= {TABLES / f"{name}.md": text for name, text in over_checkpoints.items()}
    return {path: f"{text}\n" for path, text in texts.items()}


def fill(document: str, root: Path = ROOT) -> str:
    """Replace the text between the markers of each table by the contents of the table's file under ``root``.

    Raises:
        FileNotFoundError: a marker names a file that does not exist.
    """

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{(root / match[2]).read_text()}{match[3]}"

    return TABLE_MARKERS.sub(table, document)


def main(argv: list[str]) -> int:
    Parser("refresh.py", description=__doc__).parse_args(argv)
    for path, text in render_tables().items():
        write_bytes(path, text.encode())
    for path in DOCUMENTS:
        write_bytes(path, fill(path.read_text()).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
