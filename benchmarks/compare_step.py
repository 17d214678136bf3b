"""A training step of Base (forward and backward) on the kernels against the plain path, interleaved in one process.

python benchmarks/compare_step.py [batch]
"""

import statistics
import sys
import time

import torch

import avfmae
import avfmae_kernels as K

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS, WARM_UP = 10, 2


def kept_bytes(model, run) -> int:
    """Memory that autograd keeps for the way back, beside the parameters."""
    kept, parameters = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t):
        if t.untyped_storage().data_ptr() not in parameters:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = run()
    del loss
    return sum(kept.values())


def main() -> None:
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    cfg = avfmae.ModelConfig.preset("base")
    model = avfmae.AVFMAEForPretraining(cfg).to(DEVICE)
    video = torch.randint(0, 256, (batch, *cfg.video.size, 3), dtype=torch.uint8, device=DEVICE)
    audio = torch.randn(batch, 1, *cfg.audio.size, device=DEVICE)
    masks = avfmae.DualMask.sample(cfg, batch).to(DEVICE)
    for dtype in (torch.float32, torch.bfloat16):

        def forward(dtype=dtype):
            with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
                return model(video, audio, masks).loss

        seconds, kept = {"reference": [], "auto": []}, {}
        for _ in range(WARM_UP + ROUNDS):
            for implementation in seconds:
                model.zero_grad()
                with K.use(implementation):
                    start = time.perf_counter()
                    forward().backward()
                    if DEVICE == "cuda":
                        torch.cuda.synchronize()
                    seconds[implementation].append(time.perf_counter() - start)
        for implementation in seconds:
            with K.use(implementation):
                kept[implementation] = kept_bytes(model, forward)
        plain, ours = (statistics.median(s[WARM_UP:]) for s in seconds.values())
        print(f"{dtype}, batch {batch}, {DEVICE}: {plain:.3f} s -> {ours:.3f} s, {plain / ours:.2f} x; kept for the way back "
              f"{kept['reference'] / 1e6:.0f} MB -> {kept['auto'] / 1e6:.0f} MB, {kept['auto'] / kept['reference']:.2f} x", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
