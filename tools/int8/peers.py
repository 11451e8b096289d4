"""One comparison of quantisers on the two graphs that `export` made: same FP32 files, same calibration feeds.

    python tools/int8/peers.py export/out/NAME --data train.jsonl --tiles 32 --held-out 16 \
        --modelopt-python /tmp/modelopt/bin/python --out peers.json

with_modelopt.py says how to make that environment; without the option its rows are missing. The first images of the
manifest give the ranges, the next ones are compared on, one question each. Prints a table, writes JSON. For the log.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from peer_files import Source, makers, modelopt_version, source
from with_modelopt import Feeds

from fusar_edge.calib.compare import Reference
from fusar_edge.calib.graphs import GraphFolder, open_graphs
from fusar_edge.calib.products.fusion import fused_linears
from fusar_edge.calib.tiles.samples import SampleReader
from fusar_edge.data.triplets import Triplet, read_triplets, triplets_by_image
from fusar_edge.engines.compile_gate import compiled
from fusar_edge.engines.profiles import decoder_profiles, vision_profiles
from fusar_edge.errors import EdgeError
from fusar_edge.runtime.bundle import DECODER, VISION
from fusar_edge.runtime.ort import open_ort

GRAPHS = (VISION, DECODER)
THREADS = (1, 2)
FP32 = "FP32"
KEEP = ("vision.patch_embed", "decoder.layers.*.mlp.down_proj")
"""What the recipe w8a8-percentile keeps."""
Row = dict[str, Any]


def one_question_each(path: Path, count: int) -> list[Triplet]:
    """Of the first `count` images; the questions take turns."""
    groups = list(triplets_by_image(read_triplets(path)).values())
    if len(groups) < count:
        sys.exit(f"{path}: {len(groups)} images, but --tiles and --held-out ask for {count}")
    return [group[turn % len(group)] for turn, group in enumerate(groups[:count])]


def feeds_of(graphs: GraphFolder, reader: SampleReader, samples: list[Triplet]) -> dict[str, list[Feeds]]:
    fp32 = open_ort(graphs.bundle())
    steps = (feed for sample in samples for feed in reader.decoder_feeds(fp32, sample))
    return {
        VISION: [feed for sample in samples for feed in reader.vision_feeds(sample)],
        DECODER: [{name: value.copy() for name, value in feed.items()} for feed in steps],
    }


def made(
    sources: dict[str, Source], graphs: GraphFolder, work: Path, given: argparse.Namespace
) -> tuple[list[Row], dict[str, str]]:
    """A row for FP32 and for each quantiser that wrote both graphs, to a folder of `work`; and why others did not."""
    rows: list[Row] = [{"name": FP32, "folder": graphs.path, "seconds": dict.fromkeys(GRAPHS)}]
    failed = {}
    for number, (name, make) in enumerate(makers(given.percentile, given.modelopt_python).items()):
        told(f"quantising: {name}")
        folder = work / str(number)
        folder.mkdir()
        try:
            seconds = {graph: make(sources[graph], folder / graph) for graph in GRAPHS}
        except Exception as problem:  # a peer that fails is a result
            failed[name] = f"{type(problem).__name__}: {problem}"
            told(f"FAILED: {failed[name]}")
        else:
            rows.append({"name": name, "folder": folder, "seconds": seconds})
    return rows, failed


def built(path: Path, graphs: GraphFolder) -> str:
    """What TensorRT-RTX makes of the file: nodes whose product reads INT8, or why it refuses."""
    profiles = (vision_profiles if path.name == VISION else decoder_profiles)(graphs.settings)
    try:
        return f"yes, {len(compiled(path, profiles).kernels.int8)} INT8"
    except EdgeError as problem:
        return f"no: {str(problem).partition('refuses it: ')[2] or problem}"


def latencies(rows: list[Row], feeds: dict[str, Feeds], rounds: int) -> dict[tuple[str, str, int], list[float]]:
    """(quantiser, graph, threads) -> ms of each round; in a round every file runs once, in an order that turns."""
    sessions = {
        (row["name"], graph, threads): _session(row["folder"] / graph, threads)
        for row in rows
        for graph in GRAPHS
        for threads in THREADS
    }
    found: dict[tuple[str, str, int], list[float]] = {key: [] for key in sessions}
    keys = list(sessions)
    for turn in range(rounds + 3):
        for key in [*keys[turn % len(keys) :], *keys[: turn % len(keys)]]:
            start = time.perf_counter()
            sessions[key].run(None, feeds[key[1]])
            if turn >= 3:  # warm-up
                found[key].append(1e3 * (time.perf_counter() - start))
    return found


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as fusar_edge.runtime.ort does
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def decode_step(feeds: list[Feeds]) -> Feeds:
    """One token, on the longest cache."""
    return max((f for f in feeds if f["input_ids"].shape[1] == 1), key=lambda f: len(f["past"]))


def filled(row: Row, reference: Reference, graphs: GraphFolder, sources: dict[str, Source], trt: bool) -> Row:
    """All but the latencies."""
    told(f"comparing: {row['name']}")
    figures = {} if row["name"] == FP32 else reference.compared(open_ort(graphs.bundle(row["folder"])))
    paths = {graph: row["folder"] / graph for graph in GRAPHS}
    return row | {
        "figures": figures,
        "int8_kernels": {graph: fused_linears(path) for graph, path in paths.items()},
        "asked": {graph: len(given.layers) for graph, given in sources.items()},
        "mib": {
            graph: sum(p.stat().st_size for p in path.parent.glob(f"{graph}*")) / 2**20 for graph, path in paths.items()
        },
        "tensorrt_rtx": {graph: built(path, graphs) if trt else "not tried" for graph, path in paths.items()},
    }


def timed(row: Row, times: dict[tuple[str, str, int], list[float]]) -> Row:
    """`ms`: medians. `speed`: median over the rounds of FP32's time over its own in the same round."""
    name = row["name"]
    speed = {
        graph: {t: float(np.median(np.divide(times[FP32, graph, t], times[name, graph, t]))) for t in THREADS}
        for graph in GRAPHS
    }
    ms = {graph: {t: float(np.median(times[name, graph, t])) for t in THREADS} for graph in GRAPHS}
    return row | {"ms": ms, "speed": speed}


def table(rows: list[Row]) -> str:
    head = "quantiser | 1 - cosine | norm ratio | greedy same | INT8 kernels | MiB | s | ms, 1 thread | ms, 2 threads"
    lines = []
    for graph, kind in ((VISION, "vision"), (DECODER, "logits")):
        lines += [f"\n**{graph}**\n", f"| {head} | TensorRT-RTX |", "|---" * 10 + "|"]
        for row in rows:
            figures, seconds = row["figures"], row["seconds"][graph]
            exact = (
                [f"{1 - figures[f'{kind}_cosine']:.2e}", f"{figures[f'{kind}_norm_ratio']:.4f}"]
                if figures
                else ["", ""]
            )
            same = f"{100 * figures['token_agreement']:.1f} %" if figures and graph == DECODER else ""
            ms = [f"{row['ms'][graph][t]:.2f} ({row['speed'][graph][t]:.2f} x)" for t in THREADS]
            took = "" if seconds is None else f"{seconds:.1f}"
            kernels = f"{row['int8_kernels'][graph]} of {row['asked'][graph]}"
            cells = [
                row["name"],
                *exact,
                same,
                kernels,
                f"{row['mib'][graph]:.1f}",
                took,
                *ms,
                row["tensorrt_rtx"][graph],
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path, help="folder that `export` made")
    parser.add_argument("--data", type=Path, required=True, help="triplet manifest")
    parser.add_argument("--tiles", type=int, default=32, help="images that give the ranges")
    parser.add_argument("--held-out", type=int, default=16, help="images that are compared on")
    parser.add_argument("--percentile", type=float, default=99.99)
    parser.add_argument("--keep", nargs="*", default=KEEP, help="patterns of linears that stay FP32 everywhere")
    parser.add_argument("--rounds", type=int, default=50, help="of timing")
    parser.add_argument("--no-tensorrt", action="store_true", help="do not build with TensorRT-RTX")
    parser.add_argument("--modelopt-python", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    given = parser.parse_args()

    packages = {"onnxruntime": onnxruntime.__version__, "modelopt": modelopt_version(given.modelopt_python)}
    graphs = open_graphs(given.onnx, stages=("export",))
    reader = SampleReader(graphs)
    chosen = one_question_each(given.data, given.tiles + given.held_out)
    samples, held_out = chosen[: given.tiles], chosen[given.tiles :]
    feeds = feeds_of(graphs, reader, samples)
    anchored = any(sample.aef for sample in samples)
    sources = {graph: source(graphs.path / graph, feeds[graph], given.keep, anchored) for graph in GRAPHS}
    reference = Reference(open_ort(graphs.bundle()), reader, held_out)
    with tempfile.TemporaryDirectory(prefix="fusar-edge-peers-") as work:
        rows, failed = made(sources, graphs, Path(work), given)
        rows = [filled(row, reference, graphs, sources, not given.no_tensorrt) for row in rows]
        told("timing")
        times = latencies(rows, {VISION: feeds[VISION][0], DECODER: decode_step(feeds[DECODER])}, given.rounds)
        rows = [timed(row, times) for row in rows]
    print(table(rows))
    result = {
        "settings": {"tiles": given.tiles, "held_out": given.held_out, "keep": list(given.keep)},
        "packages": packages,
        "rows": [{key: value for key, value in row.items() if key != "folder"} for row in rows],
        "failed": failed,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
