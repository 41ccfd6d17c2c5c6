"""Suggestions for words that the grammar does not know: the usual labels of data sets, degrees, and slips of spelling.

A suggestion is part of a message. No label is replaced by itself, because data sets mean different faces by one word.
"""

from __future__ import annotations

from collections.abc import Sequence

# Labels of FER2013, AffectNet, RAF-DB, RAVDESS, RaFD, MEAD and of everyday language, by the text of the grammar that
# comes nearest. Adjectives and verbs are as usual there as nouns; the vocabulary has nouns.
_BY_TEXT: dict[str, str] = {
    "happiness": "happy happily happier",
    "joy": "joyful joyous",
    "cheerfulness": "cheerful cheery merry",
    "delight": "delighted",
    "amusement": "amused laughing laughter laugh funny",
    "excitement": "excited",
    "enthusiasm": "enthusiastic",
    "pride": "proud",
    "hope": "hopeful",
    "optimism": "optimistic",
    "relief": "relieved",
    "satisfaction": "satisfied",
    "pleasure": "pleased",
    "love": "loving",
    "affection": "affectionate",
    "tenderness": "tender",
    "desire": "desiring",
    "longing": "yearning",
    "sadness": "sad sadly sadder",
    "depression": "depressed",
    "melancholy": "melancholic",
    "unhappiness": "unhappy",
    "grief": "grieving",
    "despair": "desperate",
    "hopelessness": "hopeless",
    "misery": "miserable",
    "gloom": "gloomy",
    "agony": "pain painful pained",
    "suffering": "suffer",
    "disappointment": "disappointed",
    "dismay": "dismayed",
    "shame": "ashamed",
    "guilt": "guilty",
    "regret": "regretful",
    "embarrassment": "embarrassed",
    "humiliation": "humiliated",
    "loneliness": "lonely",
    "insecurity": "insecure",
    "sympathy": "sympathetic",
    "anger": "angry angrily mad angrier",
    "fury": "furious",
    "rage": "raging enraged",
    "irritation": "irritated",
    "annoyance": "annoyed annoying",
    "frustration": "frustrated",
    "grumpiness": "grumpy",
    "hostility": "hostile",
    "bitterness": "bitter",
    "hate": "hatred hateful",
    "resentment": "resentful",
    "disgust": "disgusted disgusting disgustedly",
    "contempt": "contemptuous",
    "envy": "envious",
    "jealousy": "jealous",
    "fear": "afraid fearful scared frightened fearfully",
    "terror": "terrified",
    "horror": "horrified appalled",
    "alarm": "alarmed",
    "panic": "panicked panicking",
    "shock": "shocked",
    "anxiety": "anxious",
    "nervousness": "nervous",
    "worry": "worried",
    "distress": "distressed",
    "tenseness": "tense",
    "uneasiness": "uneasy",
    "surprise": "surprised surprising",
    "astonishment": "astonished",
    "amazement": "amazed awe awed wow",
    "neutral": "calm relaxed serene",
    "AU6=0.5,AU12=0.8": "smile smiling smiley grin grinning",
    "AU1=0.6,AU4=0.7,AU15=0.8": "cry crying tearful",
    "AU4=0.8": "frown frowning",
}
# Abbreviations in the file names of JAFFE, KDEF and similar sets.
_CODES: dict[str, str] = {
    "ha": "happiness",
    "hap": "happiness",
    "sa": "sadness",
    "su": "surprise",
    "sur": "surprise",
    "an": "anger",
    "ang": "anger",
    "di": "disgust",
    "dis": "disgust",
    "fe": "fear",
    "fea": "fear",
    "af": "fear",
    "ne": "neutral",
    "neu": "neutral",
}
USUAL: dict[str, str] = _CODES | {label: text for text, labels in _BY_TEXT.items() for label in labels.split()}
_DEGREES: dict[str, str] = {
    **dict.fromkeys(("very", "extremely", "intensely", "strongly", "really", "so", "highly"), "1.3"),
    **dict.fromkeys(("slightly", "mildly", "somewhat", "little", "bit", "weakly", "subtly", "moderately"), "0.5"),
}


def suggestion(name: str, following: str | None, known: Sequence[str]) -> str:
    """What to write instead of an unknown word, as the end of a message.

    Args:
        name: the word, in lower case.
        following: the word behind it, in lower case, if there is one.
        known: the words that are allowed.

    Returns:
        `; did you mean ...?`, or the first known words if nothing is near enough.
    """
    if name in _DEGREES:
        target = following if following in known else USUAL.get(following or "", "joy")
        assert target is not None
        if "=" in target:
            return "; action units have their strength behind '='"
        return f"; a strength is a weight, such as '{target}:{_DEGREES[name]}'"
    text = USUAL.get(name) or _misspelt(name, known) or USUAL.get(_misspelt(name, [*USUAL]) or "")
    if text is None:
        return _listed(known)
    other = following if following in known else USUAL.get(following or "")
    if other and text != other and name.endswith("ly"):  # compound expressions: "happily surprised"
        return f"; did you mean '0.5*{text} + 0.5*{other}'?"
    return f"; did you mean '{text}'?"


def group_suggestion(name: str, known: Sequence[str]) -> str:
    """As `suggestion`, for the name of an unknown group of words among the `known` ones."""
    text = _misspelt(name, known) or next((label for label in [USUAL.get(name)] if label in known), None)
    return f"; did you mean '{text}'?" if text else _listed(known)


def _listed(known: Sequence[str]) -> str:
    return f"; known: {', '.join(known[:6])}, ... (docs/guide/expressions.md)"


def _misspelt(name: str, known: Sequence[str]) -> str | None:
    """The known word that differs by one slip: a letter left out, added or doubled, two exchanged, or, in words of five
    letters and more, a wrong one. A wrong first letter, or a wrong one in a short word, makes another word too often.
    """
    if len(name) < 3:
        return None
    return next((word for word in known if len(word) > 2 and name[0] == word[0] and _one_slip(name, word)), None)


def _one_slip(a: str, b: str) -> bool:
    if len(a) > len(b):
        a, b = b, a
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    if len(b) == len(a) + 1:
        return a[same:] == b[same + 1 :]
    if len(a) != len(b) or a == b:
        return a == b
    exchanged = a[same : same + 2] == b[same : same + 2][::-1] and a[same + 2 :] == b[same + 2 :]
    return exchanged or (len(a) >= 5 and a[same + 1 :] == b[same + 1 :])
