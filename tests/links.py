"""A stand-in for the way to a GPU: copies that take place as late as they may."""

from __future__ import annotations

import threading
from collections import deque

import torch
from torch import Tensor

from ossia.system.upload import Sent


class Late:
    """A link to the CPU whose copies take place when they are waited for, in order, as on a stream
    that lags behind. A buffer that is filled again too early shows in what arrives.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.sent = self.begun = 0
        self._queue: deque[tuple[int, Tensor, Tensor]] = deque()
        self._lock = threading.Lock()

    def buffer(self, size: int) -> Tensor:
        return torch.full((size,), 0xA5, dtype=torch.uint8)

    def begin(self) -> None:
        self.begun += 1

    def send(self, source: Tensor, target: Tensor) -> Copy:
        with self._lock:
            self.sent += 1
            self._queue.append((self.sent, source, target))
            return Copy(self, self.sent)

    def receive(self, sent: Sent) -> None:
        sent.synchronize()

    def settle(self, number: int) -> None:
        with self._lock:
            while self._queue and self._queue[0][0] <= number:
                _, source, target = self._queue.popleft()
                with torch.inference_mode(target.is_inference()):
                    target.copy_(source)


class Copy:
    def __init__(self, link: Late, number: int) -> None:
        self._link, self._number = link, number

    def synchronize(self) -> None:
        self._link.settle(self._number)
