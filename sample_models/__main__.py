"""`python -m sample_models code_lm [--size small|base]`: train if needed, print the directory."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings

from rich.console import Console

from exporter.display import progress_for
from exporter.errors import EXIT_USAGE, ExporterError
from sample_models import SAMPLES


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sample_models", description=__doc__)
    parser.add_argument("name", choices=SAMPLES, help="which sample")
    parser.add_argument(
        "--size", choices=("small", "base"), help="of code_lm: about 2 or 10 million parameters"
    )
    options = parser.parse_args(arguments)
    if options.size and options.name != "code_lm":
        parser.error("--size is only for code_lm")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see exporter/exits.py
    warnings.filterwarnings("ignore")
    progress = progress_for(Console(stderr=True))
    sample = importlib.import_module(f"sample_models.{options.name}")
    try:
        directory = (
            sample.build(size=options.size or "small", progress=progress)
            if options.name == "code_lm"
            else sample.build(progress=progress)
        )
    except ExporterError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: stopped; run it again to go on.", file=sys.stderr)
        return EXIT_USAGE
    print(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
