"""The rule that gives each of the 135 emotion words its expression vector; writes `words.json`.

Run `python -m genaffect_jax.expressions.derive` after changing the table here or in `published.py`.

A word with a published pattern: that pattern (see `published.py`) times the word's strength, no further change.
Every other word is *derived*, in two steps of the same kind, strength x base, then some channels set:

    sub-cluster prototype = strength x published word,         changes set
    word                  = strength x sub-cluster prototype,  changes set

Strength multiplies muscle units only; held postures (eyes closed, gaze, head) pass through until a change replaces
them. Values are clipped to the channel's range. The published word is the cluster's own (joy, surprise, anger,
sadness, fear) or one of the sub-cluster. The word love has none: affection starts from happiness, longing from sadness.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from genaffect_jax.expressions.action_units import INDEX, LOWEST, SIDED_UNITS
from genaffect_jax.expressions.published import CITATIONS, HELD_CHANNELS, PATTERNS, combine
from genaffect_jax.io.atomic import write_atomically

WORDS_FILE = Path(__file__).with_name("words.json")
DIGITS = 3  # of every value in words.json

# Words, clusters and sub-clusters of Shaver et al. (1987), in their order. Strengths and changes are this project's.
#   [cluster/sub-cluster]  published word x strength  changes  | why
#   word  strength  changes  | why            (no changes and no why: the word has a published pattern)
# A change `12=.4` sets AU12 on both sides, `12L=.4` on the person's left, `head_roll=.2` a signed channel.
TABLE = """
[love/affection]  happiness x 0.6  25=.15 26=0 16=0 7=0 43=.2 head_roll=.25  | soft smile, head to one side
adoration       1.1  1=.4 2=.2 25=.35 43=0 gaze_pitch=.3 head_roll=.4  | looks up in wonder
affection       1  | the prototype
love            1.3  1=.35 25=.35 43=.35  | warmer, lids lower
fondness        0.8  25=0 head_roll=.45  | closed smile, head further over
liking          0.75 1=.2 2=.2 25=.1 43=0 head_roll=0  | open, straight look
attraction      0.75 1=.15 2=.25 2L=.6 7=.2 43=0 head_roll=-.25  | one brow raised in interest
caring          0.8  1=.55 25=0 head_pitch=-.15  | smile with concern in the brows
tenderness      0.65 1=.3 25=0 43=.45 gaze_pitch=-.3 head_pitch=-.2  | looks down gently
compassion      0.4  1=.7 4=.35 17=.2 25=0 head_roll=.35  | sad brows over a faint smile
sentimentality  0.65 1=.6 15=.3 17=.2 25=0 43=.35 gaze_pitch=-.4  | smile with trembling corners
[love/lust]  desire x 0.9  19=0 26=.15 43=.4 7=.4  | heavy lids, parted lips, no tongue
arousal         1    25=.8 26=.4 43=.5 head_pitch=.25  | mouth open, head back
desire          1
lust            1    4=.35 6=.2 25=.7 43=.3 head_pitch=-.4  | looks from under the brows
passion         1    1=.3 4=.45 6=.2 12=.25 25=.55 43=.3  | intense brows
infatuation     1.2  1=.5 2=.3 6=.7 7=0 12=.8 25=.4 43=0 gaze_pitch=.3 head_roll=.45  | starry-eyed
[love/longing]  sadness x 0.5  1=.7 6=0 15=.1 17=0 25=.2 gaze_yaw=.5 gaze_pitch=.4 head_yaw=.2 head_roll=.2  | looks far
longing         1  | the prototype
[joy/cheerfulness]  joy x 0.9  | the open smile of joy
amusement       1
bliss           0.7  7=0 25=.25 26=0 43=1 head_pitch=.2 head_roll=.2  | serene, eyes closed
cheerfulness    0.85 1=.25 2=.25 26=.1  | bright, mouth less open
gaiety          0.9  1=.35 2=.45 7=0 head_roll=.35  | light-hearted tilt
glee            1.1  1=.2 2=.3 7=.5 26=.5 head_pitch=-.25  | chin in, eyes narrowed by the grin
jolliness       1    6=1 7=.45 26=.55 43=.35  | laughing eyes
joviality       1    2=.25 16=.3 26=.6 head_pitch=.3 head_roll=-.2  | hearty laugh, head back
joy             1
delight         1    1=.65 2=.65 5=.3 7=0 26=.4  | a pleased surprise
enjoyment       0.75 25=.45 26=0 43=.4  | half-closed eyes
gladness        0.7  1=.25 7=0 25=.35 26=0  | milder smile
happiness       0.9
jubilation      1.1  1=.3 2=.4 26=.6 27=.4 head_pitch=.35  | cheering, mouth wide
elation         1    1=.55 2=.55 7=0 26=.5 gaze_pitch=.5 head_pitch=.35  | uplifted, looking up
satisfaction    0.6  7=.3 14=.4 25=0 26=0 head_pitch=.15  | closed smile with dimples
ecstasy         1.1  1=.5 2=.3 26=.6 43=1 head_pitch=.55  | carried away, head thrown back
euphoria        1.1  1=.65 2=.4 26=.4 43=.55 head_pitch=.25 head_roll=-.35  | floating, dreamy lids
[joy/zest]  joy x 0.9  1=.45 2=.55 5=.45 6=.6 7=0  | joy wide awake: brows and upper lids up
enthusiasm      1  | the prototype
zeal            0.8  1=0 2=.35 4=.25 5=.3 7=.3 26=.1 head_pitch=-.15  | determined brows
zest            0.85 2R=.85 5=.25 26=.15 head_roll=-.25  | a cocked brow
excitement      1.1  5=.7 26=.7  | eyes and mouth wide
thrill          1    1=.6 4=.25 5=.85 20=.4 26=.5  | joy with a dash of fear
exhilaration    1.1  1=.65 2=.75 5=.3 26=.6 27=.3 head_pitch=.35  | wind in the face
[joy/contentment]  contentment x 1  | quiet smile, eyes closed
contentment     0.6
pleasure        1    6=.5 25=.35 43=.7 head_pitch=.15 head_roll=.3  | savouring it
[joy/pride]  pride x 1  | head up, looking down
pride           1
triumph         1
[joy/optimism]  joy x 0.6  1=.4 2=.4 7=0 25=.3 26=0 gaze_pitch=.5 head_pitch=.25  | a smile that looks ahead and up
eagerness       1.2  1=.5 2=.5 5=.5 25=.55 gaze_pitch=0 head_pitch=-.2  | leaning in, wide eyes
hope            0.8  1=.8 2=.3 25=.15 gaze_pitch=.9 head_pitch=.35  | pleading brows, eyes raised
optimism        1  | the prototype
[joy/enthrallment]  joy x 0.6  1=.6 2=.6 5=.5 6=.3 7=0 25=.6 26=.5  | smile and surprise together
enthrallment    1  | the prototype
rapture         1.1  5=0 6=.6 43=.5 gaze_pitch=.8 head_pitch=.5  | gaze lost upwards
[joy/relief]  relief x 1  | breathing out, eyes closed
relief          0.7
[surprise/surprise]  surprise x 1  | brows, lids and jaw at once
amazement       1    6=.3 12=.5 26=.6  | a pleased surprise, mouth open
surprise        0.95
astonishment    1.1  5=1 26=.9 27=.5 head_pitch=.15  | jaw falls
[anger/irritation]  anger x 0.55  5=0 10=.15  | anger held back: no stare
aggravation     1.4  5=.2 10=.45 25=.25 24=0  | lip curls, about to speak
irritation      1  | the prototype
agitation       1.1  1=.3 5=.5 20=.35 24=0 25=.35 gaze_yaw=.5  | restless eyes
annoyance       0.9  14L=.6 43=.25 gaze_yaw=-.5 gaze_pitch=.5 head_roll=.15  | rolls the eyes
grouchiness     1.1  10=0 15=.6 43=.3 head_pitch=-.2  | heavy lids, corners down
grumpiness      1.1  10=0 15=.3 17=.8 18=.55 23=0 head_pitch=-.3  | pouting
[anger/exasperation]  anger x 0.6  1=.4 2=.3 5=0 7=.2 14=.4 24=0 25=.3 gaze_pitch=.9 head_pitch=.25  | eyes to heaven
exasperation    1  | the prototype
frustration     1.3  1=0 2=0 14=.2 17=.6 24=.9 25=0 43=.9 gaze_pitch=0 head_pitch=-.2  | eyes shut, lips pressed
[anger/rage]  anger x 1  | full anger
anger           1
rage            1.1  5=.9 9=.5 10=.7 16=.6 17=0 20=.3 23=0 24=0 25=1 26=.8  | roaring, teeth bared
outrage         1    2=.5 5=1 17=0 23=0 24=0 25=.8 26=.6 head_pitch=.15  | shouts, eyes wide
fury            1.1  5=.6 9=.6 10=.5 16=.7 17=0 20=.5 23=0 24=0 25=.7  | clenched teeth
wrath           1.1  5=.8 9=.3 17=.6 24=.9 head_pitch=-.45  | glares from under the brows
hostility       0.8  5=.25 10=.35 24=.2 head_pitch=-.2  | cold stare, lip tight
ferocity        1.1  5=.7 9=1 10=1 16=.8 17=0 23=0 24=0 25=.9 26=.3 head_pitch=-.25  | an animal's snarl
bitterness      0.65 5=0 14=.35 15=.6 24=.3 gaze_yaw=-.4  | corners down and tucked in
hate            1
loathing        0.8  5=0 9=.7 10=.7 15=.5 24=0 head_pitch=.2  | hate with disgust
scorn           0.5  5=0 10L=.7 14L=.6 24=0 43=.3 gaze_pitch=-.5 head_pitch=.35  | looks down the nose
spite           0.8  5=0 7=.6 12R=.6 17=0 24=.2 head_pitch=-.2 head_roll=-.15  | crooked smile
vengefulness    0.95 5=.4 12=.45 17=0 23=0 24=.4 head_pitch=-.4  | cold smile under lowered brows
dislike         0.4  5=0 9=.35 10=.3 15=.3 24=0 head_yaw=.3  | turns off a little
resentment      0.65 5=0 17=.6 24=.6 gaze_yaw=.7 head_yaw=-.3 head_pitch=-.15  | sidelong, lips shut
[anger/disgust]  disgust x 1  | nose and upper lip
disgust         1
revulsion       1.2  4=.6 10=.9 19=.5 25=.8 26=.4 43=.35 head_yaw=-.35 head_pitch=.15  | gags and turns away
contempt        1
[anger/envy]  anger x 0.5  5=0 7=.45 24=.35 gaze_yaw=.8 head_yaw=-.3  | narrow eyes from the corner
envy            1    1=.35 4=.4 15=.35  | covets: sorrow in the brows
jealousy        1.3  10=.25 17=.55 head_pitch=-.2  | harder, suspicious
[anger/torment]  anger x 0.7  1=.7 5=0 9=.35 20=.6 23=0 24=0 25=.6 43=.7  | pain more than anger: teeth, eyes squeezed
torment         1  | the prototype
[sadness/suffering]  sadness x 1  7=.4 20=.35 25=.5 43=.45  | sadness with the strain of pain
agony           1.1  9=.5 10=.4 25=.9 26=.7 43=1 head_pitch=.3  | cries out, eyes shut
suffering       0.9  | the prototype, slightly held
hurt            0.8  1=.8 4=.5 7=.1 17=.6 20=.1 25=.1 43=.1 head_yaw=.2  | wounded look, chin trembling
anguish         1.1  1=1 16=.4 25=.7 26=.3 43=.7 head_roll=.2  | inner brows at their highest
[sadness/sadness]  sadness x 1  | inner brows up, corners down
depression      0.55 1=.5 6=0 17=.1 43=.5 gaze_pitch=-.6 head_pitch=-.5  | flat, drooping lids
despair         1    1=.95 25=.5 26=.3 gaze_pitch=.6 head_pitch=.25  | implores heaven
hopelessness    0.85 6=0 17=0 25=.3 43=.35 gaze_pitch=-.8 head_pitch=-.2 head_roll=.2  | empty gaze, slack lips
gloom           0.8  1=.2 4=.7 6=0 gaze_pitch=-.6 head_pitch=-.4  | dark brow
glumness        0.6  4=.35 6=0 17=.7 18=.25 gaze_yaw=-.3 gaze_pitch=-.2  | sulky lower lip
sadness         0.95
unhappiness     0.6  1=.5 4=.35 6=0  | milder, cheeks at rest
grief           1.1  1=.9 6=.6 17=.7 20=.35 25=.6 43=.85 head_pitch=-.35  | weeping
sorrow          0.9  1=.85 4=.6 43=.35 gaze_pitch=-.5 head_roll=.25  | lowered eyes, tilted head
woe             1.1  1=1 15=1 17=.7  | a mask of tragedy
misery          1.05 1=.85 6=.65 17=.8 20=.2 43=.5 head_roll=-.25  | about to cry
melancholy      0.5  1=.6 4=.2 6=0 17=0 43=.3 gaze_yaw=.5 gaze_pitch=-.2 head_roll=.3  | thoughtful, far away
[sadness/disappointment]  sadness x 0.65  6=0 14=.4 24=.3 gaze_pitch=-.4  | lips pressed into the cheeks
dismay          1.1  1=.9 2=.4 4=.6 5=.5 14=0 24=0 25=.5 26=.3 gaze_pitch=0  | sad and startled
disappointment  1  | the prototype
displeasure     1    1=0 4=.7 9=.25 10=.2 17=.5 24=0 gaze_pitch=0  | a frown at someone
[sadness/shame]  shame x 1  43=.25 gaze_pitch=-.7  | head, eyes and lids down
guilt           1    1=.65 14=.3 24=.4 gaze_yaw=-.7 head_yaw=.2 head_pitch=-.5  | avoids the eyes
shame           1
regret          0.9  1=.5 14=.35 15=.5 43=.6 head_pitch=-.3 head_roll=.2  | closes the eyes over it
remorse         1.2  1=.9 15=.7 17=.7 gaze_pitch=-.6  | sorrow in shame
[sadness/neglect]  sadness x 0.7  6=.1 gaze_yaw=-.6 gaze_pitch=-.3 head_yaw=-.25  | sadness turned away
alienation      0.7  1=.1 24=.4 43=.3 head_yaw=-.6  | turned away, shut off
isolation       0.8  17=0 43=.25 gaze_yaw=0 gaze_pitch=-.7 head_yaw=0 head_pitch=-.6  | sunk into oneself
neglect         1  | the prototype
loneliness      1    1=.75 4=.4 17=0 43=.2 head_roll=-.3  | wistful brows
rejection       1.2  17=.7 24=.3 43=.4 head_yaw=-.5 head_pitch=-.2  | swallows it and turns away
homesickness    0.8  1=.85 4=.3 12=.2 17=0 gaze_yaw=.6 gaze_pitch=.4 head_yaw=.3  | thinks of a far place
defeat          0.8  1=.3 4=.3 14=.3 43=.6 gaze_yaw=0 gaze_pitch=-.8 head_yaw=0 head_pitch=-.9  | head hangs
dejection       1.2  43=.3 gaze_yaw=.3 gaze_pitch=-.7 head_yaw=.2 head_pitch=-.5  | cast down
insecurity      0.6  1=.65 2=.25 12=.2 20=.3 gaze_yaw=-.7 gaze_pitch=0 head_yaw=.2  | unsure half-smile
embarrassment   0.9
humiliation     1.2  6=.5 7=.4 20=.3 24=.5 43=.6 gaze_yaw=0 head_yaw=.4 head_pitch=-.8  | would sink
insult          1.1  1=.5 2=.3 4=.7 5=.6 25=.45 26=.3 gaze_yaw=0 gaze_pitch=0 head_yaw=0 head_pitch=.25  | affronted
[sadness/sympathy]  sympathy x 1  | inner brows up, lips together
pity            1    1=.8 4=.4 15=.4 gaze_pitch=-.3 head_roll=.4  | sorry for someone below
sympathy        1
[fear/horror]  fear x 1  | full fear
alarm           0.9  4=.2 7=.1 20=.2 26=.5 head_pitch=.15  | startled more than afraid
shock           1.1  4=.1 7=0 20=0 25=1 26=1 27=.2  | mouth falls open
fear            1
fright          0.9  26=.4 head_yaw=.35 head_pitch=.2 gaze_yaw=-.4  | starts back
horror          1    4=.8 9=.4 10=.5 20=.5 26=.7  | fear with disgust
terror          1.1  5=1 16=.5 20=1 25=1 26=.8 27=.4  | screaming
panic           1    5=1 20=1 26=.3 gaze_yaw=.8 head_yaw=-.25  | looks for a way out
hysteria        1.1  2=.5 6=.6 12=.5 20=.4 26=.7 27=.3 head_pitch=.2 head_roll=.35  | laughing and crying
mortification   0.8  2=.2 5=.3 6=.3 17=.4 25=.3 gaze_pitch=-.7 head_pitch=-.35  | would rather be gone
[fear/nervousness]  fear x 0.55  25=.2 26=0  | fear held in, mouth nearly shut
anxiety         1.2  2=.3 4=.65 gaze_yaw=.4  | knitted brows, darting eyes
nervousness     1    12=.35 25=.35 gaze_yaw=-.5  | nervous smile
tenseness       0.9  1=.2 2=.1 4=.55 7=.45 23=.5 24=.6 25=0  | everything tight
uneasiness      0.8  2=.2 14L=.5 20=.15 25=0 gaze_yaw=-.7 head_roll=-.15  | one corner tucked in
apprehension    1    1=.75 25=0 gaze_yaw=.6 head_yaw=-.3  | watches what comes
worry           0.9  1=.85 2=0 4=.65 5=0 15=.2 20=.2 25=0  | brows of care
distress        1.3  1=.95 2=.2 4=.8 6=.3 15=.4 25=.6 26=.2  | near to tears
dread           1.2  4=.65 5=.85 17=.5 25=0 head_pitch=-.25  | stares at what is coming
"""

Channels = dict[str, float]
Record = dict[str, Any]


class Row(NamedTuple):
    """One line of `TABLE`; a prototype's line starts a sub-cluster, the lines below it are its words."""

    cluster: str
    subcluster: str
    word: str  # of a prototype: the published word it starts from
    strength: float
    changes: Channels
    reason: str


def _read_changes(text: str) -> Channels:
    changes: Channels = {}
    for item in text.split():
        name, _, value = item.partition("=")
        name = f"AU{name}" if name[0].isdigit() else name
        both_sides = name.removeprefix("AU").isdigit() and int(name.removeprefix("AU")) in SIDED_UNITS
        for channel in (f"{name}L", f"{name}R") if both_sides else (name,):
            if channel not in INDEX:
                raise ValueError(f"word table: '{item}': no such expression channel")
            changes[channel] = float(value)
    return changes


def read_table() -> tuple[list[Row], list[Row]]:
    """`TABLE` as (prototypes, words), both in order.

    Raises:
        ValueError: a change names no channel.
    """
    prototypes: list[Row] = []
    words: list[Row] = []
    for line in TABLE.strip().splitlines():
        left, _, reason = (part.strip() for part in line.partition("|"))
        if line.startswith("["):
            heading, _, rest = left[1:].partition("]")
            cluster, subcluster = heading.split("/")
            word, _, strength, *changes = rest.split(maxsplit=3)
            rows = prototypes
        else:
            cluster, subcluster = prototypes[-1].cluster, prototypes[-1].subcluster
            word, strength, *changes = left.split(maxsplit=2)
            rows = words
        rows.append(Row(cluster, subcluster, word, float(strength), _read_changes(" ".join(changes)), reason))
    return prototypes, words


def _scale_and_set(base: Channels, strength: float, changes: Channels) -> Channels:
    """strength x base (held postures unscaled) with `changes` set, clipped to the channels' ranges."""
    scaled = {c: v if c in HELD_CHANNELS else v * strength for c, v in base.items()} | changes
    return {c: min(max(v, float(LOWEST[INDEX[c]])), 1.0) for c, v in scaled.items()}


def _compact(channels: Channels) -> Channels:
    """Rounded, without zeros, in channel order; equal sides are written once as `AU12`."""
    values = {c: round(channels[c], DIGITS) for c in INDEX if round(channels.get(c, 0.0), DIGITS)}
    compact: Channels = {}
    for channel, value in values.items():
        unit, side = channel[:-1], channel[-1]
        if channel.startswith("AU") and side in "LR" and values.get(f"{unit}L") == values.get(f"{unit}R"):
            compact[unit] = value
        else:
            compact[channel] = value
    return compact


def derive() -> Record:
    """The content of `words.json`: citations, the prototypes and a record for each word."""
    prototype_rows, word_rows = read_table()
    prototypes: dict[str, Channels] = {}
    prototype_records = []
    for row in prototype_rows:
        prototypes[row.subcluster] = _scale_and_set(combine(row.word).channels, row.strength, row.changes)
        record: Record = {"cluster": row.cluster, "subcluster": row.subcluster, "published_word": row.word}
        record |= {"strength": row.strength, "reason": row.reason, "channels": _compact(prototypes[row.subcluster])}
        prototype_records.append(record)

    words = []
    for row in word_rows:
        record = {"name": row.word, "cluster": row.cluster, "subcluster": row.subcluster}
        if row.word in PATTERNS:
            if row.changes:
                raise ValueError(f"word table: '{row.word}' has a published pattern and must not be changed")
            pattern = combine(row.word)
            channels = _scale_and_set(pattern.channels, row.strength, {})
            record |= {"provenance": "published", "units_source": "published", "source": pattern.source}
            record |= {"agreement": pattern.agreement, "left_out": pattern.left_out, "dropped": pattern.dropped}
        else:
            channels = _scale_and_set(prototypes[row.subcluster], row.strength, row.changes)
            record |= {"provenance": "derived", "units_source": "rule"}
            record |= {"source": f"{row.subcluster} prototype x {row.strength:g}: {row.reason}", "dropped": ()}
        words.append(record | {"intensity": "rule", "strength": row.strength, "channels": _compact(channels)})
    return {
        "about": "Made by `python -m genaffect_jax.expressions.derive`; do not edit. Intensities are this project's "
        "rule, not published; 'derived' words have no published pattern at all.",
        "words_from": CITATIONS["shaver1987"],
        "citations": {key: text for key, text in CITATIONS.items() if key != "shaver1987"},
        "prototypes": prototype_records,
        "words": words,
    }


def render() -> str:
    """`derive()` as JSON text with one line for each prototype and word, so that a change shows as one line."""
    content = derive()
    lists = []
    for key in ("prototypes", "words"):
        rows = ",\n".join("  " + json.dumps(record, ensure_ascii=False) for record in content.pop(key))
        lists.append(f' "{key}": [\n{rows}\n ]')
    head = json.dumps(content, indent=1, ensure_ascii=False).removesuffix("\n}")
    return head + ",\n" + ",\n".join(lists) + "\n}\n"


def write(path: Path = WORDS_FILE) -> None:
    """Writes `render()` to `path`, atomically."""
    write_atomically(path, render())


if __name__ == "__main__":
    write()
    print(f"wrote {WORDS_FILE}")
