"""A small talking-face data set, drawn and voiced: real mp4 files (H.264 and AAC) that anybody may have.

An emotion is a face and a voice, and both tell of it: three expressions, each calm or excited, make six classes. The expression
is seen in mouth, brows, eyes and the height of the head, and heard in formants and melody; the excitement is seen in the strength
of the expression and a flushed skin, and heard in pitch, brightness and energy. What both modalities share is therefore the
emotion, which is what contrasting them can learn. People differ in face, colours, light, pitch and vocal tract. The
mouth is moved by the sound.

Lengths are in units of half the face's height, angles in radians, times in seconds.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw
from rich.progress import track

from avfmae.data.clip import Clip
from avfmae.data.manifest import write_manifest

SIZE, FPS, SECONDS, RATE = 96, Fraction(25, 2), 1.44, 16_000
HOP = 80  # samples
FACE = (16.0, 17.0, 64.0, 64.0)  # left, top, width, height: brows to chin, for everybody about the same
EMOTIONS = {  # name: (expression, excitement)
    "content": ("smile", 0.0),
    "joyful": ("smile", 1.0),
    "sad": ("frown", 0.0),
    "angry": ("frown", 1.0),
    "surprised": ("wide", 0.0),
    "afraid": ("wide", 1.0),
}
# Corners of the mouth up, opening at rest, brows up, inner brows up, eyes open.
EXPRESSIONS = {
    "smile": (0.13, 0.03, 0.03, 0.00, -0.20),
    "frown": (-0.11, 0.00, -0.09, -0.10, -0.10),
    "wide": (0.00, 0.10, 0.14, 0.06, 0.60),
}
# Of each expression's voice: formants' scale (smiling shortens the tract), and the pitch's rise over a second, in octaves.
VOICES = {"smile": (1.2, 0.0), "frown": (0.84, -0.7), "wide": (1.0, 0.7)}
HEADS = {"smile": 0.0, "frown": 0.05, "wide": -0.05}  # how much lower the head is held, in heights of the picture
VOWELS = ((800, 1200, 2500), (500, 1800, 2500), (300, 2300, 3000), (450, 850, 2500), (320, 800, 2300))  # formants, Hz


@dataclass(frozen=True)
class Identity:
    """How one person looks and sounds."""

    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    shirt: tuple[int, int, int]
    wall: tuple[int, int, int]
    width: float
    eye_gap: float
    eye_size: float
    brow: float
    nose: float
    mouth: float
    hair_length: float
    glasses: bool
    beard: bool
    pitch: float  # Hz
    tract: float  # formants' scale

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Identity":
        tone = rng.uniform(0.5, 1.0)
        shade = rng.uniform(0.1, 0.8)
        low_voice = rng.random() < 0.5
        return cls(
            skin=_rgb(245 * tone, 205 * tone - rng.uniform(0, 15), 175 * tone - rng.uniform(0, 25)),
            hair=_rgb(190 * shade, 140 * shade, 90 * shade),
            shirt=_rgb(*rng.uniform(60, 160, 3)),
            wall=_rgb(*rng.uniform(110, 170, 3)),
            width=rng.uniform(0.68, 0.88),
            eye_gap=rng.uniform(0.28, 0.38),
            eye_size=rng.uniform(0.13, 0.17),
            brow=rng.uniform(0.05, 0.085),
            nose=rng.uniform(0.18, 0.30),
            mouth=rng.uniform(0.32, 0.42),
            hair_length=rng.uniform(0.0, 1.1),
            glasses=rng.random() < 0.25,
            beard=low_voice and rng.random() < 0.4,
            pitch=rng.uniform(105, 135) if low_voice else rng.uniform(180, 220),
            tract=rng.uniform(0.96, 1.02) if low_voice else rng.uniform(1.04, 1.10),
        )


def _rgb(*channels: float) -> tuple[int, int, int]:
    return tuple(int(np.clip(c, 0, 255)) for c in channels)


def voice(who: Identity, expression: str, excitement: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A source-filter voice saying random syllables.

    The source is a sum of harmonics of the pitch, the filter three formants and a spectral tilt, evaluated at each
    harmonic. Excitement raises pitch, its movement, the energy and the brightness.

    Returns:
        The waveform (samples,) in -1..1, and its envelope (samples,) in 0..1, for the mouth.
    """
    samples = round(SECONDS * RATE)
    t = np.arange(0, samples + HOP, HOP) / RATE  # what moves slowly is computed every HOP samples, and interpolated
    onsets = np.cumsum(rng.uniform(0.20, 0.34, 14))
    onsets = onsets[onsets < SECONDS - 0.2]
    envelope, formants = np.full_like(t, 0.02), np.zeros((3, len(t)))
    weight = np.full_like(t, 1e-3)
    for onset in onsets:
        bump = rng.uniform(0.5, 1.0) * np.exp(-(((t - onset) / 0.07) ** 2))
        envelope = np.maximum(envelope, bump)
        formants += bump * np.array(VOWELS[rng.integers(len(VOWELS))])[:, None]
        weight += bump
    formants = (formants + 1e-3 * np.array([[500], [1500], [2500]])) / weight * who.tract * VOICES[expression][0]
    strength = 0.5 + 0.5 * rng.uniform(0.4, 1.0)
    lift = excitement * strength
    melody = sum(rng.normal() * np.sin(2 * np.pi * (rng.uniform(0.3, 1.5) * t + rng.random())) for _ in range(3))
    pitch = who.pitch * rng.uniform(0.93, 1.07) * (1 + 0.45 * lift) * np.exp((0.03 + 0.10 * lift) * melody)
    pitch *= 2 ** (VOICES[expression][1] * (t - SECONDS / 2))
    tilt = 1.6 - 0.7 * lift
    harmonic = np.arange(1, int(7000 / pitch.max()) + 1)[:, None]
    gain = sum(1 / (1 + ((harmonic * pitch - f) / (60 + 0.06 * f)) ** 2) for f in formants)
    gain *= harmonic**-tilt * envelope
    turn = np.exp(2j * np.pi * np.cumsum(interpolate(pitch)[:samples]) / RATE).astype(np.complex64)
    power, sound = np.ones_like(turn), np.zeros(samples, np.float32)
    for amplitude in gain.astype(np.float32):
        power *= turn
        sound += interpolate(amplitude)[:samples] * power.imag
    sound /= np.abs(sound).max()
    envelope = interpolate(envelope)[:samples]
    loudness = 0.16 * (1 + 1.6 * lift) * rng.uniform(0.75, 1.3)
    return loudness * sound + 0.0005 * rng.standard_normal(samples), envelope / envelope.max()


def interpolate(values: np.ndarray) -> np.ndarray:
    """(n + 1,) values at every HOP-th sample -> (n * HOP,) values at every sample."""
    share = np.arange(HOP, dtype=values.dtype) / HOP
    return (values[:-1, None] + np.diff(values)[:, None] * share).reshape(-1)


def face(who: Identity, pose: dict[str, float], expression: tuple[float, ...], opening: float) -> Image.Image:
    """One frame, drawn at twice its size and halved, so that edges are smooth."""
    corner, rest, brow_up, brow_inner, eyes = expression
    n = 2 * SIZE
    image = Image.new("RGB", (n, n), tuple(int(c * pose["light"]) for c in who.wall))
    draw = ImageDraw.Draw(image)
    scale, cos, sin = pose["scale"] * n * 0.42, math.cos(pose["tilt"]), math.sin(pose["tilt"])

    def at(x: float, y: float) -> tuple[float, float]:
        return n / 2 + pose["x"] * n + scale * (x * cos - y * sin), n * 0.50 + pose["y"] * n + scale * (x * sin + y * cos)

    def shape(points: Iterable[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        draw.polygon([at(x, y) for x, y in points], fill=tuple(min(255, int(c * pose["light"])) for c in colour))

    def ellipse(x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int]) -> None:
        angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        shape([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles], colour)

    def arc(points: list[tuple[float, float]], colour: tuple[int, int, int], width: float) -> None:
        draw.line(
            [at(x, y) for x, y in points],
            fill=tuple(min(255, int(c * pose["light"])) for c in colour),
            width=max(1, int(scale * width)),
            joint="curve",
        )

    dark, white, lips = (
        (40, 25, 25),
        (240, 240, 235),
        tuple(int(a * b) for a, b in zip(who.skin, (0.80, 0.55, 0.58), strict=True)),
    )
    shadow = tuple(int(c * 0.82) for c in who.skin)
    if who.hair_length > 0.3:
        ellipse(0, -0.1 + who.hair_length / 2, who.width * 1.18, 0.75 + who.hair_length / 3, who.hair)
    ellipse(0, 1.75, 1.2, 0.75, who.shirt)
    shape([(-0.25, 0.7), (0.25, 0.7), (0.3, 1.3), (-0.3, 1.3)], shadow)
    ellipse(0, -0.12, who.width * 1.08, 1.0, who.hair)
    ellipse(0, 0.06, who.width, 0.96, who.skin)
    crown = np.linspace(1.08 * math.pi, 1.92 * math.pi, 15)
    shape([(who.width * 1.08 * math.cos(a), -0.12 + math.sin(a)) for a in crown] + [(0.12, -0.6), (-0.25, -0.56)], who.hair)
    if who.beard:
        ellipse(0, 0.72, who.width * 0.62, 0.33, who.hair)
    open_eyes = who.eye_size * max(0.08, (0.62 + eyes * 0.6) * pose["lids"])
    for side in (-1, 1):
        x = side * who.eye_gap
        ellipse(x, -0.1, who.eye_size * 1.15, open_eyes, white)
        ellipse(x + pose["gaze"] * 0.04, -0.1, min(open_eyes, who.eye_size * 0.55), min(open_eyes, who.eye_size * 0.55), dark)
        inner, outer = x - side * 0.13, x + side * 0.17
        height = -0.32 - brow_up
        arc(
            [(inner, height - brow_inner), (x, height - 0.045), (outer, height + 0.02)],
            tuple(int(c * 0.7) for c in who.hair),
            who.brow,
        )
        if who.glasses:
            arc([(x + 0.2 * math.cos(a), -0.1 + 0.17 * math.sin(a)) for a in np.linspace(0, 2 * np.pi, 17)], (30, 30, 30), 0.03)
    arc([(0, -0.05), (0.07, who.nose), (-0.03, who.nose + 0.03)], shadow, 0.05)
    half, gap = who.mouth, 0.02 + rest + 0.15 * opening
    xs = np.linspace(-half, half, 9)
    bend = [-corner * 2.0 * (x / half) ** 2 + corner for x in xs]  # corners up for a smile
    y = 0.52
    upper = [(x, y + b - gap * math.sqrt(max(0, 1 - (x / half) ** 2)) * 0.6 - 0.03) for x, b in zip(xs, bend, strict=True)]
    lower = [(x, y + b + gap * math.sqrt(max(0, 1 - (x / half) ** 2)) + 0.03) for x, b in zip(xs, bend, strict=True)]
    shape(upper + lower[::-1], lips)
    shape(
        [(x * 0.85, yy + 0.025) for x, yy in upper] + [(x * 0.85, yy - 0.025) for x, yy in lower[::-1]],
        dark if gap > 0.05 else lips,
    )
    return image.reduce(2)


def shading(rng: np.random.Generator) -> np.ndarray:
    """Light from one side: a factor for every pixel (SIZE, SIZE, 1). No patch is flat, so none is all noise once standardised."""
    across, down = np.meshgrid(*[np.linspace(-1, 1, SIZE, dtype=np.float32)] * 2)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.3)
    return (1 + strength * (across * np.cos(angle) + down * np.sin(angle)))[..., None]


def draw_clip(path: Path, who: Identity, emotion: str, rng: np.random.Generator) -> None:
    """Draws, voices and encodes one clip."""
    name, excitement = EMOTIONS[emotion]
    waveform, envelope = voice(who, name, excitement, rng)
    strength = rng.uniform(0.9, 1.1) + 0.5 * excitement
    expression = tuple(strength * e for e in EXPRESSIONS[name])
    sway = {k: (rng.normal(0, s), rng.uniform(0.1, 0.5), rng.random(), s) for k, s in (("x", 0.02), ("y", 0.02), ("tilt", 0.06))}
    sway["y"] = (sway["y"][0] + HEADS[name], *sway["y"][1:])
    scale, light, gaze = rng.uniform(0.92, 1.08), rng.uniform(0.7, 1.15), rng.normal()
    blink = rng.uniform(0.3, SECONDS)
    shade = shading(rng)
    flush = 1 - 0.12 * excitement
    who = replace(who, skin=_rgb(who.skin[0], flush * who.skin[1], flush * who.skin[2]))
    frames = []
    for i in range(round(SECONDS * FPS)):
        t = i / FPS
        pose = {k: mean + 0.5 * s * math.sin(2 * math.pi * (rate * t + phase)) for k, (mean, rate, phase, s) in sway.items()}
        pose |= {"scale": scale, "light": light, "gaze": gaze, "lids": 0.1 if abs(t - blink) < 0.07 else 1.0}
        frames.append(np.asarray(face(who, pose, expression, float(envelope[int(t * RATE)]))))
    frames = (np.stack(frames) * shade).clip(0, 255).astype(np.uint8)
    encode(path, frames, waveform, FPS)


def encode(path: Path, frames: np.ndarray, waveform: np.ndarray | None, fps: int | Fraction = 25, rate: int = RATE) -> None:
    """Writes (T, H, W, 3) uint8 frames and a (samples,) or (channels, samples) waveform; codecs by the file's suffix."""
    video_codec, audio_codec = {".mp4": ("libx264", "aac"), ".mkv": ("libx264", "aac"), ".flv": ("flv1", "libmp3lame"),
                                ".mpg": ("mpeg1video", "mp2"), ".avi": ("mjpeg", "pcm_s16le")}[path.suffix]  # fmt: skip
    with av.open(str(path), "w") as container:
        video = container.add_stream(video_codec, rate=fps)
        video.height, video.width = frames.shape[1:3]
        video.codec_context.thread_count = 1  # the pool has the processes
        video.pix_fmt = "yuvj420p" if video_codec == "mjpeg" else "yuv420p"
        if video_codec == "libx264":
            video.options = {"preset": "veryfast", "crf": "20", "x264-params": "cpu-independent=1"}  # the same bytes every time
        sound = None
        if waveform is not None:
            waveform = np.atleast_2d(waveform)
            sound = container.add_stream(audio_codec, rate=rate, layout={1: "mono", 2: "stereo"}[len(waveform)])
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        if sound is not None:
            pcm = (waveform.clip(-1, 1) * 32767).astype(np.int16)
            block = 1024
            for first in range(0, pcm.shape[1], block):
                piece = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(pcm[:, first : first + block].T).reshape(1, -1), format="s16", layout=sound.layout.name
                )
                piece.sample_rate, piece.pts, piece.time_base = rate, first, Fraction(1, rate)
                container.mux(sound.encode(piece))
            container.mux(sound.encode())


@dataclass(frozen=True)
class DemoSet:
    """One data set to draw: people numbered from ``first``, each with ``takes`` clips of every emotion.

    Attributes:
        labels: this set's own names of the emotions; None: the clips are unlabelled.
        held_out: of a labelled set, so many people are of split ``val``, the first ones.
    """

    name: str
    first: int
    people: int
    takes: int = 1
    labels: dict[str, str] | None = None
    held_out: int = 0


def _job(job: tuple[str, int, str, int]) -> None:
    path, person, emotion, take = job
    who = Identity.draw(np.random.Generator(np.random.Philox(key=[0, person])))
    number = list(EMOTIONS).index(emotion) * 1000 + take
    draw_clip(Path(path), who, emotion, np.random.Generator(np.random.Philox(key=[0, person], counter=[0, 0, 1, number])))


def make_demo_set(folder: Path, what: DemoSet, processes: int = 2, test_people: int = 0) -> Path:
    """Draws a set into ``folder/NAME`` and writes its manifest; a set that is there already is kept.

    Args:
        test_people: the last so many people are of split ``test``, the others of ``train``.

    Returns:
        The manifest, ``folder/NAME.csv``.
    """
    manifest, root, clips, jobs = folder / f"{what.name}.csv", folder / what.name, [], []
    if manifest.exists():
        return manifest
    root.mkdir(parents=True, exist_ok=True)
    for person in range(what.first, what.first + what.people):
        for emotion in EMOTIONS:
            for take in range(what.takes):
                path = root / f"{person:03d}_{emotion}_{take}.mp4"
                clip = Clip(len(clips), str(path), subject=f"{person:03d}", dataset=what.name, face=FACE)
                if what.labels is not None:
                    test, val = person >= what.first + what.people - test_people, person < what.first + what.held_out
                    clip = replace(clip, label=what.labels[emotion], split="test" if test else "val" if val else "train")
                clips.append(clip)
                jobs.append((str(path), person, emotion, take))
    with ProcessPoolExecutor(processes) as pool:
        list(track(pool.map(_job, jobs, chunksize=4), f"drawing {what.name}", total=len(jobs)))
    write_manifest(manifest, clips)
    return manifest
