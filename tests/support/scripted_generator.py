"""A generator whose model is a function of messages and seed."""

import itertools
import random

from hf_select.demo import teacher
from hf_select.generation.generator import Answer, Generator, RequestCounts


class Scripted(Generator):
    """A model that is a function of messages and seed; several requests are under way at once, and come back in any
    order."""

    name = "scripted"

    def __init__(self, script=None, order=0):
        self.script, self.usage, self.seen, self.dice = (
            script or (lambda body: None),
            RequestCounts(),
            [],
            random.Random(order),
        )

    def stream(self, requests):
        flying = []
        for request in itertools.chain(requests, [None] * 7):
            if request is not None:
                flying.append(request)
            if len(flying) == 7 or (request is None and flying):
                request = flying.pop(self.dice.randrange(len(flying)))
                body = {"messages": request.messages, "seed": request.sampling.seed, "schema": request.schema}
                self.seen.append(body)
                said = self.script(body)
                answer = teacher(body) if said is None else said
                answer = Answer(answer, "stop", 3, 2) if isinstance(answer, str) else answer
                self.usage.count(answer)
                yield request, answer
