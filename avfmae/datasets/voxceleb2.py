"""VoxCeleb2 (Chung et al., 2018), its development part: face tracks of interviews."""

from collections.abc import Iterator
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.data.sources import find_files
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import first_existing


def read(root: Path, options: Options) -> Iterator[Clip]:
    videos = first_existing(root, "dev/mp4", "mp4")
    sounds = videos.parent / "aac"
    apart = sounds.is_dir()
    for path in find_files(videos)[0]:
        place = Path(path).relative_to(videos)
        sound = sounds / place.with_suffix(".m4a")
        yield Clip(0, path, str(sound) if apart and sound.exists() else None, subject=place.parts[0])


DATASETS = (
    Dataset(
        name="voxceleb2",
        title="VoxCeleb2-dev",
        corpus="voxceleb2",
        task="pretraining",
        protocol="pre-training",
        tree="dev/mp4/id00012/21Uxsk56VDQ/00001.mp4\ndev/aac/id00012/21Uxsk56VDQ/00001.m4a (else the sound of the .mp4)",
        licence="CC BY 4.0 (annotations), research",
        source="robots.ox.ac.uk/~vgg/data/voxceleb",
        read=read,
        clips=1_092_009,
    ),
)
