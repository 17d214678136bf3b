"""How clips are read, as a run is told. Importing it loads neither torch, nor a decoder, nor what reads command lines."""

from dataclasses import dataclass
from typing import Any, Literal

from avfmae.bounds import check_least, check_shares

SAMPLE_RATE = 16_000  # of all sound, in samples a second


@dataclass(frozen=True)
class Preparation:
    """How faces were cut out of the clips that a model was trained on. It is stored with a prepared set, and with weights.

    Attributes:
        detector: ``"haar"``, ``"mtcnn"`` and ``"yunet"`` (faces are aligned by their landmarks), ``"manifest"`` (boxes that were
            given), or ``"precropped"``: the frames were taken as they are.
        yunet: the file of YuNet's model.
        every, choose, follow: how the face is looked for and followed, see :class:`avfmae.options.PrepareConfig`.
        margin: room around the face, in shares of its side.
        size: of the square frames that were stored, in pixels; None: none were stored, the crop is made from the file's frames.
        sound_track: which of a file's was taken; None: the default one.
        place: where boxes that were given usually lie, the median: centre x, centre y, width, height in shares of the frame.
        spread: of these four, half the range that holds the middle nine tenths, the largest of them.
    """

    detector: str
    yunet: str | None = None
    every: int = 5
    choose: str = "persistent"
    follow: bool = False
    margin: float = 0.3
    size: int | None = None
    sound_track: str | None = None
    place: tuple[float, float, float, float] | None = None
    spread: float = 0.0

    @classmethod
    def of(cls, values: dict | None) -> "Preparation | None":
        """From the fields as JSON has them; None stays None."""
        if values is None:
            return None
        given: dict[str, Any] = values | {"place": values.get("place") and tuple(values["place"])}
        return cls(**given)

    def __str__(self) -> str:
        if self.detector == "precropped":
            return "whole frames"
        aligned = dict.fromkeys(("mtcnn", "yunet"), f"{self.detector}, aligned")
        by = {"manifest": "the manifest's boxes", **aligned}.get(self.detector, self.detector)
        return f"faces by {by}, margin {self.margin:g}" + (f", {self.size} pixels" if self.size else "")


@dataclass
class DataConfig:
    """How clips are read.

    Attributes:
        stride: frames between two sampled ones at a constant 23 to 31 frames a second; at other rates, and at one that varies,
            25ths of a second.
        sampling: ``"window"``: 16 frames from stride·16; ``"uniform"``: 16 frames spread over all of the clip, for
            micro-expressions of a few frames.
        face_margin: room around a manifest's face box, in shares of its side.
        find_faces: where the initial weights were trained on faces, raw clips are cut to theirs likewise, and the face is looked
            for where the manifest has no box. False: a clip's own box is taken, or else the whole frame.
        yunet: the file of YuNet's model, if it is not where it was when the initial weights were trained.
        roll: shift pre-training sound in time (the released code does not, in effect).
        multi_scales: shares of the short side that pre-training crops have.
        rand_augment: magnitude and number of operations for training with labels; 0 operations: none.
        crop_scale: area shares of the random crop for training with labels.
        flip: probability of a mirrored clip, for training with labels.
        erase: probability of an erased rectangle, for training with labels.
        missing_audio: ``"error"``: a window without sound is a bad clip; ``"silence"``: where sound is missing, there is silence.
        sound_track: which of a file's is read: a language (``"eng"``) or a number from 0; None: the default one.
        max_bad_share: the run stops when more than this share of its clips is bad.
        segments: evaluation views in time.
        crops: evaluation views in space.
        workers: decoding processes; 0 decodes in the training process, unwatched.
        clip_seconds: time limit for reading one clip; one that takes longer is a bad clip.
        recycle: clips after which a decoding process is replaced.
        mixed_shards: of a prepared set, shards whose clips are shuffled together, one lot after the other.
    """

    stride: int = 4
    sampling: Literal["window", "uniform"] = "window"
    face_margin: float = 0.3
    find_faces: bool = True
    yunet: str | None = None
    roll: bool = True
    multi_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    rand_augment: tuple[float, int] = (7.0, 4)
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    erase: float = 0.25
    missing_audio: Literal["error", "silence"] = "error"
    sound_track: str | None = None
    max_bad_share: float = 0.05
    segments: int = 2
    crops: int = 2
    workers: int = 2
    clip_seconds: float = 30.0
    recycle: int = 20_000
    mixed_shards: int = 64

    def __post_init__(self):
        check_least(self, stride=1, face_margin=0, segments=1, crops=1, workers=0, clip_seconds=0.1, recycle=1, mixed_shards=1)
        check_shares(self, "flip", "erase", "max_bad_share")
        if not self.multi_scales or not all(0 < scale <= 1 for scale in self.multi_scales):
            raise ValueError(f"multi_scales: got {self.multi_scales}, expected shares above 0, to 1, at least one")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale: got {self.crop_scale}, expected the least and the largest share, above 0, to 1")
        if min(self.rand_augment) < 0:
            raise ValueError(f"rand_augment: got {self.rand_augment}, expected a magnitude and a number of at least 0")
