"""From pairs and a subject to one table per metric.

Each function is one metric over all languages. They ask the table of vectors for the texts they
need; the lexical baseline goes through the very same code, with its own vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tqdm import tqdm

from evaluation import alignment, bucc, geometry, retrieval, tatoeba, xsimpp
from evaluation.corruption import KINDS, NOTE
from evaluation.lexical import DESCRIPTION, lexical_vectors
from evaluation.pairs import Pairs
from evaluation.report import Column, Table
from evaluation.subject import Subject, VectorTable
from mexma import neighbours
from mexma.alignment import DISCOUNT, ITERATIONS, METHODS, similarities
from mexma.errors import InputError

DIRECTIONS = ("forward", "backward", "both")
LEXICAL = f"Lexical: {DESCRIPTION}."


@dataclass(frozen=True)
class Options:
    """direction: of xsim. k: neighbours of the margin. per_kind: corruptions of a kind for each
    sentence. first_word: the number of a sentence's first word in gold alignments."""

    seed: int = 0
    k: int = neighbours.K
    direction: str = "forward"
    per_kind: int = 4
    first_word: int = 0


Data = Mapping[str, Pairs]
Metric = Callable[[Data, Subject, VectorTable, Options], Table]


def _each(data: Data, metric: str) -> Iterator[tuple[str, Pairs]]:
    for lang, pairs in tqdm(data.items(), desc=metric, unit="language", disable=None, leave=False):
        if len(pairs):
            yield lang, pairs


def measure_xsim(data: Data, subject: Subject, vectors: VectorTable, options: Options) -> Table:
    """xsim of every language, by margin and cosine, in the directions asked for."""
    directions = DIRECTIONS[:2] if options.direction == "both" else (options.direction,)
    columns = [Column("pairs", digits=0)]
    for direction in directions:
        arrow = "src→trg" if direction == "forward" else "trg→src"
        columns += [
            Column(f"{arrow} margin", "lower", 2),
            Column(f"{arrow} cosine", "lower", 2),
            Column(f"{arrow} lexical", "lower", 2, baseline=True),
        ]
    table = Table(
        "xsim",
        f"Error in per cent; ratio margin with k = {options.k} over the whole pool, and plain "
        "cosine beside it. The pool is the language's own pairs; a hit is decided by text, so "
        f"duplicates are no errors. {LEXICAL}",
        columns,
    )
    for lang, pairs in _each(data, "xsim"):
        row: list[float | None] = [len(pairs)]
        words = lexical_vectors(pairs.source, pairs.target)
        for direction in directions:
            queries, pool = pairs.source, pairs.target
            lexical = words
            if direction == "backward":
                queries, pool, lexical = pool, queries, words[::-1]
            errors = retrieval.xsim(vectors.of(queries), vectors.of(pool), pool, pool, k=options.k)
            plain = retrieval.xsim(lexical[0], lexical[1], pool, pool, k=options.k)
            row += [errors.margin_percent, errors.cosine_percent, plain.cosine_percent]
        table.rows[lang] = row
    table.add_mean("mean")
    return table


def measure_xsimpp(data: Data, subject: Subject, vectors: VectorTable, options: Options) -> Table:
    """xsim++ of every language against its own English sentences and their corruptions."""
    table = Table(
        "xsim++",
        f"{NOTE} Error in per cent, source to English, which must be the target side; ratio margin "
        f"with k = {options.k} over the whole pool, and plain cosine beside it. The kinds say by "
        "which corruption of the own translation a query was misled (margin); other is any other "
        f"sentence. {LEXICAL}",
        [
            Column("pairs", digits=0),
            Column("copies", digits=0),
            Column("margin", "lower", 2),
            Column("cosine", "lower", 2),
            *(Column(kind, "lower", 2) for kind in KINDS),
            Column("other", "lower", 2),
            Column("lexical", "lower", 2, baseline=True),
        ],
    )
    pools = {
        lang: xsimpp.hard_pool(pairs.target, seed=options.seed, per_kind=options.per_kind)
        for lang, pairs in _each(data, "corruptions")
    }
    vectors.load(text for pool in pools.values() for text in pool.texts)
    for lang, pairs in _each(data, "xsim++"):
        pool = pools[lang]
        errors = xsimpp.xsimpp(vectors.of(pairs.source), vectors.of(pool.texts), pool, k=options.k)
        words = lexical_vectors(pairs.source, pool.texts)
        _, found = neighbours.best_by_cosine(words[0], words[1])
        plain = retrieval.percent(retrieval.is_wrong(found, pairs.target, pool.texts))
        table.rows[lang] = [
            len(pairs),
            errors.copies,
            errors.margin_percent,
            errors.cosine_percent,
            *(errors.by_kind[kind] for kind in KINDS),
            errors.other_percent,
            plain,
        ]
    table.add_mean("mean")
    return table


def measure_tatoeba(data: Data, subject: Subject, vectors: VectorTable, options: Options) -> Table:
    """Top-1 accuracy by cosine in both directions, and the mean over XTREME's 36 languages."""
    table = Table(
        "tatoeba",
        "Accuracy in per cent, nearest neighbour by plain cosine among the language's own pairs; a "
        f"hit is decided by text. {LEXICAL}",
        [
            Column("pairs", digits=0),
            Column("src→trg", "higher"),
            Column("trg→src", "higher"),
            Column("src→trg lexical", "higher", baseline=True),
            Column("trg→src lexical", "higher", baseline=True),
        ],
    )
    for lang, pairs in _each(data, "tatoeba"):
        x, y = pairs.source, pairs.target
        right = tatoeba.accuracy(vectors.of(x), vectors.of(y), x, y)
        words = lexical_vectors(x, y)
        plain = tatoeba.accuracy(words[0], words[1], x, y)
        table.rows[lang] = [
            right.pairs,
            right.forward_percent,
            right.backward_percent,
            plain.forward_percent,
            plain.backward_percent,
        ]
    table.add_mean(f"mean of {len(table.rows)}")
    if set(table.rows) >= set(tatoeba.XTREME_36):
        table.add_mean("XTREME-36", tatoeba.XTREME_36)
    return table


def measure_bucc(data: Data, subject: Subject, vectors: VectorTable, options: Options) -> Table:
    """Mining with a tuned threshold, per language."""
    made = {lang: bucc.collections(pairs, seed=options.seed) for lang, pairs in _each(data, "bucc")}
    hidden = all(c.hidden for c in made.values())
    haystack = (
        f"the collections are made from the pairs: {100 * bucc.GOLD_SHARE:.0f} % stay gold, the "
        "others lose one side and are the haystack, so this is not the published BUCC set"
        if hidden
        else "sentences without a translation in the data are the haystack"
    )
    table = Table(
        "bucc",
        "Bitext mining, the true variant: best matches by ratio margin "
        f"(k = {options.k}) in both directions over the whole collections, each sentence once; the "
        f"threshold is tuned for F1 on {100 * bucc.TRAINING_SHARE:.0f} % of the source sentences, "
        f"the numbers (per cent) are from the rest; {haystack}. {LEXICAL}",
        [
            Column("gold", digits=0),
            Column("source", digits=0),
            Column("target", digits=0),
            Column("precision", "higher"),
            Column("recall", "higher"),
            Column("F1", "higher"),
            Column("threshold", digits=3),
            Column("F1 lexical", "higher", baseline=True),
        ],
    )
    for lang, collection in made.items():
        c = collection
        try:
            mined = bucc.bucc(
                vectors.of(c.source), vectors.of(c.target), c.gold, k=options.k, seed=options.seed
            )
            words = lexical_vectors(c.source, c.target)
            plain = bucc.bucc(words[0], words[1], c.gold, seed=options.seed, score="cosine")
        except InputError as error:
            table.skipped[lang] = str(error)
            continue
        table.rows[lang] = [
            mined.gold_pairs,
            len(c.source),
            len(c.target),
            mined.precision_percent,
            mined.recall_percent,
            mined.f1_percent,
            mined.threshold if mined.threshold < float("inf") else None,
            plain.f1_percent,
        ]
    table.add_mean("mean")
    return table


def measure_alignment(
    data: Data, subject: Subject, vectors: VectorTable, options: Options
) -> Table:
    """Alignment error rate of both methods where there is gold, beside the diagonal."""
    table = Table(
        "alignment",
        "Alignment error rate in per cent by Och and Ney's definition, sums over sentences; links by "
        "cosine of last hidden states of pieces (SimAlign's argmax and itermax, "
        f"{ITERATIONS} rounds, discount {DISCOUNT}); words are what white space "
        "divides. Diagonal: positions in proportion, no model.",
        [
            Column("sentences", digits=0),
            *(
                Column(f"{method} {what}", better)
                for method in METHODS
                for what, better in (
                    ("AER", "lower"),
                    ("precision", "higher"),
                    ("recall", "higher"),
                )
            ),
            Column("diagonal AER", "lower", baseline=True),
        ],
    )
    for lang, pairs in _each(data, "alignment"):
        rows = [i for i, links in enumerate(pairs.alignment) if links is not None]
        if not rows:
            table.skipped[lang] = "no gold links"
            continue
        source = [pairs.source[i].split() for i in rows]
        target = [pairs.target[i].split() for i in rows]
        gold = [
            alignment.parse_links(
                pairs.alignment[i] or "",
                len(x),
                len(y),
                first=options.first_word,
                where=f"alignment of {lang} {pairs.source[i][:40]!r}",
            )
            for i, x, y in zip(rows, source, target, strict=True)
        ]
        states = zip(subject.token_states(source), subject.token_states(target), strict=True)
        counts = {name: alignment.AlignmentErrors() for name in (*METHODS, "diagonal")}
        for (x, y), links, words_x, words_y in zip(states, gold, source, target, strict=True):
            similarity = similarities(x.states, y.states)
            for name, method in METHODS.items():
                counts[name].add(alignment.word_links(method(similarity), x.word, y.word), links)
            counts["diagonal"].add(alignment.diagonal_links(len(words_x), len(words_y)), links)
        row: list[float | None] = [len(rows)]
        for name in METHODS:
            c = counts[name]
            row += [100 * c.aer, 100 * c.precision, 100 * c.recall]
        table.rows[lang] = [*row, 100 * counts["diagonal"].aer]
    table.add_mean("mean")
    return table


def measure_isotropy(data: Data, subject: Subject, vectors: VectorTable, options: Options) -> Table:
    """How evenly each language's source sentences use the space, and all sentences together."""
    table = Table(
        "isotropy",
        "Mean cosine over all pairs of different sentences of the source side (0: directions cancel "
        "out), IsoScore (Rudman et al. 2022; 0 to 1, higher is more even), effective rank (Roy and "
        "Vetterli 2007; of the centred vectors, at most sentences - 1). All together: every "
        "distinct sentence of both sides.",
        [
            Column("sentences", digits=0),
            Column("mean cosine", digits=3),
            Column("IsoScore", digits=3),
            Column("effective rank"),
        ],
    )
    for lang, pairs in _each(data, "isotropy"):
        texts = list(dict.fromkeys(pairs.source))
        if len(texts) < 2:
            table.skipped[lang] = "fewer than two distinct sentences"
            continue
        shape = geometry.isotropy(vectors.of(texts))
        table.rows[lang] = [
            len(texts), shape.mean_cosine, shape.isoscore, shape.effective_rank,
        ]  # fmt: skip
    table.add_mean("mean")
    texts = list(dict.fromkeys(t for p in data.values() for t in (*p.source, *p.target)))
    if len(texts) > 1:
        shape = geometry.isotropy(vectors.of(texts))
        table.means["all together"] = [
            len(texts), shape.mean_cosine, shape.isoscore, shape.effective_rank,
        ]  # fmt: skip
    return table


def measure_hubness(data: Data, subject: Subject, vectors: VectorTable, options: Options) -> Table:
    """Hubness of the target sentences under the source sentences, per language."""
    table = Table(
        "hubness",
        f"Of the target sentences among the {geometry.HUB_K} nearest (cosine) of the source "
        "sentences: skewness of the occurrences (Radovanović et al. 2010), Robin Hood index "
        "(Feldbauer et al. 2018; share of neighbour slots to be moved until all had the same), most "
        f"slots of one sentence. {LEXICAL}",
        [
            Column("pairs", digits=0),
            Column("skewness", "lower", 2),
            Column("Robin Hood", "lower", 3),
            Column("largest", "lower", 0),
            Column("skewness lexical", "lower", 2, baseline=True),
        ],
    )
    for lang, pairs in _each(data, "hubness"):
        found = geometry.hubness(vectors.of(pairs.source), vectors.of(pairs.target))
        words = lexical_vectors(pairs.source, pairs.target)
        table.rows[lang] = [
            len(pairs), found.skewness, found.robin_hood, found.largest,
            geometry.hubness(words[0], words[1]).skewness,
        ]  # fmt: skip
    table.add_mean("mean")
    return table


METRICS: dict[str, Metric] = {
    "xsim": measure_xsim,
    "xsim++": measure_xsimpp,
    "tatoeba": measure_tatoeba,
    "bucc": measure_bucc,
    "alignment": measure_alignment,
    "isotropy": measure_isotropy,
    "hubness": measure_hubness,
}
