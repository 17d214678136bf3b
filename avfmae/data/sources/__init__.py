"""Where clips come from: a video file, a folder of frame images, a clip of a prepared set, or a kind of your own.

``open_clip(clip)`` gives the :class:`Source` of a clip. To add a kind, subclass Source in a file of its own, decorate it with
:func:`register` and import the file; nothing else of avfmae asks what a path looks like.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from avfmae.data.sources import frames, prepared  # noqa: F401  (they register themselves)
from avfmae.data.sources.media import MediaFile
from avfmae.data.sources.source import KINDS, MediaError, Source, VideoInfo, register

if TYPE_CHECKING:
    from avfmae.data.manifest import Clip

__all__ = ["KINDS", "MediaError", "Source", "VideoInfo", "clip_suffixes", "open_clip", "register", "shard_numbers"]


def kind_of(path: str) -> type[Source]:
    """The kind of source that takes a path; what no other kind takes is a media file."""
    return next((kind for kind in KINDS if kind.takes(path)), MediaFile)


def open_clip(clip: "Clip | str | os.PathLike") -> Source:
    """The source of a clip, or of a path. A clip's separate sound file (``clip.audio_path``) is its source's sound.

    Frames and times are those of the whole file; a clip's ``start`` and ``end`` are for the caller to apply.

    Raises:
        MediaError: a prepared set's shard or clip is not there. Other files are opened when something of them is asked for.
    """
    if isinstance(clip, str | os.PathLike):
        path = os.fspath(clip)
        return kind_of(path).open(path)
    source = kind_of(clip.path).open(clip.path)
    return source if clip.audio_path is None else SeparateSound(source, kind_of(clip.audio_path).open(clip.audio_path))


class SeparateSound(Source):
    """A source whose sound comes from another file, which begins when the source's file begins."""

    def __init__(self, video: Source, audio: Source):
        super().__init__(video.path)
        self.sound_path, self.video, self.audio = audio.path, video, audio
        self.is_cropped, self.stored = video.is_cropped, video.stored
        self.frames_between, self.damaged, self.digest = video.frames_between, video.damaged, video.digest

    @property
    def info(self) -> VideoInfo:
        return replace(self.video.info, has_audio=True)

    def frames(self, numbers, arena=None):
        return self.video.frames(numbers, arena)

    def sound(self, start, end):
        begin = self.video.info.start
        return self.audio.sound(start - begin, end - begin)


def shard_numbers(paths: Iterable[str]) -> np.ndarray | None:
    """A number for each clip's shard; None where not all clips lie in shards. Opens no file."""
    numbers: dict[str, int] = {}
    found = []
    for path in paths:
        if (shard := kind_of(path).shard(path)) is None:
            return None
        found.append(numbers.setdefault(shard, len(numbers)))
    return np.array(found)


def clip_suffixes() -> frozenset[str]:
    """The suffixes by which a folder's files are known to be clips."""
    return MediaFile.suffixes.union(*(kind.suffixes for kind in KINDS))
