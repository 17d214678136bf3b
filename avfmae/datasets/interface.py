"""What every data set says of itself, and how its clips are made from what its reader finds."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from avfmae.data.clip import Clip


@dataclass(frozen=True)
class Options:
    """What the user says where a data set's authors do not, or where media lie elsewhere.

    Attributes:
        classes: names in index order; of regression, the dimensions in the order of the labels' numbers.
        annotation: a file or folder of labels or folds, where the archive has none or several.
        faces: a folder with a folder of face images, or a video, for each clip.
        sound: a folder with a sound file for each clip.
        notes: what a reader found wrong in an annotation, (path, reason) each; it is reported.
    """

    classes: tuple[str, ...] = ()
    annotation: Path | None = None
    faces: Path | None = None
    sound: Path | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)


PACKED = frozenset((".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".001"))  # suffixes of archives
NOT_IN_FILE = (0.0, 0.0)  # start and end of a clip whose frames its file does not hold; such clips are reported
Reader = Callable[[Path, Options], Iterable[Clip]]


@dataclass(frozen=True)
class Dataset:
    """One data set under one protocol.

    Attributes:
        name: what the command takes. title: what papers call it.
        corpus: the manifest's data set column; the same for all variants of an archive, so that shared people are found.
        task: ``"classification"``, ``"regression"``, or ``"pretraining"`` without labels.
        classes: class names in index order; of regression, the dimensions. Empty: not published, or none.
        labels: label of the annotation -> class; ``""``: the protocol leaves such clips out. Empty: the labels are the classes.
        protocol: how it is evaluated, in words. metrics: in which; the first one chooses epochs.
        folds: ``"given"``: by the manifest's fold column; a number: cut by us, unless the user gives the folds; None: by its
            split column.
        modalities: that it has. uniform: 16 frames are spread over the clip, as in micro-expressions.
        tree: the part of the archive that is read, a path or pattern a line.
        licence: in a few words. source: where to ask for the data.
        read: gives a clip for every annotation, with the annotation's label, whether its media are there or not.
        clips: how many there are by the protocol. histogram: by class. by_fold: by fold or split. Where published; else None or
            empty.
    """

    name: str
    title: str
    corpus: str
    task: Literal["classification", "regression", "pretraining"]
    protocol: str
    tree: str
    licence: str
    source: str
    read: Reader
    classes: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("UAR", "WAR")
    folds: int | Literal["given"] | None = "given"
    modalities: tuple[str, ...] = ("video", "audio")
    uniform: bool = False
    clips: int | None = None
    histogram: dict[str, int] = field(default_factory=dict)
    by_fold: dict[str, int] = field(default_factory=dict)

    def annotated(self, root: Path, options: Options) -> list[Clip]:
        """The clips of the protocol, labels mapped to classes, whether their media are there or not.

        Raises:
            FileNotFoundError: the archive lacks an annotation; names it.
            ValueError: an annotation is not as expected; names the file or clip.
        """
        if not root.is_dir():
            raise FileNotFoundError(f"root: {root} is no folder; expected the folder of {self.title}")
        if options.classes and self.task == "pretraining":
            raise ValueError(f"classes: got {', '.join(options.classes)}, but {self.name} has no labels")
        if options.classes and self.classes and set(options.classes) != set(self.classes):
            got, expected = ", ".join(options.classes), ", ".join(self.classes)
            raise ValueError(f"classes: got {got}, expected {expected} in any order")
        inside = [path for path in root.iterdir() if path.name[0] != "."]
        try:
            found = list(self._once(self._mapped(self.read(root, options)), options))
            if not found:
                raise FileNotFoundError(f"{root}: holds no clip of {self.title}; expected\n{self.tree}")
        except FileNotFoundError as error:
            if len(inside) == 1 and inside[0].is_dir():  # many archives are unpacked into a folder of their name
                return self.annotated(inside[0], options)
            packed = sorted(path.name for path in inside if path.suffix.lower() in PACKED)
            raise FileNotFoundError(f"{error}\nNot unpacked yet: {', '.join(packed)}" if packed else str(error)) from error
        if (
            options.classes
            and self.task == "classification"
            and (more := {str(clip.label) for clip in found} - {*options.classes})
        ):
            raise ValueError(f"classes: got {', '.join(options.classes)}, but clips are labelled {', '.join(sorted(more))} too")
        return [replace(clip, id=i) for i, clip in enumerate(found)]

    def _once(self, clips: Iterable[Clip], options: Options) -> Iterator[Clip]:
        """Clips without those that are annotated a second time, which are noted; they may not differ from the first."""
        seen: dict[tuple, Clip] = {}
        for clip in clips:
            key = (clip.path, clip.start, clip.end, clip.face)
            first = seen.setdefault(key, clip)
            if first is clip or (clip.start, clip.end) == NOT_IN_FILE:
                yield clip
            elif (first.label, first.fold, first.split) == (clip.label, clip.fold, clip.split):
                options.notes.append((clip.path, "is annotated twice"))
            else:
                told = [
                    " ".join(filter(None, (str(one.label), one.split, one.fold and f"fold {one.fold}"))) for one in (first, clip)
                ]
                raise ValueError(f"{clip.path}: is annotated twice, as {told[0]} and as {told[1]}")

    def _mapped(self, read: Iterable[Clip]) -> Iterator[Clip]:
        published = self.labels or ({name: name for name in self.classes} if self.task == "classification" else {})
        plain = {label.lower(): name for label, name in published.items()}  # one archive's capitals are not another's
        for clip in read:
            label = clip.label
            if published:
                if (label or "").lower() not in plain:
                    raise ValueError(f"{clip.path}: its label is {label!r}, expected one of {', '.join(published)}")
                label = plain[(label or "").lower()]
            if label != "":
                yield replace(clip, label=label, dataset=clip.dataset or self.corpus)

    def class_order(self, clips: Iterable[Clip], options: Options) -> tuple[str, ...]:
        """Class names in index order: the user's, the published ones, or, where none are published, in alphabetical order."""
        if self.task != "classification":
            return options.classes or self.classes
        return options.classes or self.classes or tuple(sorted({clip.label or "" for clip in clips}))
