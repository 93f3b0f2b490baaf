"""How `tatoeba_sample.tsv` was drawn: `python make_tatoeba_sample.py tatoeba.parquet > tatoeba_sample.tsv`.

Short English sentences of the public Tatoeba v1 test set that were translated into the
most of 41 languages, with up to 70 translations per language. No model was consulted.
Needs pyarrow.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import pyarrow.parquet as pq

# ISO 639-3 as Tatoeba writes it -> BCP 47 as the service does
LANGUAGES = {
    "afr": "af", "ara": "ar", "ben": "bn", "bul": "bg", "ces": "cs", "cmn": "zh", "dan": "da",
    "deu": "de", "ell": "el", "est": "et", "eus": "eu", "fin": "fi", "fra": "fr", "heb": "he",
    "hin": "hi", "hun": "hu", "hye": "hy", "ind": "id", "ita": "it", "jpn": "ja", "kat": "ka",
    "kaz": "kk", "kor": "ko", "mal": "ml", "mar": "mr", "nld": "nl", "pes": "fa", "pol": "pl",
    "por": "pt", "ron": "ro", "rus": "ru", "spa": "es", "swe": "sv", "tam": "ta", "tel": "te",
    "tgl": "tl", "tha": "th", "tur": "tr", "ukr": "uk", "urd": "ur", "vie": "vi",
}  # fmt: skip
LONGEST_CHARACTERS = 70
PER_LANGUAGE = 70


def main() -> None:
    by_english: dict[str, dict[str, str]] = defaultdict(dict)
    for row in pq.read_table(sys.argv[1]).to_pylist():
        if row["lang"] in LANGUAGES and max(len(row["src"]), len(row["trg"])) <= LONGEST_CHARACTERS:
            text = " ".join(row["src"].split())
            by_english[" ".join(row["trg"].split())].setdefault(LANGUAGES[row["lang"]], text)
    ranked = sorted(by_english.items(), key=lambda item: (-len(item[1]), item[0]))
    print("group\tlang\ttext")
    room = dict.fromkeys(LANGUAGES.values(), PER_LANGUAGE)
    for group, (english, translations) in enumerate(ranked):
        chosen = {lang: text for lang, text in sorted(translations.items()) if room[lang]}
        if not chosen:
            continue
        for lang, text in [("en", english), *chosen.items()]:
            print(group, lang, text, sep="\t")
        for lang in chosen:
            room[lang] -= 1


if __name__ == "__main__":
    main()
