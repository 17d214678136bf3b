"""A toy engine: it counts the steps that it passes on. One file is all that an engine needs."""


class Counting:
    def __init__(self, step):
        self.step, self.steps = step, 0

    def __call__(self, batches):
        self.steps += 1
        return self.step(batches)


def engine(step):
    return Counting(step)
