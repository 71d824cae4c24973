"""*kvm-tiny*: the smallest guest that still shows it is alive.

A hundred bytes of 16-bit code, hand-assembled, that run on any KVM and under
TCG.  They print a banner on COM1, then count for ever in memory, print a dot
eight times a second and echo what is sent to COM1.  Interrupts stay off, no
firmware is called, so the guest needs nothing but RAM, a UART and a clock.

The code is position independent and comes in two wrappings: `firmware_image`
starts at the reset vector (a KVM that emulates every instruction needs 4 s for
SeaBIOS, this is there at once), `boot_disk` is a disk that a BIOS boots.
"""

from __future__ import annotations

__all__ = [
    "BANNER",
    "COUNTER_ADDRESS",
    "FIRMWARE_SIZE",
    "SECTOR_SIZE",
    "boot_disk",
    "boot_sector",
    "firmware_image",
]

BANNER = "qmpkit kvm-tiny guest ready"
"""What the guest prints first, with CR LF after it."""

COUNTER_ADDRESS = 0x1000
"""Physical address of the counter: 64 bits, little-endian, zero at start."""

SECTOR_SIZE = 512
_DISK_SIZE = 1024 * 1024  # SeaBIOS reads nothing from a disk shorter than a cylinder
FIRMWARE_SIZE = 64 * 1024
"""The smallest that QEMU takes for `-bios`; it ends at the end of the address space."""

_ENTRY = 0xF000  # where the firmware image holds the code
_RESET_VECTOR = 0xFFF0  # where an x86 starts, 16 bytes below 4 GiB

# Each line is (label, bytes or a jump).  A jump is (opcode bytes, target, width).
_Jump = tuple[str, str, int]
_PROGRAM: tuple[tuple[str, str | _Jump], ...] = (
    ("", "fa fc"),  # cli; cld
    ("", "31 c0 8e d8 8e d0"),  # xor ax, ax; mov ds, ax; mov ss, ax
    ("", "bc 00 7c"),  # mov sp, 0x7c00
    ("", "66 31 c0 66 a3 00 10 66 a3 04 10"),  # xor eax, eax; mov [COUNTER], eax; its upper half
    # The clock: the RTC's periodic flag, eight times a second, polled.
    ("", "b0 0a e6 70 b0 2d e6 71"),  # register A: 32768 Hz base, rate 13
    ("", "b0 0b e6 70 b0 42 e6 71"),  # register B: periodic interrupt on, 24 h
    ("", "e8 00 00"),  # call next: pushes where we are
    ("here", "5e 81 c6"),  # pop si; add si, banner - here
    ("offset", "00 00"),
    ("print", "2e ac 84 c0"),  # cs lodsb; test al, al
    ("", ("74", "count", 1)),  # jz count
    ("", ("e8", "put", 2)),  # call put
    ("", ("eb", "print", 1)),  # jmp print
    ("count", "66 83 06 00 10 01"),  # add dword [COUNTER], 1
    ("", "66 83 16 04 10 00"),  # adc dword [COUNTER + 4], 0
    ("", "f7 06 00 10 ff 0f"),  # test word [COUNTER], 0xfff: I/O is dear, look seldom
    ("", ("75", "count", 1)),  # jnz count
    ("", "ba fd 03 ec a8 01"),  # mov dx, COM1 line status; in al, dx; test al, data ready
    ("", ("74", "clock", 1)),  # jz clock
    ("", "ba f8 03 ec"),  # mov dx, COM1 data; in al, dx
    ("", ("e8", "put", 2)),  # call put
    ("clock", "b0 0c e6 70 e4 71 a8 40"),  # register C, cleared by reading; periodic flag
    ("", ("74", "count", 1)),  # jz count
    ("", "b0 2e"),  # mov al, '.'
    ("", ("e8", "put", 2)),  # call put
    ("", ("eb", "count", 1)),  # jmp count
    ("put", "88 c4 ba fd 03"),  # mov ah, al; mov dx, COM1 line status
    ("wait", "ec a8 20"),  # in al, dx; test al, transmitter empty
    ("", ("74", "wait", 1)),  # jz wait
    ("", "88 e0 ba f8 03 ee c3"),  # mov al, ah; mov dx, COM1 data; out dx, al; ret
    ("banner", ""),
)


def boot_sector() -> bytes:
    """The 512 bytes that a PC BIOS loads from a disk and starts."""
    code = _assemble()
    return code.ljust(SECTOR_SIZE - 2, b"\0") + b"\x55\xaa"


def boot_disk() -> bytes:
    """A raw disk of 1 MiB whose first sector is `boot_sector`."""
    return boot_sector().ljust(_DISK_SIZE, b"\0")


def firmware_image() -> bytes:
    """64 KiB for `-bios`: QEMU starts the code without any BIOS."""
    image = bytearray(b"\xf4" * FIRMWARE_SIZE)  # hlt, should anything stray
    code = _assemble()
    image[_ENTRY : _ENTRY + len(code)] = code
    jump = b"\xe9" + _relative(_ENTRY, _RESET_VECTOR + 3, 2)
    image[_RESET_VECTOR : _RESET_VECTOR + len(jump)] = jump
    return bytes(image)


def _assemble() -> bytes:
    labels = _labels()
    code = bytearray()
    for _, item in _PROGRAM:
        if isinstance(item, str):
            code += bytes.fromhex(item)
        else:
            opcode, target, width = item
            code += bytes.fromhex(opcode)
            code += _relative(labels[target], len(code) + width, width)
    distance = labels["banner"] - labels["here"]
    code[labels["offset"] : labels["offset"] + 2] = distance.to_bytes(2, "little")
    return bytes(code) + BANNER.encode() + b"\r\n\0"


def _labels() -> dict[str, int]:
    position, labels = 0, {}
    for label, item in _PROGRAM:
        if label:
            labels[label] = position
        position += len(bytes.fromhex(item)) if isinstance(item, str) else 1 + item[2]
    return labels


def _relative(target: int, after: int, width: int) -> bytes:
    """A jump's operand: the distance from the byte after the instruction."""
    return (target - after).to_bytes(width, "little", signed=True)
