"""The machine that the start metrics start: a board with a console and an agent, no guest."""

from qmpkit import MachineSpec

SPEC = MachineSpec(name="bench", accel="tcg", memory="128MiB", agent=True)
