"""Where clips come from: a video file, a folder of frame images, a clip of a prepared set, or a kind of your own.

``open_clip(clip)`` gives the :class:`Source` of a clip. To add a kind, subclass Source in a file of its own, decorate it with
:func:`register` and import the file; nothing else of avfmae asks what a path looks like.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from avfmae.data.sources import frames, prepared  # noqa: F401  (they register themselves)
from avfmae.data.sources.media import MediaFile
from avfmae.data.sources.probing import NOMINAL_FPS
from avfmae.data.sources.source import KINDS, MediaError, Source, VideoInfo, register

if TYPE_CHECKING:
    from avfmae.data.clip import Clip

__all__ = [
    "KINDS", "NOMINAL_FPS", "MediaError", "Source", "VideoInfo", "find_files", "kind_of", "open_clip", "register",
    "shard_numbers",
]  # fmt: skip


def kind_of(path: str) -> type[Source]:
    """The kind of source that takes a path; what no other kind takes is a media file."""
    return next((kind for kind in KINDS if kind.takes(path)), MediaFile)


def open_clip(clip: "Clip | str | os.PathLike", sound_track: str | None = None) -> Source:
    """The source of a clip, or of a path. A clip's separate sound file (``clip.audio_path``) is its source's sound.

    Frames and times are those of the whole file; a clip's ``start`` and ``end`` are for the caller to apply.

    Args:
        sound_track: which of several to read: a language (``"eng"``) or a number from 0; None: the default one.

    Raises:
        MediaError: a prepared set's shard or clip is not there. Other files are opened when something of them is asked for.
    """

    def opened(path: str) -> Source:
        source = kind_of(path).open(path)
        if sound_track is not None:
            source.sound_track = sound_track
        return source

    if isinstance(clip, str | os.PathLike):
        return opened(os.fspath(clip))
    return opened(clip.path) if clip.audio_path is None else SeparateSound(opened(clip.path), opened(clip.audio_path))


class SeparateSound(Source):
    """A source whose sound comes from another file, which begins when the source's file begins."""

    def __init__(self, video: Source, audio: Source):
        super().__init__(video.path)
        self.sound_path, self.video, self.audio = audio.path, video, audio
        self.is_cropped, self.stored = video.is_cropped, video.stored
        self.flags = video.flags = audio.flags = video.flags | audio.flags  # one set, which both add to
        self.preparation = video.preparation
        self.frames_between, self.damaged, self.digest = video.frames_between, video.damaged, video.digest

    @property
    def info(self) -> VideoInfo:
        return replace(self.video.info, has_audio=True)  # the sound's file is opened only by who hears it

    def frames(self, numbers, arena=None):
        return self.video.frames(numbers, arena)

    def sound(self, start, end):
        if not self.audio.info.has_audio:
            return np.zeros(0, np.float32)
        later = self.audio.info.start - self.video.info.start
        return self.audio.sound(start + later, end + later)


def shard_numbers(paths: Iterable[str]) -> np.ndarray | None:
    """A number for each clip's shard; None where not all clips lie in shards. Opens no file."""
    numbers: dict[str, int] = {}
    found = []
    for path in paths:
        if (shard := kind_of(path).shard(path)) is None:
            return None
        found.append(numbers.setdefault(shard, len(numbers)))
    return np.array(found)


def find_files(folder: str | os.PathLike, *suffixes: str) -> tuple[list[str], Counter[str]]:
    """All files of some suffixes, or all clips, below a folder, in the order of their paths, and how many others of each suffix.

    Files are known by their suffixes, in capitals too; hidden ones are left out. Linked folders are followed, each folder once.
    """
    wanted = suffixes or MediaFile.suffixes.union(*(kind.suffixes for kind in KINDS))
    found, others, seen = [], Counter(), set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or suffix not in wanted:
                others[suffix or "no suffix"] += 1
            else:
                found.append(os.path.join(root, name))
    return sorted(found), others
