"""Processes of one run watch each other: when one dies, fails or hangs, all end.

Each process has a connection to process 0. If a process dies, the operating system closes its
connection. If it fails, it says so. If all its threads hang, it falls silent. Process 0 tells the
others. Each ends with exits.PEER_DIED and a line that names the lost process, and skips the
runtime's barrier, which would wait for it. The others notice by themselves if process 0 hangs.
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

# Seconds. Only a call that holds the interpreter, or a frozen host, delays a beat. No call of this
# code holds the interpreter for a tenth of HUNG.
BEAT = 5.0  # between two signs of life
HUNG = 30.0  # of silence, counted in our own beats, after which a process counts as hung
GRACE = 2.0  # that an error waits for the same error elsewhere, or for a death that explains it
LINGER = 1.0  # that process 0 outlives the others, whose runtimes abort when it ends
LEFT, FAILED, DIED, SILENT = "left", "failed", "died", "silent"
ALIVE, MET = "alive", "met"
AGAIN = "start the same command again in all processes, and it goes on from the newest checkpoint"


class Watch:
    """The connections of a process to others, and its reaction when one of them ends.

    Process 0 is connected to all others, each of them only to process 0.
    """

    def __init__(self, me: Peer, channels: Mapping[Channel, Peer]) -> None:
        self.me, self.channels = me, dict(channels)
        self.ended: set[int] = set()
        self.failures: list[tuple[Peer, str]] = []
        self.failing = self.leaving = False
        self.stopping = threading.Lock()  # held by the thread that ends this process
        # Our own beats since the last line from a peer. A suspended process makes none, so when it
        # resumes it does not take its peers for hung.
        self.unheard = dict.fromkeys(self.channels, 0)
        # How often each peer has come to a meeting that this process has not.
        self.meetings = {peer.index: threading.Semaphore(0) for peer in self.channels.values()}
        self.selector = selectors.DefaultSelector()
        for channel in self.channels:
            self.selector.register(channel, selectors.EVENT_READ)
        if self.channels:
            threading.Thread(target=self.listen, name="watch", daemon=True).start()

    def listen(self) -> None:
        """Handle incoming lines and send signs of life, for ever."""
        beat = time.monotonic()
        while True:
            for key, _ in self.selector.select(max(beat - time.monotonic(), 0.0)):
                self.receive(key.fileobj)
            if time.monotonic() >= beat:
                self.beat()
                beat = time.monotonic() + BEAT

    def beat(self) -> None:
        """Send a sign of life to all peers, and find those that are silent for too long."""
        for channel, peer in self.channels.items():
            channel.try_to_send(ALIVE)
            self.unheard[channel] += 1
            if self.unheard[channel] > HUNG / BEAT and peer.index not in self.ended:
                self.hear(peer, SILENT, "")

    def receive(self, channel: Channel) -> None:
        """Handle a connection's lines. If it closes without a last word, its process has died."""
        lines = channel.receive()
        self.unheard[channel] = 0
        for line in lines or ():
            if line == MET:
                self.meetings[self.channels[channel].index].release()
            elif line != ALIVE:
                peer, event, text = line
                self.hear(Peer(*peer), event, text)
        if lines is None:
            self.selector.unregister(channel)
            peer = self.channels[channel]
            if not self.leaving and peer.index not in self.ended:
                self.hear(peer, DIED, "")

    def hear(self, peer: Peer, event: str, text: str) -> None:
        """Act on the end of a process. Process 0 tells the others first."""
        if peer.index == self.me.index:  # the others have ended; the runtime would abort
            write_line(
                f"this process gave no sign of life for {HUNG:g} s, so the others ended; {AGAIN}"
            )
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
        """Send what became of a process to all peers.

        A silent process is told too, so that it ends if it resumes.
        """
        for channel, other in self.channels.items():
            if other.index != peer.index or event == SILENT:
                channel.try_to_send([peer, event, text])

    def stop(self, line: str, code: int = exits.PEER_DIED) -> None:
        """Print a line and end this process at once; process 0 lets the others end first."""
        if not self.stopping.acquire(blocking=False):
            threading.Event().wait()  # another thread is ending the process
        write_line(line)
        if self.me.index == 0:
            time.sleep(LINGER)
        exits.end(code)

    def fail(self, code: int, text: str) -> None:
        """End this process with its own error, or with that of another that explains it."""
        if self.failures and text not in (said for _, said in self.failures):
            self.follow()
        self.failing = True
        self.tell(self.me, FAILED, text)
        if self.channels:
            time.sleep(GRACE)  # `listen` ends this process if another has died
        lower = [said for peer, said in self.failures if peer.index < self.me.index]
        self.stop("" if text in lower else text, code)

    def meet(self) -> None:
        """Return once all processes have called this as often as this one.

        Waits without a limit and uses no device, unlike a collective: one process may need hours
        longer than another.
        """
        if self.me.index == 0:
            for peer in self.meetings.values():
                peer.acquire()
        for channel in self.channels:
            channel.try_to_send(MET)
        if self.me.index > 0:
            self.meetings[0].acquire()

    def leave(self) -> None:
        """Wait until the others are done too, then tell them that this process leaves."""
        jax.distributed.shutdown()
        self.leaving = True
        self.tell(self.me, LEFT, "")


def write_line(line: str) -> None:
    """Print a line, unless empty, above the progress bar. Ignores errors such as a full disk."""
    if line:
        with suppress(OSError, ValueError):
            tqdm.write(line, file=sys.stderr)
