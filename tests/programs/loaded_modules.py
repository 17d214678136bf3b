"""Prints the names of all modules that are loaded after ``avfmae ARGUMENTS`` (--command ARGUMENTS), after ``avfmae.NAME`` is read
(--name NAME), or when a training process has its first list of clips (--list MANIFEST)."""

import contextlib
import io
import sys

if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        import avfmae

        if sys.argv[1] == "--name":
            getattr(avfmae, sys.argv[2])
        elif sys.argv[1] == "--command":
            from avfmae.cli import main

            main(sys.argv[2:])
        elif sys.argv[1] == "--list":
            from avfmae.data.sampler import BatchSampler
            from avfmae.data.table import ClipTable
            from avfmae.stages.config import PretrainConfig
            from avfmae.training.resume import fingerprint
            from avfmae_benchmarks.manifest import open_dataset

            dataset = open_dataset(sys.argv[2])
            fingerprint(PretrainConfig(), {"training": ClipTable.of(list(dataset.clips))}, False)
            next(BatchSampler.fit(len(dataset), 4, None, shards=dataset.shards()).micro_batches(0, 1))
    print(*sys.modules)
