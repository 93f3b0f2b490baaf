"""`mexma-evaluate SUBJECT DATA...`: how good are its vectors, and compared with what?

SUBJECT is a checkpoint directory, an artifact directory or the URL of a running service. DATA is
Parquet or TSV with columns lang, src, trg and, for word alignment, alignment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mexma.arguments import at_least
from mexma.artifact import POOLINGS
from mexma.errors import InputError, MexmaError
from mexma.installation import needing
from mexma.session import PROVIDERS

with needing("evaluate"):
    from evaluation.measure import DIRECTIONS, METRICS, Options
    from evaluation.pairs import Pairs, read_pairs
    from evaluation.report import Report, circumstances, describe_file
    from evaluation.subject import Subject, VectorTable, open_subject

JSON_FILE, MARKDOWN_FILE = "evaluation.json", "evaluation.md"


def parser() -> argparse.ArgumentParser:
    """The command line, without running it."""
    p = argparse.ArgumentParser(
        prog="mexma-evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "subject", help="checkpoint directory, artifact directory or URL (its key in MEXMA_API_KEY)"
    )
    p.add_argument("data", nargs="+", type=Path, help=".parquet or .tsv files")
    p.add_argument(
        "--metric", nargs="+", choices=METRICS, metavar="METRIC",
        help=f"of {', '.join(METRICS)} (default: all that the data and the subject allow)",
    )  # fmt: skip
    p.add_argument("--out", type=Path, help="folder for the tables and pictures")
    p.add_argument("--languages", nargs="+", metavar="LANG", help="as in the data (default: all)")
    p.add_argument("--limit", type=at_least(1), help="pairs per language, drawn with the seed")
    p.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    p.add_argument(
        "--k",
        type=at_least(1),
        default=Options.k,
        help="neighbours of the margin (default: %(default)s)",
    )
    p.add_argument(
        "--direction", choices=DIRECTIONS, default=Options.direction,
        help="of xsim: forward is src to trg (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--first-word", type=int, choices=(0, 1), default=0,
        help="number of a sentence's first word in gold alignments (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--device", choices=tuple(PROVIDERS), default="cpu", help="(default: %(default)s)"
    )
    p.add_argument(
        "--threads", type=at_least(0), default=0, help="0: one per core (default: %(default)s)"
    )
    p.add_argument("--pooling", choices=POOLINGS, help="of a checkpoint that does not say")
    p.add_argument("--prefix", help="of a checkpoint, instead of its own")
    p.add_argument(
        "--model",
        help="of a service that serves several: its name or fingerprint (default: its first)",
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 1 after one sentence on stderr, or 130."""
    a = parser().parse_args(arguments)
    try:
        if a.out is not None:
            a.out.mkdir(parents=True, exist_ok=True)  # what takes minutes comes after
        data = read_pairs(a.data, languages=a.languages, limit=a.limit, seed=a.seed)
        subject = open_subject(
            a.subject,
            device=a.device,
            threads=a.threads,
            pooling=a.pooling,
            prefix=a.prefix,
            model=a.model,
        )
        options = Options(seed=a.seed, k=a.k, direction=a.direction, first_word=a.first_word)
        metrics = chosen_metrics(a.metric, data, subject)
        report = evaluate(subject, data, metrics, options)
        report.data = [describe_file(file) for file in a.data]
        report.settings = {"limit": a.limit, "seed": a.seed}
        print(report.markdown())
        if a.out is not None:
            write(report, a.out)
    except MexmaError as error:
        print(f"mexma-evaluate: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = error.filename or a.out or a.subject
        print(f"mexma-evaluate: {where}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mexma-evaluate: stopped", file=sys.stderr)
        return 130
    return 0


def chosen_metrics(
    asked: Sequence[str] | None, data: dict[str, Pairs], subject: Subject
) -> list[str]:
    """What was asked for, in order of METRICS; by default all that data and subject allow.

    Raises InputError when alignment was asked for and there is no gold, or no token states.
    """
    gold = any(links is not None for pairs in data.values() for links in pairs.alignment)
    if asked is None:
        return [m for m in METRICS if m != "alignment" or (gold and subject.has_token_states)]
    if "alignment" in asked and not gold:
        raise InputError("alignment: expected a column alignment with gold links, found none")
    if "alignment" in asked and not subject.has_token_states:
        raise InputError(
            f"alignment: expected token states, but {subject.about['kind']} "
            f"{subject.about['name']} gives none (mexma-export --token-states adds them)"
        )
    return [m for m in METRICS if m in asked]


def evaluate(
    subject: Subject, data: dict[str, Pairs], metrics: Sequence[str], options: Options
) -> Report:
    """Measure. Raises MexmaError.

    data: language -> pairs, as `read_pairs` gives them. metrics: names from METRICS.
    """
    vectors = VectorTable(subject)
    if set(metrics) != {"alignment"}:
        vectors.load(text for pairs in data.values() for text in pairs.texts())
    tables = [METRICS[metric](data, subject, vectors, options) for metric in metrics]
    about = {**subject.about, "truncated": subject.truncated}
    return Report(about, [], {}, tables, circumstances())


def write(report: Report, folder: Path) -> None:
    """Write `evaluation.json`, `evaluation.md` and a picture for each table to `folder`."""
    from evaluation.pictures import draw  # noqa: PLC0415  matplotlib takes a second to import

    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_FILE).write_text(report.to_json(), encoding="utf-8")
    (folder / MARKDOWN_FILE).write_text(report.markdown(), encoding="utf-8")
    for table in report.tables:
        name = table.metric.replace("+", "p")
        title = f"{table.metric}: {report.subject['name']} ({report.subject['fingerprint']})"
        draw(table, folder / f"{name}.png", title=title)


if __name__ == "__main__":
    sys.exit(main())
