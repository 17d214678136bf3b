"""Where a clip's media lie, and whether they are there."""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.data.sources.frames import FrameFolder
from avfmae.datasets.interface import Options

VIDEO = ("", ".mp4", ".avi", ".flv", ".mkv", ".mov", ".webm")  # a folder of images has no suffix
SOUND = (".wav", ".flac", ".m4a", ".mp3", ".mp4", ".avi", ".flv")


def placed(clip: Clip, root: Path, options: Options) -> Clip:
    """The clip with the faces and sound of the folders that the user names, or with a suffix in capitals if that is there."""
    path, (name, suffix), audio = clip.path, os.path.splitext(clip.path), clip.audio_path
    if not os.path.exists(path) and os.path.exists(name + suffix.upper()):
        path = name + suffix.upper()
    if options.faces is not None:
        path = _below(options.faces, path, root, VIDEO)
        if audio is None and os.path.isfile(clip.path) and os.path.isdir(path):
            audio = clip.path
    if options.sound is not None:
        audio = _below(options.sound, audio or path, root, SOUND)
    return replace(clip, path=path, audio_path=audio)


def _below(folder: Path, path: str, root: Path, suffixes: Collection[str]) -> str:
    """What is below ``folder`` as ``path`` is below ``root``, or below a folder of it: the first of these that is there."""
    parts = Path(os.path.relpath(os.path.splitext(path)[0] if not os.path.isdir(path) else path, root)).parts
    places = [os.path.join(folder, *parts[i:]) + suffix for i in range(len(parts)) for suffix in suffixes]
    return next(filter(os.path.exists, places), places[-len(suffixes)])


def missing(clip: Clip) -> str | None:
    """Why a clip is no clip of a manifest: its media are not there."""
    if not os.path.exists(clip.path):
        return "is not there"
    if os.path.isdir(clip.path) and not FrameFolder(clip.path).files:
        return "holds no images"
    if clip.audio_path is not None and not os.path.exists(clip.audio_path):
        return f"its sound is not there ({clip.audio_path})"
    if clip.start is not None and clip.end is not None and clip.start >= clip.end:
        return "none of it lies in its file" + (f" ({clip.start:g} to {clip.end:g} s)" if clip.start else "")
    return None
