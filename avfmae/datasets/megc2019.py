"""The composite protocol of MEGC 2019 (See et al., 2019): SAMM, CASME II and SMIC together, one subject left out at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets import casme2, samm, smic
from avfmae.datasets.interface import Options
from avfmae.datasets.reading import first_existing

PARTS = ((samm, "SAMM*"), (casme2, "CASME*"), (smic, "SMIC*"))


def read(root: Path, options: Options) -> Iterator[Clip]:
    for module, place in PARTS:
        dataset = module.DATASETS[0]
        for clip in dataset.annotated(first_existing(root, place), replace(options, classes=(), annotation=None)):
            yield replace(clip, fold=f"{dataset.corpus}-{clip.subject}")


DATASETS = (
    replace(
        samm.DATASETS[0],
        name="megc2019",
        title="MEGC 2019 composite",
        corpus="megc2019",
        protocol="leave one subject out over three sets (68), pooled predictions",
        tree="SAMM*/, CASME*/, SMIC*/ (the folders of the three sets)",
        source="as of the three sets",
        read=read,
        labels={},
        clips=442,
        histogram={name: sum(module.DATASETS[0].histogram[name] for module, _ in PARTS) for name in samm.DATASETS[0].classes},
    ),
)
