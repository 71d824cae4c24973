"""The machine that the hotplug metrics plug into: the tiny guest, with root ports to spare."""

import attrs

from qmpkit import load_profile

SPEC = attrs.evolve(load_profile("tiny"), name="bench", accel="tcg")
