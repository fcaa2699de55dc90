"""Processes of one run watch each other: one that dies, fails or hangs ends all of them.

Each process has a connection to process 0. The operating system closes that of a process that dies;
one that fails says so; one that hangs whole, so that not even a thread of it runs, falls silent.
Process 0 tells the others, and each ends with one line that names the process and exits.PEER_DIED,
without the runtime's barrier, which would wait for the lost one. That process 0 hangs the others
notice by themselves.
"""

import selectors
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import jax
from tqdm import tqdm

from fewstep.training.cluster import exits
from fewstep.training.cluster.channel import Channel, Peer

# Seconds. A beat needs the interpreter for an instant, so only a call that holds it (or a host that
# runs nothing) delays it; none that this code makes holds it for a tenth of HUNG.
BEAT = 5.0  # between two signs of life
HUNG = 30.0  # of silence, measured in beats of our own
GRACE = 2.0  # that an error waits for the same one elsewhere, or for the death that explains it
LINGER = 1.0  # that process 0, whose end the runtime's of the others follows, stays longer
LEFT, FAILED, DIED, SILENT = "left", "failed", "died", "silent"
ALIVE = "alive"
AGAIN = "start the same command again in all processes, and it goes on from the newest checkpoint"


class Watch:
    """The connections of a process to the others, and what it does when one of them ends.

    Process 0 is connected to all, the others to process 0.
    """

    def __init__(self, me: Peer, channels: Mapping[Channel, Peer]) -> None:
        self.me, self.channels = me, dict(channels)
        self.ended: set[int] = set()
        self.failures: list[tuple[Peer, str]] = []
        self.failing = self.leaving = False
        self.stopping = threading.Lock()  # held by the thread that ends this process
        # Beats of ours since the other side was heard. A process that was suspended itself made
        # none, and so takes nobody for lost.
        self.unheard = dict.fromkeys(self.channels, 0)
        self.selector = selectors.DefaultSelector()
        for channel in self.channels:
            self.selector.register(channel, selectors.EVENT_READ)
        if self.channels:
            threading.Thread(target=self.listen, name="watch", daemon=True).start()

    def listen(self) -> None:
        """Handle what arrives, and give signs of life, for ever."""
        beat = time.monotonic()
        while True:
            for key, _ in self.selector.select(max(beat - time.monotonic(), 0.0)):
                self.receive(key.fileobj)
            if time.monotonic() >= beat:
                self.beat()
                beat = time.monotonic() + BEAT

    def beat(self) -> None:
        """Give a sign of life; one side that has given none for too long hangs."""
        for channel, peer in self.channels.items():
            channel.try_to_send(ALIVE)
            self.unheard[channel] += 1
            if self.unheard[channel] > HUNG / BEAT and peer.index not in self.ended:
                self.hear(peer, SILENT, "")

    def receive(self, channel: Channel) -> None:
        """Read from a connection; its end without a word is the death of the process."""
        lines = channel.receive()
        self.unheard[channel] = 0
        for line in lines or ():
            if line != ALIVE:
                peer, event, text = line
                self.hear(Peer(*peer), event, text)
        if lines is None:
            self.selector.unregister(channel)
            peer = self.channels[channel]
            if not self.leaving and peer.index not in self.ended:
                self.hear(peer, DIED, "")

    def hear(self, peer: Peer, event: str, text: str) -> None:
        """Act on the end of a process; process 0 tells the others first."""
        if peer.index == self.me.index:  # the others have ended; so would the runtime, by abort
            say(f"this process gave no sign of life for {HUNG:g} s, so the others ended; {AGAIN}")
            exits.end(exits.PEER_DIED)
        self.ended.add(peer.index)
        if self.leaving or event == LEFT or self.stopping.locked():
            return
        if self.me.index == 0 or event == SILENT:
            self.tell(peer, event, text)
        if event == DIED:
            self.stop(f"{peer} died; {AGAIN}")
        if event == SILENT:
            self.stop(f"{peer} gave no sign of life for {HUNG:g} s; {AGAIN}")
        self.failures.append((peer, text))
        if not self.failing:
            threading.Timer(GRACE, self.follow).start()

    def follow(self) -> None:
        """End because another process failed, unless this one has failed in the meantime."""
        if not self.failing:
            peer, text = self.failures[0]
            last_line = text.strip().splitlines()[-1].removeprefix("error: ")
            self.stop(f"{peer} ended with an error: {last_line}")

    def tell(self, peer: Peer, event: str, text: str) -> None:
        """Say what became of a process: to process 0, or from there to all.

        To itself too if it is silent, so that it ends when it goes on after all.
        """
        for channel, other in self.channels.items():
            if other.index != peer.index or event == SILENT:
                channel.try_to_send([peer, event, text])

    def stop(self, line: str, code: int = exits.PEER_DIED) -> None:
        """Say one line, wait where others must go first, and end this process here and now."""
        if not self.stopping.acquire(blocking=False):
            threading.Event().wait()  # another thread has begun to end the process
        say(line)
        if self.me.index == 0:
            time.sleep(LINGER)
        exits.end(code)

    def fail(self, code: int, text: str) -> None:
        """End this process by its own error, or by that of another which explains it."""
        if self.failures and text not in (said for _, said in self.failures):
            self.follow()
        self.failing = True
        self.tell(self.me, FAILED, text)
        if self.channels:
            time.sleep(GRACE)  # `listen` ends this process if another has died
        lower = [said for peer, said in self.failures if peer.index < self.me.index]
        self.stop("" if text in lower else text, code)

    def leave(self) -> None:
        """Wait for the others to come to their end too."""
        jax.distributed.shutdown()
        self.leaving = True
        self.tell(self.me, LEFT, "")


def say(line: str) -> None:
    """Print a line, if there is one, above the progress bar; a log that is full hinders nothing."""
    if line:
        with suppress(OSError, ValueError):
            tqdm.write(line, file=sys.stderr)
