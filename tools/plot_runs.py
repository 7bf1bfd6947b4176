"""Draw values of training logs over the images seen: one SVG per value, one curve per run.

python tools/plot_runs.py --run plain=runs/a --run "with GAN=runs/b" --value loss/l1_pixel --output-dir charts
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command import run_command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, metavar="NAME=RUN_DIR", help="a run; once per curve")
    parser.add_argument(
        "--value", action="append", required=True, metavar="KEY", help="key of log.jsonl, as loss/total; once per file"
    )
    parser.add_argument(
        "--output-dir", required=True, type=Path, help="where the files go: loss/total -> loss_total.svg"
    )
    parser.add_argument("--prefix", default="", help="what the names of the files start with")
    parsed = parser.parse_args()
    named = [run.partition("=") for run in parsed.run]
    if not all(name and folder for name, _, folder in named):
        parser.error(f"--run: found {parsed.run}, expected NAME=RUN_DIR")
    parsed.runs = {name: Path(folder) for name, _, folder in named}
    if len(parsed.runs) < len(named):
        parser.error("--run: a name is given twice; the legend tells runs apart by their names")
    return parsed


def main() -> None:
    arguments = parse_arguments()
    from common.errors import DataError
    from common.files import write_text_atomically
    from evaluation.line_chart import COLOURS, chart_file
    from evaluation.training_log import compare, summarise_log
    from trainer.metrics import read_log

    if len(arguments.runs) > len(COLOURS):
        raise DataError(f"--run: found {len(arguments.runs)} runs, expected at most {len(COLOURS)} in one chart.")
    paths = {name: folder / "log.jsonl" for name, folder in arguments.runs.items()}
    logs = {name: summarise_log(read_log(path), str(path)) for name, path in paths.items()}
    charts = {key: chart_file(compare(logs, key), key, "thousand images") for key in arguments.value}
    for key, chart in charts.items():
        path = arguments.output_dir / f"{arguments.prefix}{key.replace('/', '_')}.svg"
        write_text_atomically(path, chart)
        print(path)


if __name__ == "__main__":
    run_command(main)
