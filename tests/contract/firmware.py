"""Guests of a few bytes that do one thing as soon as they run: 16-bit code in place of a BIOS."""

from __future__ import annotations

SIZE = 64 * 1024  # the smallest that QEMU takes for -bios
RESET_VECTOR = 0xFFF0
ENTRY = 0xF000

IDLE = "f4 eb fd"  # hlt; jmp -3

# ICH9: give the ACPI registers an address (PMBASE 0x600), switch them on, then
# write "sleep, type 5" to PM1_CNT.
_POWER_OFF = (
    "66 b8 40 f8 00 80 ba f8 0c 66 ef"  # mov eax, 0x8000f840; mov dx, 0xcf8; out dx, eax
    "66 b8 01 06 00 00 ba fc 0c 66 ef"  # mov eax, 0x601; mov dx, 0xcfc; out dx, eax
    "66 b8 44 f8 00 80 ba f8 0c 66 ef"  # register 0x44, ACPI_CNTL
    "b0 80 ba fc 0c ee"  # mov al, 0x80; out dx, al
    "b8 00 20 ba 04 06 ef"  # mov ax, 0x2000; mov dx, 0x604; out dx, ax
)

# pvpanic in slot 5: give its register the address 0xd0000, switch it on, write "panicked".
_PANIC = (
    "66 b8 10 28 00 80 ba f8 0c 66 ef"  # mov eax, 0x80002810; mov dx, 0xcf8; out dx, eax
    "66 b8 00 00 0d 00 ba fc 0c 66 ef"  # mov eax, 0xd0000; mov dx, 0xcfc; out dx, eax
    "66 b8 04 28 00 80 ba f8 0c 66 ef"  # register 4, command
    "b8 02 00 ba fc 0c ef"  # mov ax, 2; out dx, ax
    "b8 00 d0 8e d8 c6 06 00 00 01"  # mov ax, 0xd000; mov ds, ax; mov byte [0], 1
)

GUESTS = {
    "idle": IDLE,
    "panics": _PANIC + IDLE,
    "powers off": _POWER_OFF + IDLE,
    "reboots": "ba f9 0c b0 06 ee" + IDLE,  # reset control register 0xcf9
}


def firmware(guest: str) -> bytes:
    """64 KiB for `-bios`, with the guest of that name in `GUESTS`."""
    image = bytearray(b"\xf4" * SIZE)
    code = bytes.fromhex(GUESTS[guest])
    image[ENTRY : ENTRY + len(code)] = code
    distance = (ENTRY - RESET_VECTOR - 3) & 0xFFFF
    image[RESET_VECTOR : RESET_VECTOR + 3] = b"\xe9" + distance.to_bytes(2, "little")
    return bytes(image)
