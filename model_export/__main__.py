"""`mexma-export SOURCE OUT`: a checkpoint in, a servable artifact out, or a reason why not."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mexma.arguments import at_least
from mexma.artifact import POOLINGS, PRECISIONS, check_replaceable, no_model_name
from mexma.errors import ArtifactError, MexmaError
from mexma.installation import needing

with needing("export"):
    from model_export.export import Exported, export
    from model_export.parity import SENTENCES_PER_LANGUAGE
    from training.checkpoint import load_checkpoint

PRECISION_HELP = (
    "fp32: the original's vectors; fp16: half the size, for GPUs; int8: fastest on CPUs with "
    "8-bit dot products, vectors move a little; compact: smallest (4-bit token table), fp32 "
    "arithmetic (default: %(default)s)"
)


def parser() -> argparse.ArgumentParser:
    """The command line, without running it."""
    p = argparse.ArgumentParser(prog="mexma-export", description=__doc__)
    p.add_argument("source", help="checkpoint directory, Hugging Face directory or hub name")
    p.add_argument("out", type=Path, help="artifact directory to write or replace")
    p.add_argument("--precision", choices=PRECISIONS, default="fp32", help=PRECISION_HELP)
    p.add_argument("--pooling", choices=POOLINGS, help="only where the source does not say")
    p.add_argument("--prefix", help="put before every text, e.g. 'query: ' (default: the source's)")
    p.add_argument(
        "--max-tokens", type=at_least(1), metavar="N", help="longest input (default: the source's)"
    )
    p.add_argument(
        "--name",
        help="what the service calls the model (default: the source's, with the precision)",
    )
    p.add_argument("--licence", help="of the weights, noted in the manifest")
    p.add_argument(
        "--token-states", action="store_true", help="a second output: one vector a token"
    )
    p.add_argument(
        "--sentences-per-language",
        type=at_least(1),
        metavar="N",
        default=SENTENCES_PER_LANGUAGE,
        help="how much of the sample the parity gate reads (default: %(default)s, all)",
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 1 after one sentence on stderr, or 130."""
    a = parser().parse_args(arguments)
    say = functools.partial(print, file=sys.stderr, flush=True)
    try:
        check_place(a.out)  # what takes minutes comes after
        check_replaceable(a.out, Path(a.source))
        if a.name is not None and (why := no_model_name(a.name)):
            raise ArtifactError(f"--name: {why}")
        checkpoint = load_checkpoint(
            a.source, pooling=a.pooling, prefix=a.prefix, max_tokens=a.max_tokens
        )
        exported = export(
            checkpoint,
            a.out,
            precision=a.precision,
            name=a.name,
            licence=a.licence,
            token_states=a.token_states,
            sentences_per_language=a.sentences_per_language,
            say=say,
        )
    except MexmaError as error:
        print(f"mexma-export: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"mexma-export: {error.filename or a.out}: {error.strerror or error}", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print(f"mexma-export: stopped; {a.out} is whole or as it was", file=sys.stderr)
        return 130
    print(summary(exported))
    return 0


def check_place(out: Path) -> None:
    """Refuse where no directory `out` can be made. Raises ArtifactError."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ArtifactError(f"{out}: expected a place for a directory, {there} is a file")
    place = out.absolute().parent if there == out else there
    if not os.access(place, os.W_OK | os.X_OK):
        raise ArtifactError(f"{out}: expected a place for a directory, {place} is not writable")


def summary(exported: Exported) -> str:
    """What a person wants to know after an export."""
    m, p = exported.manifest, exported.manifest.parity
    return (
        f"{exported.path}: {m.name}, {m.precision}, {m.dim} dimensions, {m.max_tokens} tokens, "
        f"{exported.bytes / 1e6:.1f} MB, fingerprint {m.fingerprint}\n"
        f"against torch fp32, {p['sequences']} sequences: cosine min {p['cosine_min']:.7f}, "
        f"mean {p['cosine_mean']:.7f}, max abs {p['max_abs']:.2e}\n"
        f"alone against batched: cosine min {p['alone_cosine_min']:.7f}\n"
        f"same first neighbour {p['top1_agreement'] * 100:.2f} %, "
        f"retrieval accuracy lost {p['retrieval_points_lost']:.3f} points"
    )


if __name__ == "__main__":
    sys.exit(main())
