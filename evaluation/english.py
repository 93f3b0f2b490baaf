"""English as far as corrupting a sentence needs it: word forms, opposites, names, articles.

Lists of common words and a few rules of spelling; no parser and no statistics. A word that is
not listed is left alone.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# base, past, participle; only where the past is not made with -ed
_IRREGULAR = """
be was been; become became become; begin began begun; break broke broken; bring brought brought;
build built built; buy bought bought; catch caught caught; choose chose chosen; come came come;
cost cost cost; cut cut cut; do did done; draw drew drawn; drink drank drunk; drive drove driven;
eat ate eaten; fall fell fallen; feel felt felt; fight fought fought; find found found;
fly flew flown; forget forgot forgotten; forgive forgave forgiven; get got gotten;
give gave given; go went gone; grow grew grown; have had had; hear heard heard; hide hid hidden;
hit hit hit; hold held held; hurt hurt hurt; keep kept kept; know knew known; lead led led;
leave left left; lend lent lent; let let let; lie lay lain; lose lost lost; make made made;
mean meant meant; meet met met; pay paid paid; put put put; read read read; ride rode ridden;
ring rang rung; rise rose risen; run ran run; say said said; see saw seen; sell sold sold;
send sent sent; set set set; shake shook shaken; show showed shown; shut shut shut;
sing sang sung; sit sat sat; sleep slept slept; speak spoke spoken; spend spent spent;
stand stood stood; steal stole stolen; swim swam swum; take took taken; teach taught taught;
tear tore torn; tell told told; think thought thought; throw threw thrown;
understand understood understood; wake woke woken; wear wore worn; win won won; write wrote written
"""
_REGULAR = """
accept add admit agree allow answer apologize appear apply arrive ask attend believe belong
borrow call carry cause change check choke clean click climb close commit complain contain
continue cook copy count create cross cry dance decide delete deny depend deserve destroy die
disable disagree disappear discuss display drop enable end enjoy enter exist expect explain fail
finish fix follow hang happen hate help hope include increase install introduce invite join
kick kill kiss knock laugh learn like listen live look love marry mention miss move need notice
offer open order own pass play point prefer press promise protect prove provide pull push reach realize
receive recognize recommend refuse regret remain remember remove repair replace require respect
return save seem select share smell smile smoke specify start stay stop study succeed suffer
suggest support talk taste thank touch travel trust try turn type use visit wait walk want warn
wash watch wish wonder work worry yell
"""

# Doubled when a suffix follows; the other listed verbs of this shape are not.
_DOUBLED = frozenset({"admit", "commit", "drop", "prefer", "regret", "stop"})


class Verb(NamedTuple):
    """Forms of one verb; third: with he, she or it."""

    base: str
    third: str
    past: str
    participle: str


def _third(base: str) -> str:
    if base == "have":
        return "has"
    if base.endswith(("s", "x", "z", "ch", "sh", "o")):
        return base + "es"
    return base[:-1] + "ies" if re.search(r"[^aeiou]y$", base) else base + "s"


def _past(base: str) -> str:
    if base.endswith("e"):
        return base + "d"
    if re.search(r"[^aeiou]y$", base):
        return base[:-1] + "ied"
    return base + (base[-1] if base in _DOUBLED else "") + "ed"


VERBS = {
    verb.base: verb
    for verb in (
        *(
            Verb(b, _third(b), past, participle)
            for b, past, participle in (row.split() for row in _IRREGULAR.split(";"))
            if b != "be"
        ),
        *(Verb(b, _third(b), _past(b), _past(b)) for b in _REGULAR.split()),
    )
}
THIRD = {verb.third: verb for verb in VERBS.values()}
PAST = {verb.past: verb for verb in VERBS.values()}
PARTICIPLES = frozenset({"been", *(verb.participle for verb in VERBS.values())})

# A past form that is neither a participle nor a noun, and a third form that is no plural: enough
# to know a verb after "the man" without parsing.
CLEAR_PAST = {
    verb.past: verb
    for verb in VERBS.values()
    if verb.past not in (verb.participle, verb.base) and verb.base not in ("see", "lie", "fall")
} | {form: PAST[form] for form in ("said", "thought", "kept", "bought", "brought", "caught")}
_CLEAR_BASES = """
allow appear become begin believe belong bring come contain continue create decide depend enable
expect feel forget get give go happen have hear include keep know like lose make mean need prefer
provide refuse remain require say seem sell send show specify start stop take think understand use
want work
"""
CLEAR_THIRD = {VERBS[base].third: VERBS[base] for base in _CLEAR_BASES.split()}

_OPPOSITES = """
able unable; above below; accept refuse; accepted refused; accurate inaccurate; active inactive;
adult child; advantage disadvantage; agree disagree; agreed disagreed; agrees disagrees;
alive dead; allow forbid; allowed forbidden; allows forbids; always never; asleep awake;
ascending descending; automatic manual; automatically manually; backward forward; bad good;
beautiful ugly; before after; best worst; better worse; big small; bigger smaller;
biggest smallest; boring interesting; bottom top; bought sold; buy sell; buying selling;
cheap expensive; clean dirty; clever stupid; cold hot; colder hotter; come go; comes goes;
comfortable uncomfortable; common rare; complete incomplete; connect disconnect;
connected disconnected; correct incorrect; correctly incorrectly; create delete;
created deleted; dangerous safe; day night; decrease increase; decreased increased;
decreases increases; decreasing increasing; deep shallow; deeper shallower;
dependent independent; difficult easy; disable enable; disabled enabled; disables enables;
dry wet; early late; earlier later; easier harder; east west; eastern western; empty full;
everybody nobody; everyone nobody; everything nothing; everywhere nowhere; fail succeed;
failed succeeded; false true; familiar unfamiliar; fast slow; faster slower; fat thin; few many;
finished began; forget remember; forgets remembers; forgot remembered;
fortunately unfortunately; friend enemy; friendly hostile; friends enemies; generous stingy;
guilty innocent; happier sadder; happy unhappy; hate love; hated loved; hates loves;
healthy sick; heavier lighter; here there; hidden visible; hide show; hides shows; high low;
higher lower; highest lowest; honest dishonest; horizontal vertical; horizontally vertically;
huge tiny; important unimportant; impossible possible; inside outside; intelligent stupid;
internal external; known unknown; large small; larger smaller; largest smallest; lazy diligent;
legal illegal; likely unlikely; lose win; loses wins; lost won; loud quiet;
lucky unlucky; maximum minimum; more less; morning evening; narrow wide; narrower wider;
necessary unnecessary; normal unusual; north south; northern southern; often rarely;
older younger; oldest youngest; optional required; patient impatient; peace war;
polite impolite; poor rich; popular unpopular; private public; quickly slowly;
removed added; remove add; removes adds; right wrong; shorter longer; shortest longest;
started stopped; start stop; starts stops; strong weak; stronger weaker; summer winter;
thick thin; today yesterday; ugly beautiful; useful useless; usual unusual; valid invalid;
warm cool; warmer cooler; white black; old young
"""
# The way back would be wrong: "light" and "long" and "no" mean too much else.
_ONE_WAY = """
beginning end; busy free; cheerful sad; complicated simple; different identical;
easily hardly; enter leave; fewer more; heavy light; modern ancient; noisy quiet; quick slow; sad cheerful;
short long; someone nobody; something nothing; tall short; taller shorter; terrible wonderful;
tired rested; tomorrow yesterday; upper lower; wonderful terrible; without with; yes no
"""

# Words next to which an entry means something else, or its opposite would break the grammar.
NOT_BEFORE = {
    "bad": {"news"}, "better": {"off", "not"}, "black": {"sea"}, "cold": {"war"},
    "come": {"from", "true", "up", "across", "on", "out"}, "day": {"after", "before"},
    "few": {"minutes", "days", "weeks", "hours"}, "go": {"to", "on", "ahead", "out", "and"},
    "good": {"morning", "night", "evening", "afternoon", "day", "luck", "deal", "bye", "at"},
    "high": {"school"}, "hot": {"dog", "dogs"}, "love": {"letter", "story", "to"},
    "lost": {"in"}, "many": {"times"}, "old": {"age"}, "right": {"now", "away", "here", "to"},
    "start": {"menu"}, "there": {"is", "are", "was", "were", "be", "will", "has"},
    "here": {"is", "are"}, "after": {"all", "that"}, "before": {"yesterday"},
    "top": {"of", "secret"}, "white": {"house"}, "stop": {"it", "that"},
}  # fmt: skip
NOT_AFTER = {
    "after": {"look", "looked", "looking", "looks"}, "before": {"day"},
    "best": {"my", "his", "her", "your", "their", "our"},
    "better": {"had", "d", "i'd", "you'd", "we'd", "he'd", "she'd", "they'd"},
    "clean": {"to"}, "complete": {"to"}, "correct": {"to"}, "empty": {"to"}, "dry": {"to"},
    "cold": {"a", "caught", "catch"}, "come": {"how"}, "day": {"every", "one", "the", "all", "this"},
    "evening": {"good"}, "fast": {"how"}, "few": {"a", "quite"}, "go": {"let", "let's"},
    "good": {"for"}, "high": {"how"}, "less": {"no"}, "many": {"how", "as", "so", "too"},
    "more": {"no", "any", "once"}, "morning": {"good"}, "night": {"good", "last"},
    "love": {"in", "with", "true"}, "often": {"how"},
    "old": {"year", "years", "month", "months", "week", "weeks", "how", "day", "days"},
    "patient": {"the", "a", "his", "her"}, "possible": {"as"}, "show": {"the", "a", "tv"},
    "stop": {"bus"}, "there": {"over", "out", "is", "are", "was", "were"},
    "common": {"in"}, "longer": {"no", "any"}, "top": {"on"}, "true": {"come", "came", "comes"},
    "usual": {"as"}, "warm": {"to"}, "slow": {"to"}, "right": {"all", "the", "my", "your"},
}  # fmt: skip


def _opposites() -> dict[str, str]:
    out: dict[str, str] = {}
    both_ways = [tuple(row.split()) for row in _OPPOSITES.split(";")]
    one_way = [tuple(row.split()) for row in _ONE_WAY.split(";")]
    for word, opposite in both_ways + one_way:
        out.setdefault(word, opposite)
    for word, opposite in both_ways:
        out.setdefault(opposite, word)
    return out


OPPOSITES = _opposites()

_ENTITIES = """
man's name: Tom, John, Bob, Mike, Jack, Peter, Paul, David, George, Jim, Ken, James, Robert,
    William, Michael, Daniel, Thomas, Henry, Frank, Fred, Roger, Steve, Brian, Kevin, Eric, Alex,
    Sami, Ziri, Bruno, Pierre, Carlos, Roberto, Hans, Ivan, Taro, Ahmed
woman's name: Mary, Alice, Jane, Emily, Lucy, Kate, Nancy, Susan, Linda, Anna, Maria, Julia,
    Layla, Emma, Helen, Laura, Betty, Barbara, Cathy, Sarah, Yuri, Naoko, Fatima, Ingrid, Muriel
country: Japan, China, France, Germany, Italy, Spain, Russia, England, Canada, Mexico, Brazil,
    India, Australia, Turkey, Greece, Egypt, Sweden, Norway, Finland, Poland, Ukraine, Portugal,
    Ireland, Korea, Vietnam, Thailand, Switzerland, Austria, Hungary, Algeria, Morocco, Kenya,
    Argentina, Chile, Peru, Georgia, Kazakhstan, Israel, Iran, Iraq, Pakistan, Denmark, Belgium
city: London, Paris, Tokyo, Boston, Berlin, Rome, Madrid, Moscow, Beijing, Kyoto, Osaka, Chicago,
    Vienna, Athens, Cairo, Istanbul, Prague, Warsaw, Budapest, Lisbon, Dublin, Oslo, Stockholm,
    Helsinki, Sydney, Toronto, Montreal, Kabul, Baghdad, Kazan, Kiev, Seoul, Bangkok, Delhi,
    Mumbai, New York, Los Angeles, San Francisco, Hong Kong, Rio de Janeiro
language: English, French, German, Spanish, Italian, Japanese, Chinese, Russian, Arabic, Turkish,
    Greek, Hungarian, Portuguese, Dutch, Swedish, Finnish, Norwegian, Korean, Hebrew, Hindi,
    Esperanto, Latin
people: American, Canadian, Mexican, Brazilian, Indian, Australian, Egyptian, Belgian, Ukrainian
weekday: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
month: January, February, March, April, May, June, July, August, September, October, November,
    December
continent: Europe, Asia, Africa, America, Antarctica
program: Firefox, Thunderbird, LibreOffice, Chrome, Safari
system: Windows, Linux, Android, macOS, iOS
"""
# Each class replaces within itself.
ENTITIES = {
    kind: re.split(r",\s+", names.strip())
    for kind, names in (row.split(":") for row in re.split(r"\n(?=\S)", _ENTITIES.strip()))
}

# Fit after "a": one is a German, but no one is a French.
AS_NOUN = frozenset({"German", "Italian", "Russian", "Greek", "Hungarian", "Norwegian", "Korean"})

# Also words or parts of names; a sentence that begins with one says nothing about an entity.
AMBIGUOUS_AT_START = frozenset({"May", "March", "Turkey", "Polish", "Jack", "Frank", "Chile"})

_KIN = """
father mother; brother sister; son daughter; husband wife; boy girl; boys girls; man woman;
men women; uncle aunt; grandfather grandmother; king queen; nephew niece; brothers sisters;
sons daughters; boyfriend girlfriend; dad mom; dog cat; dogs cats; apple orange; apples oranges;
coffee tea; car bicycle; bus train; train plane; doctor lawyer; teacher student; teachers students;
book letter; table chair; window door; bread cheese; milk wine; tennis chess; horse cow;
dollars euros; yen pounds; kilometers miles; kilograms pounds; school hospital; hotel restaurant;
sun moon; river mountain; island village; piano guitar; police army; fish meat; shirt hat
"""
THINGS: dict[str, str] = {}
for _pair in _KIN.split(";"):
    _one, _other = _pair.split()
    THINGS.setdefault(_one, _other)
    THINGS.setdefault(_other, _one)


def article_for(word: str) -> str:
    """ "a" or "an", by the sound that `word` (or a number in digits) begins with."""
    low = word.lower()
    if low[:1].isdigit():
        digits = re.match(r"\d+", low)
        number = digits[0] if digits else ""
        teen = number in ("11", "18") or (len(number) in (5, 8) and number[:2] in ("11", "18"))
        return "an" if low.startswith("8") or teen else "a"
    if re.match(r"hour|honest|hono|heir", low):
        return "an"
    if re.match(r"uni([^nm]|$)|us[aeu]|eu|one\b|once|ukr|ut[eio]", low):
        return "a"
    return "an" if low[:1] in "aeiou" else "a"


def match_case(word: str, like: str) -> str:
    """`word` with the capital that `like` begins with, or without it."""
    return word[:1].upper() + word[1:] if like[:1].isupper() else word
