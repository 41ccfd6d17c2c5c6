"""What every figure of an evaluation is: title, direction, formula, floor and source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Better = Literal["higher", "lower", "ceiling", "neither"]
_HERE, _PAPER = "this package", "after Gen-AFFECT, arXiv 2508.09461"
_COPIES, _SHUFFLED, _NONE = "copies of the reference", "labels shuffled within a set", "none defined"
_AMOUNT = "the amount of the change from neutral to full that the encoder reads in the true images"


@dataclass(frozen=True)
class About:
    """The description of a figure."""

    title: str
    """What it says, for people."""
    better: Better
    """Which way is better; `ceiling`: the nearer to the ceiling, from either side; `neither`: both sides
    are without fault."""
    formula: str
    """How it is computed and aggregated."""
    floor: str
    """What the floor is computed from."""
    source: str
    """Where it is from."""


ABOUT: dict[str, About] = {
    "identity": About(
        "the person, against a true image that the model did not get",
        "higher",
        "cosine of identity embeddings of a generated image and the person's true image with the next expression of "
        "the list; mean over images, then people",
        "true images of the next person",
        _HERE,
    ),
    "copy_score": About(
        "copying: 1 is a copy of the reference, -1 the true image",
        "lower",
        "(angle(generated, truth) - angle(generated, reference)) / angle(truth, reference) of identity embeddings; "
        "mean over images, then people",
        _COPIES,
        "after WithAnyone, arXiv 2510.14975",
    ),
    "set_consistency": About(
        "one person in all images of a set",
        "ceiling",
        "mean cosine of identity embeddings over the pairs of a set; mean over people",
        "sets of different people",
        _PAPER,
    ),
    "expression_error": About(
        "error of the expression, in hundredths of an action unit",
        "lower",
        "mean absolute difference of read and wanted action-unit vectors, times 100; mean over channels, images, "
        "people",
        _SHUFFLED,
        _PAPER,
    ),
    "expression_gain": About(
        "share of the way from the reference's face to the wanted one",
        "higher",
        "1 - mean |read - wanted| / mean |reference - wanted| over a person's images; mean over people",
        _COPIES,
        _HERE,
    ),
    "word_top1": About(
        "the wanted word is the nearest of 135",
        "higher",
        "share of images whose wanted word has the action-unit vector nearest to the read one (mean absolute "
        "difference); mean over images, then people",
        _SHUFFLED,
        _HERE,
    ),
    "word_top5": About(
        "the wanted word is among the nearest five of 135",
        "higher",
        "as word_top1, with the five nearest words",
        _SHUFFLED,
        _HERE,
    ),
    "identity_frechet": About(
        "distance of the distributions of faces",
        "lower",
        "Frechet distance of the identity embeddings of all generated and all true images, of the same people; the "
        "interval is the jackknife's, as a bootstrap has fewer different people and a larger distance",
        _COPIES,
        "Heusel et al. 2017, arXiv 1706.08500, with other features",
    ),
    "sharpness": About(
        "steepness of edges, as a share of the true image's",
        "ceiling",
        "steepest grey-value gradient within 2 pixels of every edge of the true image, over the true image's; mean "
        "over edges, images, people",
        _NONE,
        _HERE,
    ),
    "background_variation": About(
        "change of background, clothes and hair over a set, in levels of 255",
        "lower",
        "standard deviation over a set of the pixels that are alike in all its true images; mean over pixels, people",
        _NONE,
        _HERE,
    ),
    "dial_correlation": About(
        "evenness of dials from 0 to 1.5",
        "higher",
        f"Pearson correlation of intensity and {_AMOUNT}; mean over dials, people",
        "no relation",
        _HERE,
    ),
    "dial_monotone": About(
        "share of a dial's steps that rise",
        "higher",
        f"share of steps of 0.25 that raise {_AMOUNT}; mean over dials, people",
        "chance",
        _HERE,
    ),
    "dial_dead_zone": About(
        "longest part of a dial that does next to nothing",
        "lower",
        f"largest share of the range in one run of steps that raise {_AMOUNT} by less than a quarter of the mean rise; "
        "mean over dials, people",
        "a dial that never moves",
        _HERE,
    ),
    "dial_identity_loss": About(
        "how far the person is lost along a dial",
        "lower",
        "cosine of identity embeddings to the reference at intensity 0 less that at 1.5; mean over dials, people",
        _NONE,
        _HERE,
    ),
    "clip_score": About(
        "agreement of image and word, to CLIP",
        "higher",
        "2.5 max(cosine, 0) of CLIP's embeddings of a generated image and of the text 'a face showing WORD'; mean over "
        "images, then people",
        _SHUFFLED,
        "Hessel et al. 2021, arXiv 2104.08718, with this text",
    ),
    "dino_consistency": About(
        "likeness of the images of a set, to DINO",
        "ceiling",
        "mean cosine of DINO's class tokens, after the last norm, over the pairs of a set; mean over people",
        "sets of different people",
        _PAPER,
    ),
    "seed_identity": About(
        "one person under all seeds",
        "higher",
        "mean cosine of identity embeddings over the pairs of seeds of a person with a word; mean over words, people",
        "true images of different people",
        _HERE,
    ),
    "seed_expression": About(
        "change of the expression over seeds, in hundredths of an action unit",
        "lower",
        "mean absolute difference of the read action-unit vectors over the pairs of seeds of a person with a word, "
        "times 100; mean over channels, words, people",
        "true images of a person's different words",
        _HERE,
    ),
    "seed_pixels": About(
        "change of the pixels over seeds, in levels of 255; a model that ignores its noise has 0",
        "neither",
        "standard deviation of a pixel over the seeds of a person with a word (divided by seeds - 1); mean over "
        "pixels, words, people",
        _NONE,
        _HERE,
    ),
}

MEASURED_WITH: dict[str, str] = {
    "clip_score": "clip",
    "dino_consistency": "dino",
    "seed_identity": "diversity",
    "seed_expression": "diversity",
    "seed_pixels": "diversity",
}
"""Figures that are measured only if asked for, and the setting of the report that decides how. Two reports compare such
a figure only where this setting is equal."""

# Descriptions that take the place of those in `ABOUT` where a figure is computed otherwise.
ONE_TRUE_IMAGE = replace(
    ABOUT["identity"], formula=f"{ABOUT['identity'].formula}; of a person with one true image, that one, and no ceiling"
)
_READ = "wanted is what the evaluator reads in the true image, as its vectors are no action units"
OTHER_VECTORS: dict[str, About] = {
    "seed_expression": replace(
        ABOUT["seed_expression"],
        title="change of the expression over seeds, in hundredths of the evaluator's unit",
        formula=ABOUT["seed_expression"].formula.replace("action-unit vectors", "vectors"),
    )
}
READ_IN_TRUTH: dict[str, About] = {
    "expression_error": replace(
        ABOUT["expression_error"],
        title="distance of the expression to the true image's, in hundredths of the evaluator's unit",
        formula="mean absolute difference of the vectors read in generated and true image, times 100; mean over "
        f"channels, images, people; {_READ}",
    ),
    "expression_gain": replace(ABOUT["expression_gain"], formula=f"{ABOUT['expression_gain'].formula}; {_READ}"),
}
_ALONG = "the amount of the change from intensity 0 along the action units of the word"
ALONG_WORDS: dict[str, About] = {
    name: replace(ABOUT[name], formula=ABOUT[name].formula.replace(_AMOUNT, _ALONG))
    for name in ("dial_correlation", "dial_monotone", "dial_dead_zone")
}
